"""What every schedule can do: levels, conversions, derivatives, and the times that samplers visit.

Legend: t in [0, 1], 0 clean, 1 noise; logSNR = log(alpha^2 / sigma^2); r = sigma / alpha, EDM's sigma.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diffunet import spec
from diffunet.errors import ConfigError
from diffunet.schedules.grids import CONTINUOUS, GRIDS, custom
from diffunet.table import choose

Time = TypeVar("Time", float, Tensor)
KNOWN = 1 << 16  # times whose levels a schedule remembers


def _float64(value: float | Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _like(value: Tensor, asked: Time) -> Time:
    """An answer in float64 in the type of the question: a float for a float, else the dtype of the tensor."""
    if isinstance(asked, Tensor):
        return value.to(asked.dtype if asked.is_floating_point() else torch.float32)
    return float(value)


class Schedule:
    """alpha(t) and sigma(t), the grids that samplers visit, and the time that a network is told.

    Make one by name: `Schedule.linear()`, `.scaled_linear()`, `.cosine()`, `.sigmoid()`, `.vp()`, `.laplace()`,
    `.ve()`, `.karras()`, `.flow()`; the options are the fields of the spec of the same name.

    default_spacing, spacings: the grid where nobody names one, and all that it has.
    t_min: the smallest time that a network is asked about. t_max: the largest with any signal; less than 1 where
    alpha(1) = 0.
    """

    default_spacing = "uniform"
    spacings: tuple[str, ...] = CONTINUOUS
    t_min = 1e-3
    t_max = 1.0

    def __init__(self, config: Any) -> None:
        self.config = config
        self._levels: dict[float, tuple[float, float]] = {}
        self._times: dict[float, float] = {}

    def __repr__(self) -> str:
        return f"Schedule.{self.config.kind}({', '.join(f'{k}={v}' for k, v in self.config if k != 'kind')})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.config == other.config

    def __hash__(self) -> int:
        return hash(self.config)

    @staticmethod
    def linear(**options: Any) -> Schedule:
        """DDPM's: beta from 1e-4 to 0.02 over T = 1000."""
        return _built(spec.LinearSchedule(**options))

    @staticmethod
    def scaled_linear(**options: Any) -> Schedule:
        """Latent diffusion's: sqrt(beta) rises linearly."""
        return _built(spec.ScaledLinearSchedule(**options))

    @staticmethod
    def cosine(**options: Any) -> Schedule:
        """Improved DDPM's squared cosine."""
        return _built(spec.CosineSchedule(**options))

    @staticmethod
    def sigmoid(**options: Any) -> Schedule:
        """A sigmoid alpha^2 (2212.11972)."""
        return _built(spec.SigmoidSchedule(**options))

    @staticmethod
    def vp(**options: Any) -> Schedule:
        """The variance-preserving SDE: beta(t) from 0.1 to 20, continuous in t (2011.13456)."""
        return _built(spec.VPSchedule(**options))

    @staticmethod
    def laplace(**options: Any) -> Schedule:
        """A logSNR with the Laplace distribution: most training near logSNR = 0 (2407.03297)."""
        return _built(spec.LaplaceSchedule(**options))

    @staticmethod
    def ve(**options: Any) -> Schedule:
        """The variance-exploding SDE: alpha = 1, sigma geometric from 0.01 to 50 (2011.13456)."""
        return _built(spec.VESchedule(**options))

    @staticmethod
    def karras(**options: Any) -> Schedule:
        """EDM's: alpha = 1, sigma from 0.002 to 80."""
        return _built(spec.KarrasSchedule(**options))

    @staticmethod
    def flow(**options: Any) -> Schedule:
        """Straight paths: alpha = 1 - t, sigma = t."""
        return _built(spec.FlowSchedule(**options))

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma of times t (any shape), in float64."""
        raise AssertionError(f"{type(self).__name__} must say alpha and sigma")

    def alpha(self, t: Time) -> Time:
        """Size of the signal at t in [0, 1]: a float for a float, a tensor (same shape, device, dtype) for a tensor."""
        if isinstance(t, Tensor):
            return _like(self.alpha_sigma(t)[0], t)
        return self._level(t)[0]

    def sigma(self, t: Time) -> Time:
        """Size of the noise at t in [0, 1]: a float for a float, a tensor (same shape, device, dtype) for a tensor."""
        if isinstance(t, Tensor):
            return _like(self.alpha_sigma(t)[1], t)
        return self._level(t)[1]

    def network_time(self, t: Time) -> Time:
        """What the network is told of times t: a float for a float, else float32 of the same shape."""
        if isinstance(t, Tensor):
            return self._told(t)
        known = self._times.get(t)
        if known is None:
            known = self._times[t] = float(self._told(torch.tensor(t, dtype=torch.float64)))
            if len(self._times) > KNOWN:
                self._times.clear()
        return known

    def training_time(self, u: Tensor) -> Tensor:
        """Times in float64 for uniform draws u in [0, 1)."""
        return 1 - u.double()

    def logsnr(self, t: Time) -> Time:
        """log(alpha^2 / sigma^2) at t in [0, 1]; inf at 0, -inf where alpha is 0."""
        alpha, sigma = self.alpha_sigma(_float64(t))
        return _like(2 * (alpha.log() - sigma.log()), t)

    def t_of_logsnr(self, logsnr: Time) -> Time:
        """The time in [0, 1] at which the logSNR has this value; beyond the schedule's ends, that end."""
        return _like(self._inverse(_float64(logsnr)).clamp(0, 1), logsnr)

    def t_of_sigma(self, r: Time) -> Time:
        """The time in [0, 1] at which sigma / alpha has this value r >= 0; beyond the schedule's ends, that end."""
        return _like(self._inverse(-2 * _float64(r).log()).clamp(0, 1), r)

    def derivatives(self, t: Time) -> tuple[Time, Time]:
        """d alpha / dt and d sigma / dt at t in [0, 1].

        At a kink (an index of a table, t_min) the slope on the side of the noise; variance-preserving sigma starts
        with an infinite slope at t = 0.
        """
        alpha, sigma = self._slopes(_float64(t))
        return _like(alpha, t), _like(sigma, t)

    def grid(self, steps: int, spacing: str | Sequence[float] | None = None) -> Tensor:
        """Times that `steps` sampler steps visit, from noise to clean: (steps + 1,) float64, falling, the last 0.

        Args:
            steps: steps of the sampler, at least 1; a list of times says its own number.
            spacing: a name of GRIDS, one of `spacings`; or falling times in [0, 1], of which a last 0 may be left out;
                None is the schedule's own `default_spacing`.

        Raises:
            ConfigError: unknown spacing, no steps, more steps than a discrete table has, times that do not fall.
        """
        if spacing is not None and not isinstance(spacing, str):
            return custom(spacing)
        spacing = choose("spacing", spacing or self.default_spacing, self.spacings)
        if steps < 1:
            raise ConfigError(f"steps = {steps} but a sampler makes at least 1")
        return torch.cat([self._visited(steps, spacing), torch.zeros(1, dtype=torch.float64)])

    def _told(self, t: Tensor) -> Tensor:
        raise AssertionError(f"{type(self).__name__} must say what the network sees")

    def _inverse(self, logsnr: Tensor) -> Tensor:
        raise AssertionError(f"{type(self).__name__} must say the time of a logSNR")

    def _slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError(f"{type(self).__name__} must say its derivatives")

    def _visited(self, steps: int, spacing: str) -> Tensor:
        return GRIDS[spacing](self, steps)

    def _level(self, t: float) -> tuple[float, float]:
        """alpha and sigma: a sampler asks for those of a time again and again."""
        known = self._levels.get(t)
        if known is None:
            alpha, sigma = self.alpha_sigma(torch.tensor(t, dtype=torch.float64))
            known = self._levels[t] = float(alpha), float(sigma)
            if len(self._levels) > KNOWN:
                self._levels.clear()
        return known


