"""q(x_s | x_t, x_0) of a diffusion process, and what the variational bound makes of it (DDPM, 2006.11239, eq. 5-7).

Legend: x_t = alpha_t x_0 + sigma_t eps, s before t; beta = 1 - alpha_t^2 / alpha_s^2 on variance-preserving schedules,
btilde the posterior's variance; B batch, C channels, *S sides, T length of a chain, k its index 0..T-1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from diffunet.errors import ConfigError
from diffunet.schedules import Schedule

Number = TypeVar("Number", float, Tensor)
BIN = 1 / 255  # half the width of one of 256 grey values on [-1, 1]


class Posterior(NamedTuple, Generic[Number]):
    """q(x_s | x_t, x_0) = N(x_t x_t + x0 x_0, small); `large` is the variance of x_t where only x_s is known."""

    x_t: Number
    x0: Number
    large: Number
    small: Number


def posterior(alpha_t: Number, sigma_t: Number, alpha_s: Number, sigma_s: Number) -> Posterior[Number]:
    """The coefficients of q(x_s | x_t, x_0): floats, or tensors of one shape.

    With r = alpha_t / alpha_s: mean = r sigma_s^2 / sigma_t^2 x_t + alpha_s beta / sigma_t^2 x_0, beta = sigma_t^2 -
    r^2 sigma_s^2, btilde = beta sigma_s^2 / sigma_t^2. On variance-preserving schedules these are DDPM's eq. 7. Needs
    sigma_t > 0 and alpha_s > 0.
    """
    ratio = alpha_t / alpha_s
    forgotten = ratio * sigma_s / sigma_t
    # (1 - a) (1 + a) in place of 1 - a^2, which loses digits where steps are short
    share = (1 - forgotten) * (1 + forgotten)
    return Posterior(forgotten * sigma_s / sigma_t, alpha_s * share, share * sigma_t**2, share * sigma_s**2)


class Chain:
    """The posteriors of a chain of T steps down to the clean image: index k leads from times[k + 1] to times[k].

    Args:
        alphas, sigmas: (T + 1,) in float64, from the clean image (sigma = 0) to noise.

    The variance that a step down to the clean image has is 0, of which no logarithm can be taken: there the next
    step's stands in (improved DDPM, 2102.09672, and DDPM's own code).
    """

    def __init__(self, alphas: Tensor, sigmas: Tensor) -> None:
        a, s = alphas.double(), sigmas.double()
        self.steps = len(a) - 1
        self.alphas, self.sigmas = a[1:], s[1:]
        self.by_x_t, self.by_x0, large, small = posterior(a[1:], s[1:], a[:-1], s[:-1])
        self.variance = small
        following = small[1:2] if self.steps > 1 else large[:1]
        self.log_large = large.log()
        self.log_small = torch.cat([following, small[1:]]).log()

    @staticmethod
    def of(schedule: Schedule, times: Sequence[float] | None = None) -> Chain:
        """The chain of a discrete schedule's own T steps, or of any schedule over `times`, rising, the first 0.

        Raises:
            ConfigError: no times for a schedule that has no steps of its own.
        """
        return _chain(schedule, None if times is None else tuple(times))

    def mean(self, x0: Tensor, x_t: Tensor, k: Tensor) -> Tensor:
        """Mean of q(x_s | x_t, x_0) for x0, x_t (B, C, *S) at indices k (B,)."""
        return _rows(self.by_x_t, k, x_t) * x_t + _rows(self.by_x0, k, x_t) * x0

    def log_variance(self, v: Tensor, k: Tensor) -> Tensor:
        """v log beta + (1 - v) log btilde for v (B, C, *S), of which 0 to 1 lies between the two (2102.09672, eq. 15).

        The network's output is mapped by v = (output + 1) / 2; it may leave [0, 1].
        """
        return v * _rows(self.log_large, k, v) + (1 - v) * _rows(self.log_small, k, v)

    def fixed(self, k: Tensor, like: Tensor, kind: str = "small") -> Tensor:
        """log btilde (`small`) or log beta (`large`) at indices k (B,), shaped to go with `like` (B, C, *S)."""
        return _rows({"small": self.log_small, "large": self.log_large}[kind], k, like)

    def bound(self, x0: Tensor, x_t: Tensor, k: Tensor, guess: Tensor, log_variance: Tensor) -> Tensor:
        """One term of the variational bound in bits per dimension, (B,) (2006.11239, eq. 5).

        KL(q(x_s | x_t, x_0) | N(mean of the guess, variance)) for k > 0; at k = 0 -log p(x_0 | x_1) of 256 grey levels.

        Args:
            x0: clean images (B, C, *S) in [-1, 1].
            x_t: noisy ones at index k (B,).
            guess: their clean estimates.
            log_variance: of the model's step, broadcastable to x0.
        """
        mean = self.mean(guess, x_t, k)
        kl = gaussian_kl(self.mean(x0, x_t, k), self.fixed(k, x0), mean, log_variance)
        last = -discretized_log_likelihood(x0, mean, log_variance)
        return _mean_bits(torch.where(_shaped(k == 0, x0), last, kl))

    def prior(self, x0: Tensor, deviation: float = 1.0) -> Tensor:
        """KL(q(x_T | x_0) | N(0, deviation^2)) in bits per dimension, (B,): what the bound loses at its beginning."""
        variance = (2 * self.sigmas[-1].log()).to(x0.device)
        wide = torch.tensor(2 * math.log(deviation), dtype=torch.float64, device=x0.device)
        mean = self.alphas[-1].to(x0.device) * x0.double()
        return _mean_bits(gaussian_kl(mean, variance, torch.zeros_like(mean), wide))


@lru_cache(maxsize=16)
def _chain(schedule: Schedule, times: tuple[float, ...] | None) -> Chain:
    if times is None:
        T = getattr(schedule.config, "T", None)
        if T is None:
            raise ConfigError(f"schedule '{schedule.config.kind}' has no steps of its own: give times from 0 up")
        t = torch.arange(T + 1, dtype=torch.float64) / T
    else:
        t = torch.tensor(times, dtype=torch.float64)
    return Chain(*schedule.alpha_sigma(t))


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def _rows(table: Tensor, k: Tensor, like: Tensor) -> Tensor:
    """table[k] in the dtype and on the device of `like`, shaped (B, 1, ...) to go with it."""
    return _shaped(table[k.to(table.device)].to(like.dtype), like)


def _mean_bits(nats: Tensor) -> Tensor:
    return nats.flatten(1).mean(dim=1) / math.log(2)


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N(mean1, exp(log_variance1)) | N(mean2, exp(log_variance2))) in nats, value by value."""
    apart = (mean1 - mean2) ** 2 * torch.exp(-log_variance2)
    return 0.5 * (log_variance2 - log_variance1 + torch.expm1(log_variance1 - log_variance2) + apart)


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor, half: float = BIN) -> Tensor:
    """log of the mass that N(mean, exp(log_variance)) puts on the grey value x, in nats (2006.11239, eq. 13).

    x holds grey values 2 `half` apart on [-1, 1], 256 by default; the outer two own the tails. Computed from log cdfs,
    so that it stays finite far from the mean.
    """
    deviation = torch.exp(0.5 * log_variance)
    upper, lower = (x - mean + half) / deviation, (x - mean - half) / deviation
    # by symmetry both edges may be mirrored, so that log cdfs are subtracted on the side where they are small
    flip = x > mean
    high, low = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    middle = log_high + torch.log(-torch.expm1(torch.minimum(log_low - log_high, log_high.new_full((), -1e-30))))
    inside = torch.where(x <= -1 + half / 2, torch.special.log_ndtr(upper), middle)
    return torch.where(x >= 1 - half / 2, torch.special.log_ndtr(-lower), inside)
