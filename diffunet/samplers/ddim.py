"""DDIM: deterministic at eta = 0, DDPM at eta = 1 (2010.02502, eq 12 and 16)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffunet.samplers.base import Denoise, Noise, Sampler, Step, levels
from diffunet.schedules import Schedule
from diffunet.spec import DDIMSampler


class DDIM(Sampler):
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - h^2) eps + h z, where eps = (x_t - alpha_t x_0) / sigma_t.

    h = eta (sigma_s / sigma_t) sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2). On schedules with alpha = 1 this is
    Euler's step in sigma. eps is recomputed from the estimate, so a thresholded x_0 stays consistent with it.
    """

    order = 1

    def __init__(self, config: DDIMSampler) -> None:
        self.config = config

    def step(
        self, denoise: Denoise, schedule: Schedule, x_t: Tensor, t: float, s: float, noise: Noise, history: Any = None
    ) -> Step:
        x0 = denoise(x_t, t)
        if s == 0:
            return Step(x0, x0)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (levels(schedule, t), levels(schedule, s))
        eps = (x_t - alpha_t * x0) / sigma_t
        h2 = (self.config.eta * sigma_s / sigma_t) ** 2 * (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2)
        x_s = alpha_s * x0 + (sigma_s**2 - h2) ** 0.5 * eps
        return Step(x_s + h2**0.5 * noise.like(x_t) if self.config.eta else x_s, x0)
