"""Does every sampler do on a schedule what it claims? Each is held against data whose right answers are known.

The exact denoiser wears a network's clothes: it is shown what a network would be shown and answers with eps, x0, v, ...
so that a `Denoiser` has to turn the answer into x_0 by its own conversions. Then

- a rule that claims an order is held to it on smooth grids, with an exact history (`analysis.convergence`);
- a walk over each of the schedule's own grids must come near the exact solution, and nearer with more steps, if the
  grid gets finer with them where it matters (no sampler helps against one leg that stays long). Without noise the
  error is the root mean square distance to the probability flow, over quantiles of a Gaussian and of a mixture of
  two. With noise it is the distance sqrt((m - m')^2 + (d - d')^2) of two Gaussians (2-Wasserstein) between the data's
  and what the walk makes, whose mean and deviation are known without drawing: the walk is affine there;
- a rule with noise must draw the mixture's modes in their weights, and its mean and deviation, within chance;
- float32 must tell the same as float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch

from diffunet import spec
from diffunet.analysis.convergence import MixtureDenoiser, gaussian_denoiser
from diffunet.analysis.verify_measures import (
    Both,
    Posed,
    chances,
    draws_noise,
    flow_error,
    gaussian_error,
    last,
    order_of,
    spread,
)
from diffunet.errors import ConfigError
from diffunet.predictions import PREDICTIONS
from diffunet.samplers import SAMPLERS, Noise, Sampler, build
from diffunet.schedules import SCHEDULES, Schedule
from diffunet.schedules.optimised import leg_errors
from diffunet.spec.process import mismatch

FOREIGN = ("diffusers",)  # the adapter's rules are other people's
ORDER_SLACK = 0.15
FALL = 2.0  # what an error must shrink by from few to many steps, a quarter of the first order
FINER = 2.5  # the same of a grid: what DDIM's errors on Gaussian data, which have a closed form, shrink by
NEAR = 0.015  # below it, what is left are the grid's ends and no fault: the data's deviation is 0.5 and more
CHANCES = 5.0  # standard errors, one of which a first order rule may owe to its finite steps
KINDS = (torch.float64, torch.float32)
SINGLE = 2e-3  # float32 against float64, in units of the data
WIDEST = 1e4  # sigma / alpha, which multiplies roundings: with eps no rule of higher order keeps float32's digits above


@dataclass(frozen=True)
class Effort:
    """How long one looks: steps of walks, calls on the order's grids, draws of a rule with noise, steps of curves."""

    few: int = 16
    many: int = 64
    order: tuple[int, int] = (64, 128)
    draws: int = 4096
    draw_steps: int = 120
    curve: tuple[int, ...] = (4, 6, 10, 16, 25, 40, 64, 100)


@dataclass(frozen=True)
class Row:
    """One sampler on one grid, from one prediction.

    error, before: after effort.many steps, and the larger of those after effort.few and half as many. calls: of the
    network, for `error`. wrong: what is off, by kind (order, error, draws, float32); empty where all is well.
    """

    sampler: str
    schedule: str
    spacing: str
    prediction: str
    order_declared: int | None
    order_measured: float | None
    error: float
    before: float
    calls: int
    wrong: dict[str, str]


@dataclass(frozen=True)
class Curve:
    """Errors of a sampler on its own grid against calls of the network. noisy: it draws fresh noise."""

    sampler: str
    calls: tuple[int, ...]
    errors: tuple[float, ...]
    noisy: bool


@dataclass(frozen=True)
class Verification:
    """Everything about one schedule; left_out says why a spacing was not tried, coarse which do not get finer."""

    schedule: Schedule
    rows: tuple[Row, ...]
    curves: tuple[Curve, ...]
    left_out: dict[str, str]
    coarse: tuple[str, ...]
    effort: Effort
    seconds: float

    @property
    def passed(self) -> bool:
        """Is nothing off?"""
        return not any(row.wrong for row in self.rows)

    def own_spacing(self, sampler: str) -> str:
        """The grid that a sampler takes where nobody names one."""
        return build(sampler).spacing or self.schedule.default_spacing


