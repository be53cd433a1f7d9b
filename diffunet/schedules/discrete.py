"""Schedules of T indices: k = 0..T-1 stands at t = (k + 1) / T, and the network sees k."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffunet.errors import ConfigError
from diffunet.schedules.base import Preserving
from diffunet.schedules.grids import GRIDS


class Discrete(Preserving):
    """A table of alpha^2 at T indices; between them log(alpha^2) is interpolated, before the first towards log 1.

    zero_terminal_snr: sqrt(alpha^2) is shifted and stretched so that the last is 0 and the first stays (2305.08891,
    algorithm 1); log 0 is no end to interpolate to, so alpha falls straight to 0 in the last interval.
    resolution: logSNR' = logSNR + 2 log(64 / resolution), after that (2301.11093, section 3.1).
    """

    default_spacing = "trailing"
    spacings = tuple(GRIDS)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.t_min = 1 / config.T
        self.t_max = 1 - 1 / config.T if config.zero_terminal_snr else 1.0

    def alphas_bar(self) -> Tensor:
        """alpha^2 at k = 0..T-1 in float64."""
        c, table = self.config, self._plain_alphas_bar()
        if c.zero_terminal_snr:
            root = table.sqrt()
            table = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        if c.resolution is not None:
            snr = table / (1 - table) * (64 / c.resolution) ** 2
            table = snr / (1 + snr)
        return table

    def betas(self) -> Tensor:
        """beta_k of the forward chain at k = 0..T-1 in float64."""
        if self.config.zero_terminal_snr or self.config.resolution is not None:
            return _betas_of(self.alphas_bar())
        return self._plain_betas()

    def _plain_betas(self) -> Tensor:
        """beta_k before the options of every table."""
        return _betas_of(self._plain_alphas_bar())

    def _plain_alphas_bar(self) -> Tensor:
        return torch.cumprod(1 - self._plain_betas(), dim=0)

    @cached_property
    def _log_table(self) -> Tensor:
        """log(alpha^2) at t = 0, 1/T, ..., 1; with zero_terminal_snr its last value is 0 and stands for -inf."""
        table = self.alphas_bar()
        if self.config.zero_terminal_snr:
            table[-1] = 1
        return torch.cat([torch.zeros(1, dtype=torch.float64), table.log()])

    def _position(self, t: Tensor) -> Tensor:
        position = t.double().clamp(0, 1) * self.config.T
        nearest = position.round()
        # times that travelled through float32 snap back to their index
        return torch.where((position - nearest).abs() < 1e-3, nearest, position)

    def _interval(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log(alpha^2) at both ends of the interval of t, where t lies in it (0 to 1), and is it the last one?"""
        table, position = self._log_table.to(t.device), self._position(t)
        low = position.floor().long().clamp(max=self.config.T - 1)
        return table[low], table[low + 1], position - low, low == self.config.T - 1

    def _log_alpha2(self, t: Tensor) -> Tensor:
        start, end, part, last = self._interval(t)
        result = torch.lerp(start, end, part)
        return torch.where(last, start + 2 * torch.log1p(-part), result) if self.config.zero_terminal_snr else result

    def _log_alpha2_slope(self, t: Tensor) -> Tensor:
        start, end, part, last = self._interval(t)
        slope = end - start
        return self.config.T * (torch.where(last, -2 / (1 - part), slope) if self.config.zero_terminal_snr else slope)

    def _t_of_log_alpha2(self, log_alpha2: Tensor) -> Tensor:
        table, T = self._log_table.to(log_alpha2.device), self.config.T
        inner = table[1:-1]  # the ends are where the first and the last interval go on
        low = torch.searchsorted(-inner, -log_alpha2.contiguous())
        start = table[low]
        part = (log_alpha2 - start) / (table[low + 1] - start)
        if self.config.zero_terminal_snr:
            part = torch.where(low == T - 1, -torch.expm1((log_alpha2 - start) / 2), part)
        return (low + part) / T

    def _slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if not self.config.zero_terminal_snr:
            return super()._slopes(t)
        # alpha = 0 times an infinite slope of its logarithm: take the last interval's alpha itself, which is straight
        start, _, _, last = self._interval(t)
        alpha, sigma = self.alpha_sigma(t)
        straight = -self.config.T * (start / 2).exp()
        inside = alpha * self._log_alpha2_slope(t) / 2
        slope = torch.where(last, straight, inside)
        return slope, -alpha * slope / sigma

    def _told(self, t: Tensor) -> Tensor:
        return (self._position(t) - 1).float()

    def training_time(self, u: Tensor) -> Tensor:
        return ((u.double() * self.config.T).floor() + 1) / self.config.T

    def _visited(self, steps: int, spacing: str) -> Tensor:
        c = self.config
        if steps > c.T:
            raise ConfigError(f"steps = {steps} but a {c.kind} schedule has 1 to {c.T}")
        if c.zero_terminal_snr and spacing == "leading":
            raise ConfigError("spacing 'leading' never visits the pure noise of zero_terminal_snr; use 'trailing'")
        return super()._visited(steps, spacing)


def _betas_of(alphas_bar: Tensor) -> Tensor:
    table = torch.cat([torch.ones(1, dtype=torch.float64), alphas_bar])
    return 1 - table[1:] / table[:-1]


class Linear(Discrete):
    """beta_k rises linearly."""

    def _plain_betas(self) -> Tensor:
        c = self.config
        return torch.linspace(c.beta_start, c.beta_end, c.T, dtype=torch.float64)


class ScaledLinear(Discrete):
    """sqrt(beta_k) rises linearly."""

    def _plain_betas(self) -> Tensor:
        c = self.config
        return torch.linspace(math.sqrt(c.beta_start), math.sqrt(c.beta_end), c.T, dtype=torch.float64) ** 2


class Cosine(Discrete):
    """f(t) = cos^2((t + s) / (1 + s) pi / 2); beta_k = min(1 - f((k+1)/T) / f(k/T), beta_max) (2102.09672, eq 17)."""

    def _plain_betas(self) -> Tensor:
        c = self.config
        t = torch.arange(c.T + 1, dtype=torch.float64) / c.T
        f = torch.cos((t + c.s) / (1 + c.s) * math.pi / 2) ** 2
        return (1 - f[1:] / f[:-1]).clamp(max=c.beta_max)


class Sigmoid(Discrete):
    """alpha^2 = (S(end) - S(start + t (end - start))) / (S(end) - S(start)), S(x) = sigmoid(x / tau) (2212.11972)."""

    def _plain_alphas_bar(self) -> Tensor:
        c = self.config
        # the last index would have alpha = 0, of which eps says nothing: the table stops just above it
        t = (torch.arange(c.T, dtype=torch.float64) + 1) / c.T
        low, high = (torch.sigmoid(torch.tensor(v / c.tau, dtype=torch.float64)) for v in (c.start, c.end))
        return ((high - torch.sigmoid((c.start + t * (c.end - c.start)) / c.tau)) / (high - low)).clamp(min=1e-9)
