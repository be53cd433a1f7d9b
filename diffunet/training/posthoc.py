"""Power-function averages of weights, and any other average made of stored ones (EDM2, 2312.02696, section 3).

The average at step t with exponent gamma weighs the weights of step tau by p(tau) = (gamma + 1) tau^gamma /
t^(gamma + 1). Its length is stated as sigma_rel, the deviation of p over t. A weighted sum of stored averages comes
nearest to the profile of any other one by least squares, long after training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffunet.errors import ConfigError


class Profile(NamedTuple):
    """A power-function average: the step at which it was taken, and its exponent gamma."""

    step: float
    gamma: float


def sigma_rel(gamma: float) -> float:
    """sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))), the length of an average relative to the training (eq 126)."""
    return float(((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5)


def gamma_of(sigma_rel: float) -> float:
    """The exponent of a length: the largest root of gamma^3 + 7 gamma^2 + (16 - s^-2) gamma + 12 - s^-2 (eq 126).

    Raises:
        ConfigError: a length outside (0, 0.2886), where the uniform average is the longest.
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise ConfigError(f"an average of relative length {sigma_rel} is none: take one between 0 and 0.288")
    roots = np.roots([1.0, 7.0, 16.0 - sigma_rel**-2, 12.0 - sigma_rel**-2])
    return float(roots.real.max())


def beta(step: int, gamma: float) -> float:
    """(1 - 1 / t)^(gamma + 1): what step t = 1, 2, ... keeps of the average so far (eq 127)."""
    return float((1.0 - 1.0 / step) ** (gamma + 1.0))


def inner(a: Profile, b: Profile) -> float:
    """int p_a p_b dtau (eq 151)."""
    total = a.gamma + b.gamma + 1.0
    # in logarithms: t^gamma alone would overflow
    shorter = np.log(min(a.step, b.step)) * total
    size = shorter - (a.gamma + 1) * np.log(a.step) - (b.gamma + 1) * np.log(b.step)
    return float((a.gamma + 1) * (b.gamma + 1) / total * np.exp(size))


def weights(stored: Sequence[Profile], wanted: Profile) -> list[float]:
    """The sum of stored averages whose profile is nearest to the wanted one (algorithm 3), a number for each.

    Raises:
        ConfigError: nothing is stored, or nothing at or before the wanted step.
    """
    if not any(one.step <= wanted.step for one in stored):
        raise ConfigError(f"no average was stored up to step {wanted.step:g}")
    A = np.array([[inner(a, b) for b in stored] for a in stored])
    b = np.array([inner(a, wanted) for a in stored])
    scale = 1 / np.sqrt(np.diag(A))
    solution, *_ = np.linalg.lstsq(A * scale[:, None] * scale, b * scale, rcond=None)
    return [float(x) for x in solution * scale]


def lack(stored: Sequence[Profile], x: Sequence[float], wanted: Profile) -> float:
    """||p - sum x_i p_i|| / ||p||: how far a sum of stored profiles is from the wanted one (1: as far as nothing)."""
    profiles, short = [*stored, wanted], np.array([*x, -1.0])
    products = np.array([[inner(a, b) for b in profiles] for a in profiles])
    # rounding may leave a little less than nothing
    return float(np.sqrt(max(0.0, short @ products @ short) / products[-1, -1]))
