"""DDPM: ancestral sampling from the posterior q(x_s | x_t, x_0) (2006.11239, eq 6-7), its variance fixed or learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffunet.posterior import posterior
from diffunet.samplers.base import D0, Form, Leg, Noise, Point, Sampler, Step, X, Z, apply, points
from diffunet.spec import DDPMSampler


class DDPM(Sampler):
    """mean = a_ts (sigma_s / sigma_t)^2 x_t + alpha_s v_ts / sigma_t^2 x_0, a_ts = alpha_t / alpha_s, for any t > s.

    v_ts = sigma_t^2 - a_ts^2 sigma_s^2 is the noise that the forward process adds from s to t. The variance is
    btilde = v_ts (sigma_s / sigma_t)^2 (fixed_small, the exact posterior), v_ts (fixed_large), or what the network says
    between the two, v_ts^v btilde^(1 - v) at each value (learned: 2102.09672, eq 15). The step onto the clean image
    adds no noise.
    """

    def __init__(self, config: DDPMSampler) -> None:
        self.config = config
        self.leg = {"fixed_small": self._small, "fixed_large": self._large, "learned": self._learned}[config.variance]
        self.learned = config.variance == "learned"

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        return [self.leg(t, s) for t, s in pairwise(points(schedule, times))]

    def step(self, denoise: Any, x: Tensor, leg: Leg, noise: Noise, history: Any = None) -> Step:
        """As every sampler's; a learned variance is asked of `denoise.with_variance(x, t) -> (x_0, v)`."""
        if not (self.learned and leg.noisy):
            return super().step(denoise, x, leg, noise, history)
        x0, v = denoise.with_variance(x, leg.t)
        ((_, log_variance),) = leg.keep
        deviation = (apply(log_variance, {"x": x, "v": v.to(x.dtype), "1": torch.ones_like(x)}) / 2).exp()
        return Step(apply(leg.end, {"x": x, "D0": x0, "z": deviation * noise.like(x)}), x0)

    @staticmethod
    def _small(t: Point, s: Point) -> Leg:
        q = posterior(*t[1:], *s[1:])
        return Leg.of(t, s, q.x_t * X + q.x0 * D0 + math.sqrt(q.small) * Z)

    @staticmethod
    def _large(t: Point, s: Point) -> Leg:
        q = posterior(*t[1:], *s[1:])
        return Leg.of(t, s, q.x_t * X + q.x0 * D0 + (math.sqrt(q.large) if s.sigma > 0 else 0.0) * Z)

    @staticmethod
    def _learned(t: Point, s: Point) -> Leg:
        """Its unit noise is scaled by exp(log_variance / 2), which is linear in v; "1" stands for ones."""
        q = posterior(*t[1:], *s[1:])
        if s.sigma == 0:
            return Leg.of(t, s, q.x_t * X + q.x0 * D0)
        log_variance = math.log(q.small) * Form.of("1") + math.log(q.large / q.small) * Form.of("v")
        return Leg.of(t, s, q.x_t * X + q.x0 * D0 + Z, keep={"log_variance": log_variance})
