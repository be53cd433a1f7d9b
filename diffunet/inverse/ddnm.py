"""DDNM: what the picture says is kept, what it is silent about comes from the network (2212.00490)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffunet.inverse.method import Method, travelled
from diffunet.inverse.operator import inverse
from diffunet.inverse.renoise import Renoise
from diffunet.samplers import Denoise, Noise, Sampler, Step
from diffunet.samplers.base import Leg


class DDNM(Method):
    """x_0 <- x_0 + A^+ (y - A x_0), then x_s is drawn around it (eq 10-11 and algorithm 1).

    With noise in y (DDNM+, section 3.3, by singular values as in appendix I): y's own noise is sigma_y / s in the
    direction of s. As long as alpha_s sigma_y / s <= sigma_s, x_s takes y's value there and just the noise that is
    missing; below, it takes the share of it whose noise is sqrt(1 - eta^2) sigma_s, and the rest is fresh.
    """

    def build_rule(self) -> Sampler:
        return Renoise(self.config.eta**2)

    def times(self, schedule: Any, steps: int, spacing: Any = None, start: float = 1.0) -> list[float]:
        travel = self.config.travel
        return travelled(super().times(schedule, steps, spacing, start), travel.length, travel.repeats)

    def step(self, denoise: Denoise, x: Tensor, leg: Leg, noise: Noise, history: Any = None) -> Step:
        if self.problem.sigma > 0 and leg.stages:
            return self._noisy_step(denoise, x, leg, noise)
        return self.rule.step(lambda x_t, t: self._corrected(denoise(x_t, t)), x, leg, noise, history)

    def _corrected(self, x0: Tensor) -> Tensor:
        return x0 + self.problem.operator.pinv(self.residual(x0))

    def _noisy_step(self, denoise: Denoise, x: Tensor, leg: Leg, noise: Noise) -> Step:
        (A, _, sigma_y), eta = self.problem, self.config.eta
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (
            (float(self.schedule.alpha(time)), float(self.schedule.sigma(time))) for time in (leg.t, leg.s)
        )
        calm = (1 - eta**2) ** 0.5
        x0, z = denoise(x, leg.t), noise.like(x)
        eps = (x - alpha_t * x0) / sigma_t

        def carried(s: Tensor) -> Tensor:
            """Noise that y brings, in units of sigma_s; infinite at the clean end."""
            return alpha_s * sigma_y * inverse(s) / sigma_s

        def share(s: Tensor) -> Tensor:
            """Of y's value, over s."""
            return torch.where(carried(s) <= 1, 1.0, calm / carried(s).clamp(min=1.0)) * inverse(s)

        def fresh(s: Tensor) -> Tensor:
            """Of z, less eta, over s: V (..) U^T A does the rest."""
            own = torch.where(carried(s) <= 1, (1 - carried(s) ** 2).clamp(min=0).sqrt(), eta)
            return (own - eta) * inverse(s)

        if sigma_s == 0:
            return Step(alpha_s * x0, x0)
        corrected = x0 + A.back(share, self.residual(x0))
        unseen = eps - A.pinv(A(eps))
        return Step(alpha_s * corrected + sigma_s * (calm * unseen + eta * z + A.back(fresh, A(z))), corrected)
