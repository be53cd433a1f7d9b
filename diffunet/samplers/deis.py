"""DEIS, multistep: the noise as a polynomial in a variable of choice, integrated exactly (2204.13902, tAB and rhoAB).

x_s = (alpha_s / alpha_t) x_t + alpha_s int e drho, rho = sigma / alpha. A polynomial in t is the paper's tAB, in rho
its rhoAB, which is the linear multistep method of k-diffusion; diffusers' class of that name takes log rho.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffunet.errors import ConfigError
from diffunet.samplers.base import D0, Leg, Point, Sampler, X, points
from diffunet.samplers.exponential import Curve, euler_noise, keep, legs_left, noise_correction, past, rho, same
from diffunet.spec import DEISSampler


def time_of(schedule: Any) -> Curve:
    """The variable t of a schedule, as a function of lambda.

    Raises:
        ConfigError: a schedule that does not know the time of a logSNR.
    """
    if not hasattr(schedule, "t_of_logsnr"):
        raise ConfigError("deis in t needs a schedule with t_of_logsnr; take variable = 'log_rho'")

    def t(lam: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(schedule.t_of_logsnr(2 * torch.from_numpy(lam)).numpy())

    return t


VARIABLES = {"t": time_of, "rho": lambda schedule: rho, "log_rho": lambda schedule: same}  # log rho = -lambda


class DEIS(Sampler):
    """Adams and Bashforth's method with exact weights, of as many evaluations as its order."""

    order: int
    variable: Callable[[Any], Curve]
    lower_order_final: bool

    def __init__(self, config: DEISSampler) -> None:
        self.order, self.variable, self.lower_order_final = (
            config.order,
            VARIABLES[config.variable],
            config.lower_order_final,
        )

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        grid, variable = points(schedule, times), self.variable(schedule)
        return [self._leg(grid, i, variable) for i in range(len(grid) - 1)]

    def _leg(self, grid: Sequence[Point], i: int, variable: Curve) -> Leg:
        t, s = grid[i : i + 2]
        used = min(self.order, legs_left(grid, i)) if self.lower_order_final else self.order
        e_0 = (X - t.alpha * D0) / t.sigma
        added = noise_correction(t, s, [(t, e_0), *past("E", grid, i, used - 1)], variable)
        return Leg.of(t, s, euler_noise(D0, e_0, s) + added, keep("E", e_0, i, self.order - 1))
