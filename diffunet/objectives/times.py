"""Which times a network is trained at: functions of one uniform draw u (B,) in [0, 1) a sample.

All draws come from outside, so that training stays a function of counters. Only importance sampling remembers anything:
losses, which whoever trains hands to `observe` after a step and keeps in its checkpoint.
Legend: r = sigma / alpha; T indices k of a discrete schedule.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffunet.errors import ConfigError
from diffunet.schedules import Schedule
from diffunet.spec import objectives as spec
from diffunet.table import Table

EDGE = 1e-12  # normal quantiles of 0 and 1 are infinite


def normal(u: Tensor, mean: float, std: float) -> Tensor:
    """Draws of N(mean, std^2) in float64 for uniform draws u in [0, 1)."""
    return mean + std * torch.special.ndtri(u.double().clamp(EDGE, 1 - EDGE))


class Times:
    """Base of every distribution of training times; `config` is its spec."""

    remembers = False  # does it want to `observe` losses?

    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        """Times (B,) in float64, t_min <= t <= 1, for uniform draws u (B,)."""
        raise AssertionError(f"{type(self).__name__} must say its times")

    def held_out(self, schedule: Schedule, u: Tensor) -> Tensor:
        """Times of a score that must not change while a network is trained."""
        return self(schedule, u)

    def correction(self, schedule: Schedule, t: Tensor) -> Tensor:
        """What the loss of a sample at t (B,) is multiplied by, so that its mean is that of uniform times."""
        return torch.ones_like(t, dtype=torch.float64)

    def observe(self, schedule: Schedule, t: Tensor, losses: Tensor) -> None:
        """Learn from the losses (B,) of one step at times t (B,), in the order of its samples."""

    def state(self) -> dict[str, Tensor]:
        """What it remembers."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Remember what `state` gave."""


class ScheduleTimes(Times):
    """The schedule's own."""

    def __init__(self, config: spec.ScheduleTimes) -> None:
        pass

    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        return schedule.training_time(u)


class Uniform(Times):
    """Uniform over the indices of a discrete schedule, or over t_min < t <= 1."""

    def __init__(self, config: spec.UniformTimes) -> None:
        pass

    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        T = getattr(schedule.config, "T", None)
        return 1 - u.double() * (1 - schedule.t_min) if T is None else indices(u, T)


class LogNormal(Times):
    """ln r ~ N(mean, std^2) (2206.00364, table 1)."""

    def __init__(self, config: spec.LogNormalTimes) -> None:
        self.mean, self.std = config.mean, config.std

    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        r = normal(u, self.mean, self.std).exp()
        return schedule.t_of_sigma(r).clamp(schedule.t_min, 1)


class LogitNormal(Times):
    """logit t ~ N(mean, std^2) (2403.03206, eq. 19)."""

    def __init__(self, config: spec.LogitNormalTimes) -> None:
        self.mean, self.std = config.mean, config.std

    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        return torch.sigmoid(normal(u, self.mean, self.std)).clamp(schedule.t_min, 1)


class UniformSigma(Times):
    """r uniform between low and high, as far as the schedule goes."""

    def __init__(self, config: spec.UniformSigmaTimes) -> None:
        self.low, self.high = config.low, config.high

    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        # the noisiest r of a schedule without any signal at t = 1 is infinite
        first, last = (math.exp(-schedule.logsnr(t) / 2) for t in (schedule.t_min, 1.0))
        low, high = common(schedule, "sigma / alpha", (self.low, self.high), (first, last))
        return schedule.t_of_sigma(low + u.double() * (high - low)).clamp(schedule.t_min, 1)


class UniformLogSNR(Times):
    """log S uniform between low and high, as far as the schedule goes (2303.00848)."""

    def __init__(self, config: spec.UniformLogSNRTimes) -> None:
        self.low, self.high = config.low, config.high

    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        own = (schedule.logsnr(1.0), schedule.logsnr(schedule.t_min))
        low, high = common(schedule, "logSNR", (self.low, self.high), own)
        return schedule.t_of_logsnr(high - u.double() * (high - low)).clamp(schedule.t_min, 1)


