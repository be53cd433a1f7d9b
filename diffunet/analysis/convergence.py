"""How fast samplers converge: data whose denoiser and probability flow have closed forms, and orders measured on them.

The probability flow keeps every quantile of x_t where values are independent, since paths of an ODE on a line do not
cross. So x_s = F_s^-1(F_t(x_t)), F_t the distribution function of x_t: no reference integrator is needed.

A method of order p errs by C h^p on smooth grids of step h. Multistep rules start with lower orders, which hides p; the
order that a rule claims is measured with a history primed from exact values, the order from a cold start beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from diffunet.samplers import SAMPLERS, Noise, Sampler, build


class ExactDenoiser(Protocol):
    """A denoiser that knows its probability flow."""

    schedule: Any

    def __call__(self, x_t: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """E[x_0 | x_t]."""

    def flow(self, x_t: Tensor, t: float, s: float) -> Tensor:
        """x_s on the path of the probability flow through x_t at t."""


def _levels(schedule: Any, x_t: Tensor, t: Tensor | float) -> tuple[Any, Any]:
    """alpha and sigma at t: numbers for a float; for a tensor, () or (B,), shaped for x_t (B, C, *S) and its modes."""
    if not isinstance(t, Tensor):
        return schedule.alpha(t), schedule.sigma(t)
    alpha, sigma = schedule.alpha_sigma(t.double().reshape(-1, *[1] * x_t.ndim))
    return alpha, sigma


class MixtureDenoiser:
    """x_0 ~ sum_k w_k N(m_k, v_k), value by value; the defaults are two modes of unequal weight.

    One mode is a Gaussian, whose flow needs no inversion. Computes in float64 and answers in the dtype of x_t.
    """

    def __init__(
        self,
        schedule: Any,
        weights: Sequence[float] = (0.3, 0.7),
        means: Sequence[float] = (-1.0, 1.5),
        variances: Sequence[float] = (0.04, 0.25),
    ) -> None:
        self.schedule = schedule
        self.w, self.m, self.v = (torch.tensor(values, dtype=torch.float64) for values in (weights, means, variances))

    def __call__(self, x_t: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """E[x_0 | x_t] = sum_k p(k | x_t) (m_k + a v_k / (a^2 v_k + s^2) (x_t - a m_k)), t float or (B,).

        p(k | x_t) is proportional to w_k N(x_t; a m_k, a^2 v_k + s^2).
        """
        a, s = _levels(self.schedule, x_t, t)
        x, total = x_t.double()[..., None], a**2 * self.v + s**2
        log_joint = self.w.log() - (x - a * self.m) ** 2 / (2 * total) - total.log() / 2
        mean = self.m + a * self.v / total * (x - a * self.m)
        return (log_joint.softmax(dim=-1) * mean).sum(dim=-1).to(x_t.dtype)

    def _modes(self, t: float) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of x_t's modes."""
        a, s = self.schedule.alpha(t), self.schedule.sigma(t)
        return a * self.m, (a**2 * self.v + s**2).sqrt()

    def flow(self, x_t: Tensor, t: float, s: float) -> Tensor:
        """F_s^-1(F_t(x_t)) in float64, for x_t (B, C, *S) in the bulk: precise to rounding over the density there."""
        (m_t, d_t), (m_s, d_s) = self._modes(t), self._modes(s)
        z = (x_t.double()[..., None] - m_t) / d_t
        if len(self.w) == 1:
            return m_s + d_s * z[..., 0]
        # the smaller tail, so that values on both sides keep their digits
        upper = ((self.w * torch.special.ndtr(z)).sum(dim=-1, keepdim=True) > 0.5).double() * -2 + 1
        tail = (self.w * torch.special.ndtr(upper * z)).sum(dim=-1)
        low = (m_s.min() - 40 * d_s.max()).expand(tail.shape)
        high = (m_s.max() + 40 * d_s.max()).expand(tail.shape)
        for _ in range(64):  # bisection: every bit of float64, whatever the modes look like
            x = (low + high) / 2
            here = (self.w * torch.special.ndtr(upper * (x[..., None] - m_s) / d_s)).sum(dim=-1)
            below = (here < tail) == (upper[..., 0] > 0)
            low, high = torch.where(below, x, low), torch.where(below, high, x)
        return (low + high) / 2


def gaussian_denoiser(schedule: Any, mean: float = 0.3, std: float = 0.5) -> MixtureDenoiser:
    """x_0 ~ N(mean, std^2), value by value: the mixture of one mode."""
    return MixtureDenoiser(schedule, (1.0,), (mean,), (std**2,))


