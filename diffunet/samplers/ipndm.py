"""iPNDM: DDIM with the noise of Adams and Bashforth's fixed weights (2204.13902; 2202.09778)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffunet.samplers.base import D0, Form, Leg, Point, Sampler, X, points
from diffunet.samplers.exponential import euler_noise, keep, past
from diffunet.spec import IPNDMSampler

WEIGHTS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


class IPNDM(Sampler):
    """x_s = (alpha_s / alpha_t) x_t + (sigma_s - sigma_t alpha_s / alpha_t) sum_i w_i e_i.

    The weights average the noise over an even step, but the step is in sigma / alpha, where hardly any grid is even.
    So its order is 2 at most, on grids that are smooth images of an even one, and 1 on others; `lms` and `deis` have
    weights that fit the grid. It starts with fewer noises, and the leg onto the clean image ends in the estimate.
    """

    def __init__(self, config: IPNDMSampler) -> None:
        self.config = config
        self.order = min(config.order, 2)

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        grid = points(schedule, times)
        return [self._leg(grid, i) for i in range(len(grid) - 1)]

    def _leg(self, grid: Sequence[Point], i: int) -> Leg:
        t, s = grid[i : i + 2]
        e_0 = (X - t.alpha * D0) / t.sigma
        noises = [e_0, *(form for _, form in past("E", grid, i, self.config.order - 1))]
        end = euler_noise(D0, e_0, s)
        if s.sigma > 0 and len(noises) > 1:
            e = sum((w * e_i for w, e_i in zip(WEIGHTS[len(noises)], noises, strict=True)), Form({}))
            end = end + (s.sigma - t.sigma * s.alpha / t.alpha) * (e - e_0)
        return Leg.of(t, s, end, keep("E", e_0, i, self.config.order - 1))
