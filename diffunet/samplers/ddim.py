"""DDIM: deterministic at eta = 0, DDPM at eta = 1 (2010.02502, eq 12 and 16)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from diffunet.samplers.base import D0, Leg, Point, Sampler, X, Z, points
from diffunet.spec import DDIMSampler


class DDIM(Sampler):
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - h^2) eps + h z, where eps = (x_t - alpha_t x_0) / sigma_t.

    h = eta (sigma_s / sigma_t) sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2). On schedules with alpha = 1 this is
    Euler's step in sigma. eps is recomputed from the estimate, so a thresholded x_0 stays consistent with it.
    """

    order = 1

    def __init__(self, config: DDIMSampler) -> None:
        self.config = config

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        return [self._leg(t, s) for t, s in pairwise(points(schedule, times))]

    def _leg(self, t: Point, s: Point) -> Leg:
        eps = (X - t.alpha * D0) / t.sigma
        h2 = (self.config.eta * s.sigma / t.sigma) ** 2 * (t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2)
        return Leg.of(t, s, s.alpha * D0 + (s.sigma**2 - h2) ** 0.5 * eps + h2**0.5 * Z)
