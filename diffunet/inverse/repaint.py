"""RePaint: known pixels are put back at every step, and the walk goes back and forth (2201.09865)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffunet.inverse.method import Method, travelled
from diffunet.inverse.pointwise import Mask
from diffunet.samplers import Denoise, Noise, Step
from diffunet.samplers.base import Leg


class RePaint(Method):
    """x_s <- m (alpha_s y + sigma_s z) + (1 - m) x_s after each step from t to s (eq 8), with jumps (algorithm 1).

    Where y is noisy only the noise that is missing is added, and below y's own noise the network goes on alone.
    """

    only = ("mask", Mask)

    def times(self, schedule: Any, steps: int, spacing: Any = None, start: float = 1.0) -> list[float]:
        travel = self.config.travel
        return travelled(super().times(schedule, steps, spacing, start), travel.length, travel.repeats)

    def step(self, denoise: Denoise, x: Tensor, leg: Leg, noise: Noise, history: Any = None) -> Step:
        done = self.rule.step(denoise, x, leg, noise, history)
        alpha, sigma = float(self.schedule.alpha(leg.s)), float(self.schedule.sigma(leg.s))
        missing = sigma**2 - (alpha * self.problem.sigma) ** 2
        if leg.s > leg.t or missing < 0:
            return done
        known = alpha * self.problem.y + missing**0.5 * noise.like(x)
        return done._replace(x=torch.where(self.problem.operator.known.to(x.device), known, done.x))  # type: ignore[attr-defined]