# --- what is off -----------------------------------------------------------------------------------------------------


def judge_order(claimed: int, measured: float) -> dict[str, str]:
    """The complaint about an order, if there is one."""
    right = abs(measured - claimed) <= ORDER_SLACK
    return {} if right else {"order": f"order {measured:.2f} where {claimed} is claimed"}


def judge_error(before: float, after: float, effort: Effort) -> dict[str, str]:
    """The complaint about an error that stays, or is no number."""
    if after <= NEAR or after * FALL <= before:
        return {}
    return {"error": f"error {after:.1e} after {effort.many} steps, {before:.1e} after {effort.few}"}


def judge_chances(seen: dict[str, float]) -> dict[str, str]:
    """The complaint about draws that chance does not explain."""
    off = [f"{name} {value:+.1f}" for name, value in seen.items() if not abs(value) <= CHANCES]
    return {"draws": f"{', '.join(off)} standard errors off"} if off else {}


def judge_single(rule: Sampler, den: Posed, steps: int) -> dict[str, str]:
    """The complaint about float32 that tells otherwise than float64; none where the process begins beyond WIDEST."""
    alpha, sigma = den.schedule.alpha(den.schedule.t_max), den.schedule.sigma(den.schedule.t_max)
    if sigma > WIDEST * alpha:
        return {}
    times = rule.times(den.schedule, steps)
    x = rule.scale(den.schedule) * spread()
    exact, single = (last(rule, den, x.to(kind), times, Noise([])) for kind in KINDS)
    difference = float((exact - single).abs().max())
    return {} if difference <= SINGLE else {"float32": f"float32 ends {difference:.1e} from float64"}


# --- one schedule ----------------------------------------------------------------------------------------------------


def predictions_of(schedule: Schedule) -> list[str]:
    """The predictions that a schedule can have."""
    return [name for name in PREDICTIONS if not mismatch(schedule.config, name)]


def spacings_of(schedule: Schedule, steps: int) -> tuple[list[str], dict[str, str]]:
    """The grids that a schedule can be cut by, and why others are left out."""
    offered, left_out = [], {}
    for name in schedule.spacings:
        try:
            schedule.grid(steps, name)
        except ConfigError as error:
            left_out[name] = str(error)
        else:
            offered.append(name)
    return offered, left_out


def grid_error(schedule: Schedule, steps: int, spacing: str) -> float:
    """The error of DDIM over a grid, summed over its legs, on Gaussian data of many sizes (`schedules.optimised`)."""
    t = schedule.grid(steps, spacing).clamp(max=schedule.t_max)
    alpha, sigma = schedule.alpha_sigma(t)
    r = sigma / alpha
    return float(leg_errors(r[:-1], r[1:]).sum())


def stays_coarse(schedule: Schedule, spacing: str, effort: Effort) -> bool:
    """Does a grid of many steps hardly do better than one of few?"""
    before, after = (grid_error(schedule, steps, spacing) for steps in (effort.few, effort.many))
    return after * FINER > before