class Importance(Times):
    """p_k ~ sqrt(E[L_k^2]) over the last losses of each index, mixed with a uniform share (2102.09672, eq. 18).

    Uniform until every index has its `history` of losses. The loss of a sample is multiplied by 1 / (T p_k), so that
    its expectation is that of uniform indices. `losses` (T, history) and `counts` (T,) are what it remembers.
    """

    remembers = True

    def __init__(self, config: spec.ImportanceTimes) -> None:
        self.history, self.share = config.history, config.uniform
        self.losses = torch.zeros(0, config.history, dtype=torch.float64)
        self.counts = torch.zeros(0, dtype=torch.int64)

    def chances(self, T: int) -> Tensor:
        """p_k (T,) in float64."""
        uniform = torch.full((T,), 1 / T, dtype=torch.float64)
        if len(self.counts) < T or bool((self.counts < self.history).any()):
            return uniform
        root = (self.losses**2).mean(dim=1).sqrt()
        if not root.sum() > 0:
            return uniform
        return (1 - self.share) * root / root.sum() + self.share * uniform

    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        T = steps_of(schedule)
        ends = self.chances(T).cumsum(dim=0)
        k = torch.searchsorted(ends / ends[-1], u.double().cpu(), right=True).clamp(max=T - 1)
        return ((k + 1) / T).double().to(u.device)

    def held_out(self, schedule: Schedule, u: Tensor) -> Tensor:
        return indices(u, steps_of(schedule))

    def correction(self, schedule: Schedule, t: Tensor) -> Tensor:
        T = steps_of(schedule)
        return 1 / (T * self.chances(T)[index(t, T)])

    def observe(self, schedule: Schedule, t: Tensor, losses: Tensor) -> None:
        T = steps_of(schedule)
        if not len(self.counts):
            self.losses, self.counts = self.losses.new_zeros(T, self.history), self.counts.new_zeros(T)
        k, values = index(t, T), losses.detach().double().cpu()
        ordered, places = k.sort(stable=True)
        # how many losses of the same index stand before each in this step
        earlier = torch.arange(len(k)) - torch.searchsorted(ordered, ordered)
        total = torch.bincount(k, minlength=T)
        latest = earlier >= total[ordered] - self.history  # of more than `history` the first give way
        slots = (self.counts[ordered] + earlier) % self.history
        self.losses[ordered[latest], slots[latest]] = values[places][latest]
        self.counts += total

    def state(self) -> dict[str, Tensor]:
        return {"losses": self.losses, "counts": self.counts}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.losses, self.counts = tensors["losses"], tensors["counts"]


def common(schedule: Schedule, what: str, asked: tuple[float, float], own: tuple[float, float]) -> tuple[float, float]:
    """The part of the range that was asked for which the schedule has.

    Raises:
        ConfigError: it has none of it.
    """
    low, high = max(asked[0], own[0]), min(asked[1], own[1])
    if low >= high:
        ends = f"{own[0]:.4g} to {own[1]:.4g}"
        raise ConfigError(
            f"objective.times asks for {what} from {asked[0]} to {asked[1]}, but schedule '{schedule.config.kind}' "
            f"goes from {ends}"
        )
    return low, high


def steps_of(schedule: Schedule) -> int:
    """T of a discrete schedule.

    Raises:
        ConfigError: the schedule has none.
    """
    T: int | None = getattr(schedule.config, "T", None)
    if T is None:
        raise ConfigError(f"this objective needs a schedule of T steps, which '{schedule.config.kind}' is not")
    return T


def indices(u: Tensor, T: int) -> Tensor:
    """Times of uniform indices."""
    return ((u.double() * T).floor() + 1) / T


def index(t: Tensor, T: int) -> Tensor:
    """Indices k (B,) of times t = (k + 1) / T, on the CPU."""
    return (t.detach().double().cpu() * T).round().long() - 1


TIMES: Table[type[Times]] = Table(
    "times",
    {
        "schedule": ScheduleTimes,
        "uniform": Uniform,
        "log_normal": LogNormal,
        "logit_normal": LogitNormal,
        "uniform_sigma": UniformSigma,
        "uniform_logsnr": UniformLogSNR,
        "importance": Importance,
    },
)
