"""How much signal and how much noise: x_t = alpha(t) x_0 + sigma(t) eps for t in [0, 1], 0 clean, 1 noise.

Some libraries run time the other way or count integers. Here a discrete table of T steps holds index k = 0..T-1 at
t = (k + 1) / T, the network sees k, and t = 0 is the clean image, which no network is asked about.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffunet import spec
from diffunet.errors import ConfigError
from diffunet.table import Table, choose

Time = TypeVar("Time", float, Tensor)


class Schedule:
    """alpha(t) and sigma(t), the grids that samplers visit, and the time that a network is told.

    Make one by name: `Schedule.linear()`, `.scaled_linear()`, `.cosine()`, `.sigmoid()`, `.karras()`, `.flow()`; the
    options are the fields of the spec of the same name.
    """

    default_spacing = "uniform"
    spacings: tuple[str, ...] = ("uniform",)

    def __init__(self, config: Any) -> None:
        self.config = config

    def __repr__(self) -> str:
        return f"Schedule.{self.config.kind}({', '.join(f'{k}={v}' for k, v in self.config if k != 'kind')})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.config == other.config

    def __hash__(self) -> int:
        return hash(self.config)

    @staticmethod
    def linear(**options: Any) -> Schedule:
        """DDPM's: beta from 1e-4 to 0.02 over T = 1000."""
        return Linear(spec.LinearSchedule(**options))

    @staticmethod
    def scaled_linear(**options: Any) -> Schedule:
        """Latent diffusion's: sqrt(beta) rises linearly."""
        return ScaledLinear(spec.ScaledLinearSchedule(**options))

    @staticmethod
    def cosine(**options: Any) -> Schedule:
        """Improved DDPM's squared cosine."""
        return Cosine(spec.CosineSchedule(**options))

    @staticmethod
    def sigmoid(**options: Any) -> Schedule:
        """A sigmoid alpha^2 (2212.11972)."""
        return Sigmoid(spec.SigmoidSchedule(**options))

    @staticmethod
    def karras(**options: Any) -> Schedule:
        """EDM's: alpha = 1, sigma from 0.002 to 80."""
        return Karras(spec.KarrasSchedule(**options))

    @staticmethod
    def flow(**options: Any) -> Schedule:
        """Straight paths: alpha = 1 - t, sigma = t."""
        return Flow(spec.FlowSchedule(**options))

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma of times t (any shape), in float64."""
        raise AssertionError(f"{type(self).__name__} must say alpha and sigma")

    def alpha(self, t: Time) -> Time:
        """Size of the signal at t in [0, 1]: a float for a float, a tensor (same shape, device, dtype) for a tensor."""
        return self._like(0, t)

    def sigma(self, t: Time) -> Time:
        """Size of the noise at t in [0, 1]: a float for a float, a tensor (same shape, device, dtype) for a tensor."""
        return self._like(1, t)

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is told of times t."""
        raise AssertionError(f"{type(self).__name__} must say what the network sees")

    def training_time(self, u: Tensor) -> Tensor:
        """Times in float64 for uniform draws u in [0, 1)."""
        return 1 - u.double()

    def grid(self, steps: int, spacing: str | None = None) -> Tensor:
        """Times that `steps` sampler steps visit, from noise to clean: (steps + 1,) float64, falling, the last 0.

        Raises:
            ConfigError: unknown spacing, no steps, or more steps than a discrete table has.
        """
        spacing = choose("spacing", spacing or self.default_spacing, self.spacings)
        if steps < 1:
            raise ConfigError(f"steps = {steps} but a sampler makes at least 1")
        return torch.cat([self._visited(steps, spacing), torch.zeros(1, dtype=torch.float64)])

    def _visited(self, steps: int, spacing: str) -> Tensor:
        return torch.arange(steps, 0, -1, dtype=torch.float64) / steps

    def _like(self, which: int, t: Time) -> Time:
        if isinstance(t, Tensor):
            return self.alpha_sigma(t)[which].to(t.dtype if t.is_floating_point() else torch.float32)
        return float(self.alpha_sigma(torch.tensor(t, dtype=torch.float64))[which])


