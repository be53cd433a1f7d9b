"""The optimised grid: its criterion is the error of DDIM, and other data than it was made for gain from it too."""

from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from diffunet import Schedule
from diffunet.schedules import optimised
from tests.oracles import Gaussian, Mixture
from tests.schedules.families import ALL, every_plain

# of these, t is far from even in what the error asks for
UNEVEN = ["linear", "vp", "laplace", "ve", "karras", "zero terminal"]
STEPS = 10


def ddim(den: Any, times: list[float], x: Tensor) -> Tensor:
    """The last x of DDIM with eta = 0, from x (N, 1) at times[0]."""
    for t, s in pairwise(times):
        x0 = den(x, t)
        eps = (x - den.schedule.alpha(t) * x0) / den.schedule.sigma(t)
        x = den.schedule.alpha(s) * x0 + den.schedule.sigma(s) * eps
    return x


def quantiles(mixture: Mixture, p: Tensor, t: float) -> Tensor:
    """Where x_t has the distribution function p: in one dimension the exact ODE goes from quantile to quantile."""
    a, s = mixture.schedule.alpha(t), mixture.schedule.sigma(t)
    means, total = a * mixture.means, (a**2 * mixture.variances + s**2).sqrt()
    low, high = torch.full_like(p, -1e4), torch.full_like(p, 1e4)
    for _ in range(80):
        middle = (low + high) / 2
        below = (mixture.weights * torch.special.ndtr((middle[:, None] - means) / total)).sum(dim=-1) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return middle


def errors(schedule: Schedule, spacing: str) -> tuple[float, float]:
    """Of DDIM against the exact ODE: of data N(0, 0.5^2), and root mean square over a mixture of two modes."""
    times = schedule.grid(STEPS, spacing).tolist()
    gaussian, mixture = Gaussian(schedule), Mixture(schedule)
    start = torch.ones(1, 1, dtype=torch.float64) * gaussian.spread(1.0)
    one = (ddim(gaussian, times, start) - gaussian.flow(start, 1.0)).abs().item()
    p = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    ends = ddim(mixture, times, quantiles(mixture, p, 1.0)[:, None])[:, 0]
    return one, (ends - quantiles(mixture, p, 0.0)).square().mean().sqrt().item()


@pytest.mark.parametrize("name", UNEVEN)
@pytest.mark.parametrize("other", ["uniform", "karras"])
def test_ddim_errs_less_on_the_optimised_grid(name: str, other: str) -> None:
    ours, theirs = errors(ALL[name], "optimised"), errors(ALL[name], other)
    assert ours[0] < 0.8 * theirs[0]
    assert ours[1] < 0.9 * theirs[1]


@every_plain
def test_the_optimised_grid_is_never_much_worse(schedule: Schedule) -> None:
    """Cosine and flow are about optimal when cut evenly in t; every other grid may lose, ours must not."""
    ours = errors(schedule, "optimised")
    for other in set(schedule.spacings) - {"leading"}:
        theirs = errors(schedule, other)
        assert ours[0] < 1.1 * theirs[0]
        assert ours[1] < 1.05 * theirs[1]


@every_plain
def test_its_criterion_is_the_error_of_ddim(schedule: Schedule) -> None:
    """Run through DDIM on N(0, v), log(exact / found) is what the legs add up to."""
    times = schedule.grid(7, "optimised").tolist()
    if schedule.alpha(1.0) == 0:
        times[0] = schedule.t_max
    alpha, sigma = schedule.alpha_sigma(torch.tensor(times, dtype=torch.float64))
    said = optimised.leg_errors((sigma / alpha)[:-1], (sigma / alpha)[1:]).sum().item()
    found = 0.0
    for deviation in optimised.DEVIATIONS:
        den = Gaussian(schedule, std=deviation)
        start = torch.ones(1, 1, dtype=torch.float64)
        quotient = den.flow(start, times[0]).item() / ddim(den, times, start).item()
        found += deviation**2 * math.log(quotient)
    assert found / sum(d**2 for d in optimised.DEVIATIONS) == pytest.approx(said, rel=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 64])
def test_no_level_can_be_moved_for_the_better(steps: int) -> None:
    high, low = 157.0, 0.01

    def cost(r: Tensor) -> float:
        ends = torch.cat([r, torch.zeros(1, dtype=torch.float64)])
        return optimised.leg_errors(ends[:-1], ends[1:]).sum().item()

    best = optimised.levels(high, low, steps)
    apart = (high / low) ** (1 / (optimised.CANDIDATES - 1))  # two neighbouring candidates
    assert best[0].item() == pytest.approx(high)
    for i in range(1, steps):
        for factor in (apart, 1 / apart):
            moved = best.clone()
            moved[i] *= factor
            if (moved.diff() < 0).all() and moved[i] >= low:
                assert cost(moved) >= cost(best) - 1e-12


def test_more_steps_err_less_beyond_the_longest_search_too() -> None:
    costs = []
    for steps in (8, 16, 32, 64, 128, 256):
        r = torch.cat([optimised.levels(80.0, 0.002, steps), torch.zeros(1, dtype=torch.float64)])
        assert (r.diff() < 0).all()
        costs.append(optimised.leg_errors(r[:-1], r[1:]).sum().item())
    # a rule of first order: twice the steps, half the error
    assert all(1.8 < a / b < 2.2 for a, b in pairwise(costs))


def test_a_search_is_short_and_the_same_again() -> None:
    start = time.process_time()
    first = optimised.levels(1234.5, 0.0123, 10)
    assert time.process_time() - start < 1.0
    optimised._best.cache_clear()
    assert torch.equal(optimised.levels(1234.5, 0.0123, 10), first)
