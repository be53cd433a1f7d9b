"""Exact denoisers: data whose E[x_0 | x_t] has a closed form, so that every sampler has a right answer.

Each is called as den(x_t, t) with x_t (B, C, *S) and t a float or (B,), has `.schedule`, and treats every value of x_t
on its own. They follow the dtype of x_t: tests pass float64.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from diffunet.denoiser import per_sample
from diffunet.schedules import Schedule


def levels(schedule: Schedule, x_t: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
    """alpha and sigma at t (a float or (B,)), shaped to multiply x_t (B, C, *S)."""
    alpha, sigma = schedule.alpha_sigma(torch.as_tensor(t, dtype=torch.float64))
    return per_sample(alpha, x_t), per_sample(sigma, x_t)


class Gaussian:
    """x_0 ~ N(mean, std^2); std = 0 is a single image."""

    def __init__(self, schedule: Schedule, mean: float = 0.0, std: float = 0.5) -> None:
        self.schedule, self.mean, self.std = schedule, mean, std

    def __call__(self, x_t: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """E[x_0 | x_t] = m + a v / (a^2 v + s^2) (x_t - a m), v = std^2."""
        a, s = levels(self.schedule, x_t, t)
        return self.mean + a * self.std**2 / (a**2 * self.std**2 + s**2) * (x_t - a * self.mean)

    def spread(self, t: float) -> float:
        """Standard deviation of x_t."""
        return math.hypot(self.schedule.alpha(t) * self.std, self.schedule.sigma(t))

    def flow(self, x_t: Tensor, t: float, s: float = 0.0) -> Tensor:
        """Exact solution at s of the probability-flow ODE through x_t at t: the standardised value is constant."""
        ratio = self.spread(s) / self.spread(t)
        return self.schedule.alpha(s) * self.mean + ratio * (x_t - self.schedule.alpha(t) * self.mean)


class Mixture:
    """x_0 ~ sum_k w_k N(m_k, v_k), value by value; the defaults are two modes of unequal weight."""

    def __init__(
        self,
        schedule: Schedule,
        weights: tuple[float, ...] = (0.3, 0.7),
        means: tuple[float, ...] = (-1.0, 1.5),
        variances: tuple[float, ...] = (0.04, 0.25),
    ) -> None:
        self.schedule = schedule
        self.weights, self.means, self.variances = (
            torch.tensor(values, dtype=torch.float64) for values in (weights, means, variances)
        )

    def posterior(self, x_t: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """log(w_k N(x_t; a m_k, a^2 v_k + s^2)) and E[x_0 | x_t, k], each with the modes k as a last dimension."""
        w, m, v = (values.to(x_t.dtype) for values in (self.weights, self.means, self.variances))
        x, a, s = x_t[..., None], a[..., None], s[..., None]
        total = a**2 * v + s**2
        log_joint = w.log() - (x - a * m) ** 2 / (2 * total) - (2 * math.pi * total).log() / 2
        return log_joint, m + a * v / total * (x - a * m)

    def mean(self, x_t: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """E[x_0 | x_t] for signal a and noise s."""
        log_joint, means = self.posterior(x_t, a, s)
        return (log_joint.softmax(dim=-1) * means).sum(dim=-1)

    def log_density(self, x_t: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """log p(x_t)."""
        return self.posterior(x_t, a, s)[0].logsumexp(dim=-1)

    def __call__(self, x_t: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        return self.mean(x_t, *levels(self.schedule, x_t, t))
