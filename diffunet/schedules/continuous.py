"""Schedules of continuous time: score-based SDEs, EDM, straight paths, and a Laplace logSNR.

Some have no clean end of their own (sigma_min > 0). They follow their formula between T_MIN and 1 and let
r = sigma / alpha fall straight to 0 below T_MIN, so that t = 0 is the clean image; no network is asked there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diffunet.schedules.base import Preserving, Schedule

T_MIN = 1e-3


class VP(Preserving):
    """d log(alpha^2) / dt = -beta(t), beta(t) = beta_min + t (beta_max - beta_min) (2011.13456, eq 33).

    resolution: logSNR' = logSNR + 2 log(64 / resolution) (2301.11093, section 3.1). The network is told 999 t, the
    index of a DDPM with T = 1000 at about this noise (the paper's own code).
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.shift = shift(config.resolution)

    def _log_alpha2(self, t: Tensor) -> Tensor:
        c = self.config
        log_alpha2 = -(t**2 * (c.beta_max - c.beta_min) / 2 + t * c.beta_min)
        return logsigmoid(_logsnr(log_alpha2) + self.shift) if self.shift else log_alpha2

    def _log_alpha2_slope(self, t: Tensor) -> Tensor:
        c = self.config
        beta = c.beta_min + t * (c.beta_max - c.beta_min)
        # the shift keeps the slope of the logSNR, which is that of log(alpha^2) over sigma^2
        alpha2 = (-(t**2 * (c.beta_max - c.beta_min) / 2 + t * c.beta_min)).exp()
        return -beta / (1 - alpha2 + math.exp(self.shift) * alpha2)

    def _t_of_log_alpha2(self, log_alpha2: Tensor) -> Tensor:
        c = self.config
        if self.shift:
            log_alpha2 = logsigmoid(_logsnr(log_alpha2) - self.shift)
        log_alpha2 = log_alpha2.clamp(min=-1e6)  # far beyond t = 1, and finite
        root = (c.beta_min**2 - 2 * (c.beta_max - c.beta_min) * log_alpha2).sqrt()
        return -2 * log_alpha2 / (c.beta_min + root)

    def _told(self, t: Tensor) -> Tensor:
        return (t.double() * 999).float()

    def training_time(self, u: Tensor) -> Tensor:
        return 1 - u.double() * (1 - 1e-5)  # the smallest time that the paper trains on


class Laplace(Preserving):
    """A uniform t has logSNR ~ Laplace(mu, b), cut to logsnr_min..logsnr_max (2407.03297, table 1).

    logSNR = mu - b sgn(1/2 - u) log(1 - 2 |u - 1/2|) where the cut is far out, u = (t - T_MIN) / (1 - T_MIN).
    The network is told log(sigma / alpha) / 4, EDM's c_noise: t itself hardly changes where the logSNR runs to its
    ends. resolution: logSNR' = logSNR + 2 log(64 / resolution) (2301.11093, section 3.1).
    """

    default_spacing = "blended"  # of the grids without a search, the one of least error on Gaussian data

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.shift = shift(config.resolution)
        ends = torch.tensor([config.logsnr_min, config.logsnr_max], dtype=torch.float64)
        self.below, self.above = (tail.tolist() for tail in self._tails(ends))

    def _tails(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Chance of a smaller and of a larger logSNR, each exact where it is small."""
        z = (logsnr - self.config.mu) / self.config.b
        small = (-z.abs()).exp() / 2
        return torch.where(z < 0, small, 1 - small), torch.where(z < 0, 1 - small, small)

    def _chances(self, t: Tensor) -> tuple[Tensor, Tensor]:
        below = self.below[0] + (1 - t) / (1 - T_MIN) * (self.below[1] - self.below[0])
        above = self.above[1] + (t - T_MIN) / (1 - T_MIN) * (self.above[0] - self.above[1])
        return below, above.clamp(min=self.above[1])

    def _plain_logsnr(self, t: Tensor) -> Tensor:
        c, (below, above) = self.config, self._chances(t)
        inner = torch.where(below < 0.5, c.mu + c.b * (2 * below).log(), c.mu - c.b * (2 * above).log())
        return torch.where(t < T_MIN, c.logsnr_max - 2 * (t / T_MIN).log(), inner)

    def _log_alpha2(self, t: Tensor) -> Tensor:
        return logsigmoid(self._plain_logsnr(t) + self.shift)

    def _log_alpha2_slope(self, t: Tensor) -> Tensor:
        c, (below, above) = self.config, self._chances(t)
        noisy = -c.b * (self.below[1] - self.below[0]) / (1 - T_MIN) / below
        clean = -c.b * (self.above[0] - self.above[1]) / (1 - T_MIN) / above
        slope = torch.where(t < T_MIN, -2 / t, torch.where(below < 0.5, noisy, clean))
        return slope * torch.sigmoid(-self._plain_logsnr(t) - self.shift)

    def _slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return super()._slopes(t.clamp(min=1e-30))  # at 0 itself the logSNR is infinite

    def _inverse(self, logsnr: Tensor) -> Tensor:
        plain = logsnr - self.shift
        below, above = self._tails(plain)
        noisy = 1 - (below - self.below[0]) / (self.below[1] - self.below[0]) * (1 - T_MIN)
        clean = T_MIN + (above - self.above[1]) / (self.above[0] - self.above[1]) * (1 - T_MIN)
        t = torch.where(plain < self.config.mu, noisy, clean)
        return torch.where(plain > self.config.logsnr_max, T_MIN * ((self.config.logsnr_max - plain) / 2).exp(), t)

    def _told(self, t: Tensor) -> Tensor:
        return (-(self._plain_logsnr(t.double()) + self.shift) / 8).float()

    def training_time(self, u: Tensor) -> Tensor:
        return 1 - u.double() * (1 - T_MIN)


class Exploding(Schedule):
    """alpha = 1; sigma follows a formula of u = (t - T_MIN) / (1 - T_MIN), and falls straight to 0 below T_MIN."""

    T_MIN = T_MIN
    t_min = T_MIN

    def _formula(self, u: Tensor) -> Tensor:
        raise AssertionError(f"{type(self).__name__} must say sigma of u in [0, 1]")

    def _formula_inverse(self, sigma: Tensor) -> Tensor:
        raise AssertionError(f"{type(self).__name__} must say u of sigma")

    def _formula_slope(self, u: Tensor) -> Tensor:
        raise AssertionError(f"{type(self).__name__} must say d sigma / du")

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double()
        u = ((t - T_MIN) / (1 - T_MIN)).clamp(min=0)
        sigma = torch.where(t < T_MIN, self.config.sigma_min * t / T_MIN, self._formula(u))
        return torch.ones_like(sigma), sigma

    def _inverse(self, logsnr: Tensor) -> Tensor:
        sigma, low = (-logsnr / 2).exp(), self.config.sigma_min
        u = self._formula_inverse(sigma.clamp(min=low))
        return torch.where(sigma < low, T_MIN * sigma / low, T_MIN + (1 - T_MIN) * u)

    def _slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        u = ((t - T_MIN) / (1 - T_MIN)).clamp(min=0)
        slope = torch.where(t < T_MIN, self.config.sigma_min / T_MIN, self._formula_slope(u) / (1 - T_MIN))
        return torch.zeros_like(slope), slope


class VE(Exploding):
    """sigma = sigma_min (sigma_max / sigma_min)^u (2011.13456, eq 31); the network is told log(sigma), as there."""

    def _formula(self, u: Tensor) -> Tensor:
        return self.config.sigma_min ** (1 - u) * self.config.sigma_max**u

    def _formula_inverse(self, sigma: Tensor) -> Tensor:
        return (sigma / self.config.sigma_min).log() / self._span

    def _formula_slope(self, u: Tensor) -> Tensor:
        return self._formula(u) * self._span

    @property
    def _span(self) -> float:
        return math.log(self.config.sigma_max / self.config.sigma_min)

    def _told(self, t: Tensor) -> Tensor:
        return self.alpha_sigma(t)[1].log().float()

    def training_time(self, u: Tensor) -> Tensor:
        return 1 - u.double() * (1 - T_MIN)


class Karras(Exploding):
    """alpha = 1; sigma^(1/rho) is linear in t from sigma_min at T_MIN to sigma_max at 1 (2206.00364, eq 5).

    Its own grid is `steps` sigmas from sigma_max to sigma_min, then 0, for whichever rho it has. The network is told
    log(sigma) / 4.
    """

    default_spacing = "karras"

    @property
    def _ends(self) -> tuple[float, float]:
        c = self.config
        return c.sigma_min ** (1 / c.rho), c.sigma_max ** (1 / c.rho)

    def _formula(self, u: Tensor) -> Tensor:
        low, high = self._ends
        return (low + u * (high - low)) ** self.config.rho

    def _formula_inverse(self, sigma: Tensor) -> Tensor:
        low, high = self._ends
        return (sigma ** (1 / self.config.rho) - low) / (high - low)

    def _formula_slope(self, u: Tensor) -> Tensor:
        low, high = self._ends
        return self.config.rho * (high - low) * (low + u * (high - low)) ** (self.config.rho - 1)

    def _told(self, t: Tensor) -> Tensor:
        return (self.alpha_sigma(t)[1].log() / 4).float()

    def training_time(self, u: Tensor) -> Tensor:
        # ln sigma ~ N(-1.2, 1.2^2), EDM's table 1, cut to the schedule's range
        c = self.config
        normal = torch.special.ndtri(u.double().clamp(1e-12, 1 - 1e-12))
        sigma = (1.2 * normal - 1.2).exp().clamp(c.sigma_min, c.sigma_max)
        low, high = self._ends
        return T_MIN + (1 - T_MIN) * (sigma ** (1 / c.rho) - low) / (high - low)

    def _visited(self, steps: int, spacing: str) -> Tensor:
        # its time is already linear in sigma^(1/rho)
        own = spacing == self.default_spacing
        return torch.linspace(1, T_MIN, steps, dtype=torch.float64) if own else super()._visited(steps, spacing)


class Flow(Schedule):
    """alpha = 1 - t, sigma = t (2209.03003; there time runs the other way)."""

    t_max = 1 - 1e-3

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double()
        return 1 - t, t

    def _inverse(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(-logsnr / 2)

    def _slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def _told(self, t: Tensor) -> Tensor:
        return (t.double() * self.config.time_scale).float()


def shift(resolution: int | None) -> float:
    """2 log(64 / d): what the logSNR loses on images of side d, where neighbouring pixels average the noise away."""
    return 0.0 if resolution is None else 2 * math.log(64 / resolution)


def _logsnr(log_alpha2: Tensor) -> Tensor:
    return log_alpha2 - (-torch.expm1(log_alpha2)).log()
