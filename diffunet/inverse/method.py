"""What a method is: a sampler that knows what was measured.

Every method walks the legs of an ordinary sampler, whose rule it holds. What differs is the clean estimate that the
rule gets to see, the noise that it draws, or what is done to x after the step; so any rule can drive any method, and
none of them copies one.

Legend: y = A x_0 + sigma_y n; x_t = alpha x_0 + sigma eps; a leg goes from t to s.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from diffunet import samplers
from diffunet.errors import ConfigError
from diffunet.inverse.operator import Operator
from diffunet.samplers import Denoise, Noise, Sampler
from diffunet.samplers.base import Leg, X, Z, points
from diffunet.schedules.grids import RHO


class Problem(NamedTuple):
    """What was measured: y (B, *M) = A x_0 + sigma n, with n unit noise and images in [-1, 1]."""

    operator: Operator
    y: Tensor
    sigma: float


class Method(Sampler):
    """A sampler of p(x_0 | y), or of something near it. One part for each entry of METHODS.

    Args:
        config: the method's spec.
        problem: what was measured.
        den: the denoiser, for its schedule and, where it has one, the threshold of its estimates.

    Raises:
        ConfigError: an operator that the method cannot have.
    """

    only: ClassVar[tuple[str, type[Operator]] | None] = None

    def __init__(self, config: Any, problem: Problem, den: Any) -> None:
        self.config, self.problem, self.schedule = config, problem, den.schedule
        self.threshold = getattr(den, "threshold", lambda x0: x0)
        self.rule = self.build_rule()
        if self.only is not None and not isinstance(problem.operator, self.only[1]):
            raise ConfigError(f"method '{config.kind}' is for operator '{self.only[0]}' only; take ddnm or diffpir")

    def build_rule(self) -> Sampler:
        """The sampler whose steps are made."""
        return samplers.build(self.config.sampler)

    def first_time(self, start: float | None) -> float:
        """Where the walk begins."""
        return 1.0 if start is None else start

    def begin(self, guess: Tensor, t: float, noise: Noise) -> Tensor:
        """x at t from a first picture (B, C, *S): alpha g + sigma z."""
        return float(self.schedule.alpha(t)) * guess + float(self.schedule.sigma(t)) * noise.like(guess)

    def times(self, schedule: Any, steps: int, spacing: Any = None, start: float = 1.0) -> list[float]:
        """The rule's own grid from t = 1; from a later `start` a Karras grid in sigma / alpha down to the smallest."""
        if start >= 1:
            return self.rule.times(schedule, steps, spacing)
        high, low = ((schedule.sigma(t) / schedule.alpha(t)) ** (1 / RHO) for t in (start, schedule.t_min))
        ratios = torch.linspace(high, low, max(steps, 2), dtype=torch.float64)[1:steps] ** RHO
        return self.rule.times(schedule, steps, [start, *schedule.t_of_sigma(ratios).tolist()])

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        """The rule's legs on every falling stretch; where times rise, a leg of noise alone."""
        legs: list[Leg] = []
        for stretch in stretches(times):
            rises = len(stretch) == 2 and stretch[1] > stretch[0]
            legs += [again(schedule, *stretch)] if rises else self.rule.legs(schedule, stretch)
        return legs

    def scale(self, schedule: Any) -> float:
        return self.rule.scale(schedule)

    def residual(self, x0: Tensor) -> Tensor:
        """y - A x_0: (B, *M)."""
        return self.problem.y - self.problem.operator(x0)


def stretches(times: Sequence[float]) -> list[list[float]]:
    """Cut a walk where it turns: falling stretches as long as they go, rising ones in single legs."""
    parts: list[list[float]] = []
    for t, s in pairwise(times):
        if parts and s < t and parts[-1][-1] < parts[-1][0]:
            parts[-1].append(s)
        else:
            parts.append([t, s])
    return parts


def again(schedule: Any, s: float, t: float) -> Leg:
    """Back from s up to t > s: x_t = a x_s + sqrt(sigma_t^2 - a^2 sigma_s^2) z, a = alpha_t / alpha_s."""
    low, high = points(schedule, (s, t))
    a = high.alpha / low.alpha
    return Leg.of(low, high, a * X + (high.sigma**2 - (a * low.sigma) ** 2) ** 0.5 * Z, stages=())


def travelled(times: Sequence[float], length: int, repeats: int) -> list[float]:
    """A falling walk with its jumps back: each stretch of `length` steps is walked `repeats` times.

    As in 2201.09865, algorithm 1 with its schedule: jumps start from the last noisy time, and every `length` steps
    before it, as long as a whole jump fits.
    """
    if repeats == 1:
        return list(times)
    last = len(times) - 2  # index of the last time that still has noise
    left = dict.fromkeys(range(last, length - 1, -length), repeats - 1)
    place, walk = 0, [times[0]]
    while place <= last:
        place += 1
        walk.append(times[place])
        if left.get(place, 0):
            left[place] -= 1
            place -= length
            walk.append(times[place])
    return walk


def differentiable(denoise: Denoise, x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """x_t as a leaf, and the estimate as a function of it."""
    with torch.enable_grad():
        leaf = x_t.detach().requires_grad_()
        return leaf, denoise(leaf, t)