@dataclass(frozen=True)
class Subject:
    """A sampler on a schedule, with a denoiser of a prediction for each kind of data; noisy: it draws fresh noise."""

    name: str
    rule: Sampler
    prediction: str
    both: Posed
    gaussian: Posed
    noisy: bool

    @classmethod
    def of(cls, name: str, schedule: Schedule, prediction: str, steps: int) -> Subject:
        """From names."""
        rule, (both, gaussian) = build(name), (make(schedule) for make in (Both, gaussian_denoiser))
        noisy = draws_noise(rule, schedule, rule.times(schedule, steps)) > 0
        return cls(name, rule, prediction, Posed(both, prediction), Posed(gaussian, prediction), noisy)

    def error(self, steps: int, spacing: str | None) -> tuple[float, int]:
        """The error of a whole walk, and the calls of the network that it made."""
        den, measure = (self.gaussian, gaussian_error) if self.noisy else (self.both, flow_error)
        before = den.calls
        return measure(self.rule, den, self.rule.times(den.schedule, steps, spacing)), den.calls - before

    def claims(self, effort: Effort) -> tuple[float | None, dict[str, str]]:
        """The measured order of a rule that claims one, and what is off on whichever grid."""
        if self.noisy:
            mixture = Posed(MixtureDenoiser(self.both.schedule), self.prediction)
            return None, judge_chances(chances(self.rule, mixture, effort.draws, effort.draw_steps))
        wrong = judge_single(self.rule, self.both, effort.few)
        if self.rule.order is None:
            return None, wrong
        order = order_of(self.rule, self.both, effort.order)
        return order, judge_order(self.rule.order, order) | wrong

    def row(self, spacing: str, coarse: bool, order: float | None, wrong: dict[str, str], effort: Effort) -> Row:
        """What one grid shows, beside what is known of all."""
        few, many = effort.few, effort.many
        # an error may pass through 0 on its way
        before = max(self.error(steps, spacing)[0] for steps in {few, max(1, few // 2)})
        error, calls = self.error(many, spacing)
        found = ({} if coarse else judge_error(before, error, effort)) | wrong
        kind, claimed = self.both.schedule.config.kind, self.rule.order
        return Row(self.name, kind, spacing, self.prediction, claimed, order, error, before, calls, found)

    def curve(self, steps: tuple[int, ...]) -> Curve:
        """Errors on its own grid."""
        found = [self.error(n, None) for n in steps]
        return Curve(self.name, tuple(calls for _, calls in found), tuple(error for error, _ in found), self.noisy)


def verify(
    schedule: Schedule,
    prediction: str | None = None,
    samplers: Sequence[str] | None = None,
    effort: Effort | None = None,
    watch: Callable[[str], None] | None = None,
) -> Verification:
    """Hold every sampler against exact data on a schedule, from every prediction that it allows, on all its grids.

    Args:
        schedule: whichever; a table shorter than `effort.many` takes as many steps as it has.
        prediction: that of the curves; by default the schedule's first.
        samplers: names; by default all of the table but the adapter.
        effort: how long to look.
        watch: told each sampler's name before its turn.

    Raises:
        ConfigError: an unknown sampler.
    """
    began, effort = perf_counter(), fitted(effort or Effort(), schedule)
    spacings, left_out = spacings_of(schedule, effort.many)
    coarse = tuple(name for name in spacings if stays_coarse(schedule, name, effort))
    predictions = predictions_of(schedule)
    rows, curves = [], []
    for name in own_samplers() if samplers is None else samplers:
        if watch:
            watch(name)
        for answer in predictions:
            subject = Subject.of(name, schedule, answer, effort.few)
            order, wrong = subject.claims(effort)
            rows += [subject.row(spacing, spacing in coarse, order, wrong, effort) for spacing in spacings]
            if answer == (prediction or predictions[0]):
                curves.append(subject.curve(effort.curve))
    return Verification(schedule, tuple(rows), tuple(curves), left_out, coarse, effort, perf_counter() - began)


def fitted(effort: Effort, schedule: Schedule) -> Effort:
    """An effort whose walks have no more steps than a table has."""
    most = getattr(schedule.config, "T", max(effort.many, effort.draw_steps, *effort.curve))
    many = min(effort.many, most)
    return replace(
        effort,
        few=min(effort.few, max(1, many // 4)),
        many=many,
        draw_steps=min(effort.draw_steps, most),
        curve=tuple(n for n in effort.curve if n <= most),
    )


def own_samplers() -> list[str]:
    """Every sampler of the table but the adapter."""
    return [name for name in SAMPLERS if name not in FOREIGN]


def schedules() -> list[Schedule]:
    """Every schedule of the table in its defaults."""
    return [SCHEDULES.build(spec.schedule_config(name)) for name in SCHEDULES]
