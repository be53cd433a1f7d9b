"""DDPM: ancestral sampling from the posterior q(x_s | x_t, x_0) (2006.11239, eq 6-7)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffunet.samplers.base import Denoise, Noise, Sampler, Step, levels
from diffunet.schedules import Schedule
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

    def step(
        self, denoise: Denoise, schedule: Schedule, x_t: Tensor, t: float, s: float, noise: Noise, history: Any = None
    ) -> Step:
        x0 = denoise(x_t, t)
        if s == 0:
            return Step(x0, x0)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (levels(schedule, t), levels(schedule, s))
        a_ts = alpha_t / alpha_s
        v_ts = sigma_t**2 - a_ts**2 * sigma_s**2
        mean = a_ts * (sigma_s / sigma_t) ** 2 * x_t + alpha_s * v_ts / sigma_t**2 * x0
        variance = v_ts if self.large else v_ts * (sigma_s / sigma_t) ** 2
        return Step(mean + variance**0.5 * noise.like(x_t), x0)
