"""The sampler rule of methods that draw x_s anew around a corrected estimate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from diffunet.samplers import Sampler
from diffunet.samplers.base import D0, Leg, Point, X, Z, points


class Renoise(Sampler):
    """x_s = alpha_s x_0 + sigma_s (sqrt(1 - f) eps + sqrt(f) z), where eps = (x_t - alpha_t x_0) / sigma_t.

    f is the share of the noise that is fresh: DDIM with eta = 0 has none (2305.08995, eq 15; eta^2 in 2212.00490).
    """

    def __init__(self, fresh: float) -> None:
        self.fresh = fresh

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        return [self._leg(t, s) for t, s in pairwise(points(schedule, times))]

    def _leg(self, t: Point, s: Point) -> Leg:
        eps = (X - t.alpha * D0) / t.sigma
        return Leg.of(t, s, s.alpha * D0 + s.sigma * ((1 - self.fresh) ** 0.5 * eps + self.fresh**0.5 * Z))
