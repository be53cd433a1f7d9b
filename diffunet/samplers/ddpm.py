"""DDPM: ancestral sampling from the posterior q(x_s | x_t, x_0) (2006.11239, eq 6-7)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from diffunet.samplers.base import D0, Leg, Point, Sampler, X, Z, points
from diffunet.spec import DDPMSampler


class DDPM(Sampler):
    """mean = a_ts (sigma_s / sigma_t)^2 x_t + alpha_s v_ts / sigma_t^2 x_0, a_ts = alpha_t / alpha_s, for any t > s.

    v_ts = sigma_t^2 - a_ts^2 sigma_s^2 is the noise that the forward process adds from s to t. The variance is
    v_ts (sigma_s / sigma_t)^2 (fixed_small, the exact posterior) or v_ts (fixed_large). The step onto the clean image
    adds no noise.
    """

    def __init__(self, config: DDPMSampler) -> None:
        self.config = config
        self.large = config.variance == "fixed_large"

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        return [self._leg(t, s) for t, s in pairwise(points(schedule, times))]

    def _leg(self, t: Point, s: Point) -> Leg:
        a_ts = t.alpha / s.alpha
        v_ts = t.sigma**2 - a_ts**2 * s.sigma**2
        mean = a_ts * (s.sigma / t.sigma) ** 2 * X + s.alpha * v_ts / t.sigma**2 * D0
        small = v_ts * (s.sigma / t.sigma) ** 2
        variance = v_ts if self.large and s.sigma > 0 else small
        return Leg.of(t, s, mean + variance**0.5 * Z)
