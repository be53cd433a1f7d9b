"""DiffPIR: the estimate and the picture weighed against each other at each step (2305.08995)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffunet.inverse.method import Method
from diffunet.inverse.renoise import Renoise
from diffunet.samplers import Denoise, Noise, Sampler, Step
from diffunet.samplers.base import Leg


class DiffPIR(Method):
    """x_0 <- argmin_x |y - A x|^2 + rho |x - x_0|^2 = x_0 + A^T (A A^T + rho)^-1 (y - A x_0) (eq 12).

    rho = weight (sigma_y alpha_t / sigma_t)^2: the noisier x_t, the less the estimate counts. Then the noise that x_t
    must have had is computed anew (eq 13), and a share of it is drawn fresh.
    """

    def build_rule(self) -> Sampler:
        return Renoise(self.config.fresh)

    def step(self, denoise: Denoise, x: Tensor, leg: Leg, noise: Noise, history: Any = None) -> Step:
        A, _, sigma_y = self.problem

        def weighed(x_t: Tensor, t: float) -> Tensor:
            x0 = denoise(x_t, t)
            rho = self.config.weight * (sigma_y * float(self.schedule.alpha(t)) / float(self.schedule.sigma(t))) ** 2
            return x0 + A.ridge(self.residual(x0), rho)

        return self.rule.step(weighed, x, leg, noise, history)