class Discrete(Schedule):
    """A table of alpha^2 at T indices; between them log(alpha^2) is interpolated, before the first towards log 1."""

    default_spacing = "trailing"
    spacings = ("leading", "trailing", "linspace")

    def alphas_bar(self) -> Tensor:
        """alpha^2 at k = 0..T-1 in float64."""
        return torch.cumprod(1 - self.betas(), dim=0)

    def betas(self) -> Tensor:
        """beta_k of the forward chain at k = 0..T-1 in float64."""
        raise AssertionError(f"{type(self).__name__} must say its betas")

    @cached_property
    def _log_table(self) -> Tensor:
        return torch.cat([torch.zeros(1, dtype=torch.float64), self.alphas_bar().log()])

    def _position(self, t: Tensor) -> Tensor:
        position = t.double().clamp(0, 1) * self.config.T
        nearest = position.round()
        # times that travelled through float32 snap back to their index
        return torch.where((position - nearest).abs() < 1e-3, nearest, position)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        table, position = self._log_table.to(t.device), self._position(t)
        low = position.floor().long().clamp(max=self.config.T - 1)
        log_alpha2 = torch.lerp(table[low], table[low + 1], position - low)
        return (log_alpha2 / 2).exp(), (-torch.expm1(log_alpha2)).sqrt()

    def network_time(self, t: Tensor) -> Tensor:
        return (self._position(t) - 1).float()

    def training_time(self, u: Tensor) -> Tensor:
        return ((u.double() * self.config.T).floor() + 1) / self.config.T

    def _visited(self, steps: int, spacing: str) -> Tensor:
        T = self.config.T
        if steps > T:
            raise ConfigError(f"steps = {steps} but a {self.config.kind} schedule has 1 to {T}")
        k = {
            "leading": lambda: torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (T // steps),
            "trailing": lambda: (torch.arange(steps, 0, -1, dtype=torch.float64) * (T / steps)).round() - 1,
            "linspace": lambda: torch.linspace(T - 1, 0, steps, dtype=torch.float64).round(),
        }[spacing]()
        return (k + 1) / T


class Linear(Discrete):
    """beta_k rises linearly."""

    def betas(self) -> Tensor:
        c = self.config
        return torch.linspace(c.beta_start, c.beta_end, c.T, dtype=torch.float64)


class ScaledLinear(Discrete):
    """sqrt(beta_k) rises linearly."""

    def betas(self) -> Tensor:
        c = self.config
        return torch.linspace(math.sqrt(c.beta_start), math.sqrt(c.beta_end), c.T, dtype=torch.float64) ** 2


class Cosine(Discrete):
    """f(t) = cos^2((t + s) / (1 + s) pi / 2); beta_k = min(1 - f((k+1)/T) / f(k/T), beta_max) (2102.09672, eq 17)."""

    def betas(self) -> Tensor:
        c = self.config
        t = torch.arange(c.T + 1, dtype=torch.float64) / c.T
        f = torch.cos((t + c.s) / (1 + c.s) * math.pi / 2) ** 2
        return (1 - f[1:] / f[:-1]).clamp(max=c.beta_max)


class Sigmoid(Discrete):
    """alpha^2 = (S(end) - S(start + t (end - start))) / (S(end) - S(start)), S(x) = sigmoid(x / tau) (2212.11972)."""

    def alphas_bar(self) -> Tensor:
        c = self.config
        # the last index would have alpha = 0, of which eps says nothing: the table stops just above it
        t = (torch.arange(c.T, dtype=torch.float64) + 1) / c.T
        low, high = (torch.sigmoid(torch.tensor(v / c.tau, dtype=torch.float64)) for v in (c.start, c.end))
        return ((high - torch.sigmoid((c.start + t * (c.end - c.start)) / c.tau)) / (high - low)).clamp(min=1e-9)

    def betas(self) -> Tensor:
        table = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_bar()])
        return 1 - table[1:] / table[:-1]


class Karras(Schedule):
    """alpha = 1; sigma^(1/rho) is linear in t from sigma_min at T_MIN to sigma_max at 1 (2206.00364, eq 5).

    Below T_MIN sigma falls straight to 0, so that t = 0 is the clean image. A grid is `steps` sigmas from sigma_max to
    sigma_min, then 0.
    """

    default_spacing = "karras"
    spacings = ("karras",)
    T_MIN = 1e-3

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        c, t = self.config, t.double()
        low, high = c.sigma_min ** (1 / c.rho), c.sigma_max ** (1 / c.rho)
        u = ((t - self.T_MIN) / (1 - self.T_MIN)).clamp(min=0)
        sigma = torch.where(t < self.T_MIN, c.sigma_min * t / self.T_MIN, (low + u * (high - low)) ** c.rho)
        return torch.ones_like(sigma), sigma

    def network_time(self, t: Tensor) -> Tensor:
        return (self.alpha_sigma(t)[1].log() / 4).float()

    def training_time(self, u: Tensor) -> Tensor:
        # ln sigma ~ N(-1.2, 1.2^2), EDM's table 1, cut to the schedule's range
        c = self.config
        normal = torch.special.ndtri(u.double().clamp(1e-12, 1 - 1e-12))
        sigma = (1.2 * normal - 1.2).exp().clamp(c.sigma_min, c.sigma_max)
        low, high = c.sigma_min ** (1 / c.rho), c.sigma_max ** (1 / c.rho)
        return self.T_MIN + (1 - self.T_MIN) * (sigma ** (1 / c.rho) - low) / (high - low)

    def _visited(self, steps: int, spacing: str) -> Tensor:
        return torch.linspace(1, self.T_MIN, steps, dtype=torch.float64)


class Flow(Schedule):
    """alpha = 1 - t, sigma = t (2209.03003; there time runs the other way)."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double()
        return 1 - t, t

    def network_time(self, t: Tensor) -> Tensor:
        return (t.double() * self.config.time_scale).float()


SCHEDULES: Table[type[Schedule]] = Table(
    "schedule",
    {
        "linear": Linear,
        "scaled_linear": ScaledLinear,
        "cosine": Cosine,
        "sigmoid": Sigmoid,
        "karras": Karras,
        "flow": Flow,
    },
)