class Preserving(Schedule):
    """alpha^2 + sigma^2 = 1, stated by log(alpha^2): exact near both ends."""

    def _log_alpha2(self, t: Tensor) -> Tensor:
        raise AssertionError(f"{type(self).__name__} must say log(alpha^2)")

    def _t_of_log_alpha2(self, log_alpha2: Tensor) -> Tensor:
        raise AssertionError(f"{type(self).__name__} must say the time of log(alpha^2)")

    def _log_alpha2_slope(self, t: Tensor) -> Tensor:
        raise AssertionError(f"{type(self).__name__} must say d log(alpha^2) / dt")

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha2 = self._log_alpha2(t.double())
        return (log_alpha2 / 2).exp(), torch.expm1(log_alpha2).abs().sqrt()

    def _inverse(self, logsnr: Tensor) -> Tensor:
        return self._t_of_log_alpha2(logsigmoid(logsnr))

    def _slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        (alpha, sigma), slope = self.alpha_sigma(t), self._log_alpha2_slope(t)
        return alpha * slope / 2, -(alpha**2) * slope / (2 * sigma)


def _built(config: Any) -> Schedule:
    from diffunet.schedules import SCHEDULES  # the table stands above its parts

    schedule: Schedule = SCHEDULES.build(config)
    return schedule
