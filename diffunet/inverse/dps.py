"""DPS: after each step one down the gradient of the residual (2209.14687)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffunet.inverse.method import Method, differentiable
from diffunet.samplers import Denoise, Noise, Step
from diffunet.samplers.base import Leg


class DPS(Method):
    """x_s <- x_s - zeta' grad |y - A x_0(x_t)|: algorithm 1 with its zeta_i = zeta' / |y - A x_0|.

    Its step length is a matter of the sampler, the number of steps and the images, not of sigma_y: it is no sampler of
    the posterior, even where everything is Gaussian.
    """

    def step(self, denoise: Denoise, x: Tensor, leg: Leg, noise: Noise, history: Any = None) -> Step:
        gradients: list[Tensor] = []

        def watched(x_t: Tensor, t: float) -> Tensor:
            leaf, x0 = differentiable(denoise, x_t, t)
            with torch.enable_grad():
                # a residual of exactly 0 has no direction; torch's norm gives it the gradient 0
                norm = torch.linalg.vector_norm(self.residual(x0).flatten(1), dim=1)
                gradients.append(torch.autograd.grad(norm.sum(), leaf)[0])
            return x0.detach()

        done = self.rule.step(watched, x, leg, noise, history)
        return done._replace(x=done.x - self.config.scale * gradients[0])