def smooth_grid(schedule: Any, steps: int, before: int = 0, lam: tuple[float, float] = (-1.0, 2.0)) -> list[float]:
    """Times inside the process, `before` + `steps` + 1 of them, falling: where no end of it disturbs a measurement.

    lambda = log(alpha / sigma) runs from lam[0] at index `before` to lam[1], in steps that shrink to three fifths on
    the way: even steps would hide weights that are right for even steps only.
    """
    first, last = lam
    u = [i / steps for i in range(-before, steps + 1)]
    return [float(schedule.t_of_logsnr(2 * (first + (last - first) * (v + 0.25 * v * (1 - v))))) for v in u]


@dataclass(frozen=True)
class Convergence:
    """Errors of a sampler on ever finer grids: root mean squares over values and times."""

    steps: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def orders(self) -> tuple[float, ...]:
        """-log(error ratio) / log(step ratio) from each grid to the next."""
        pairs = list(zip(self.steps, self.errors, strict=True))
        return tuple(-math.log(finer / coarser) / math.log(n / m) for (m, coarser), (n, finer) in pairwise(pairs))


def error(rule: Sampler, den: ExactDenoiser, x: Tensor, times: Sequence[float], primed: int = 0) -> float:
    """Root mean square error of a walk that starts from x at times[primed], at five places of its second half.

    The legs before are walked from exact values, for what they leave in the history: their ends are thrown away, and
    what they keep of x itself (names in "x") is put right.
    """
    legs, history, x_t, errors = rule.legs(den.schedule, times), None, x, []
    places = {primed + (len(legs) - primed) * k // 8 for k in range(4, 9)}
    exact = {i: den.flow(x, times[primed], times[i]) for i in {*range(primed + 1), *places}}
    for i, leg in enumerate(legs):
        x_t, _, history = rule.step(den, exact[i] if i <= primed else x_t, leg, Noise([]), history)
        if i < primed:
            history = {name: exact[i] if name.startswith("x") else value for name, value in (history or {}).items()}
        if i + 1 in places:
            errors.append((x_t - exact[i + 1]).square().mean())
    return float(torch.stack(errors).mean().sqrt())


def measure_order(
    sampler: Any,
    den: ExactDenoiser,
    steps: Sequence[int] = (32, 64, 128),
    primed: bool = True,
    grid: Callable[[Any, int, int], list[float]] = smooth_grid,
    x: Tensor | None = None,
) -> Convergence:
    """The errors of a deterministic sampler on grids of `steps` legs, in float64.

    Args:
        sampler: a name, a spec, a dict with `kind`, or a Sampler.
        den: an exact denoiser.
        steps: of each grid, growing.
        primed: give multistep rules an exact history, or start them cold as they are used.
        grid: (schedule, steps, before) -> times, `before` legs of them in front of the start.
        x: values (B, C, *S) at the start; by default a spread of seven over the bulk of x_t.
    """
    rule, errors = build(sampler), []
    before = (rule.order or 1) + 1 if primed else 0
    for n in steps:
        times = grid(den.schedule, n, before)
        a, s = den.schedule.alpha(times[before]), den.schedule.sigma(times[before])
        start = a * 0.5 + (a**2 + s**2) ** 0.5 * torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[None, None]
        errors.append(error(rule, den, start if x is None else x.double(), times, before))
    return Convergence(tuple(steps), tuple(errors))


class Row(NamedTuple):
    """A sampler, the order that it claims, and its measurements with an exact history and from a cold start."""

    sampler: str
    claimed: int
    primed: Convergence
    cold: Convergence


def table(
    den: ExactDenoiser, samplers: Iterable[Any] | None = None, steps: Sequence[int] = (64, 128, 256)
) -> list[Row]:
    """Measured orders of samplers; of all in SAMPLERS that claim one, in their defaults, where none are given."""
    rows = []
    for sampler in SAMPLERS if samplers is None else samplers:
        order = build(sampler).order
        if order is not None:
            kind, *options = sampler.values() if isinstance(sampler, dict) else [sampler]
            name = " ".join(map(str, [kind, *options]))
            rows.append(Row(name, order, measure_order(sampler, den, steps), measure_order(sampler, den, steps, False)))
    return rows


def show(rows: Sequence[Row]) -> str:
    """The table as text: order claimed, order and error on the finest grid, order from a cold start."""
    lines = [f"{'sampler':<24} claimed  measured     error  cold start", "-" * 60]
    for row in rows:
        measured, cold, error = row.primed.orders[-1], row.cold.orders[-1], row.primed.errors[-1]
        lines.append(f"{row.sampler:<24} {row.claimed:>7}  {measured:>8.2f}  {error:>8.1e}  {cold:>10.2f}")
    return "\n".join(lines)
