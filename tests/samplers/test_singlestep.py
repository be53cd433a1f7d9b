"""Single-step samplers against closed forms."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from diffunet import Schedule, generate
from diffunet.samplers import Noise, build
from tests.oracles import Gaussian, Mixture

ONE = torch.ones(1, 1, dtype=torch.float64)
KINDS = ["linear", "cosine", "karras", "flow"]
RULES = {"euler": 1, "heun": 2, "dpm_solver_1": 1, "dpm_solver_2": 2, "dpm_solver_3": 3}


def final(den: Any, sampler: Any, steps: int, spacing: str | None = None) -> float:
    return generate(den, (1, 1), sampler, steps, spacing, noise=ONE).item()


@pytest.mark.parametrize(("sampler", "value"), [("euler", 0.42303144), ("heun", 0.52762464)])
def test_eighteen_steps_of_edm(sampler: str, value: float) -> None:
    den = Gaussian(Schedule.karras())
    assert final(den, sampler, 18) == pytest.approx(value, abs=5e-9)
    assert den.flow(80 * ONE, 1.0).item() == pytest.approx(0.49999023, abs=5e-9)


@pytest.mark.parametrize("sampler", ["euler", "dpm_solver_1"])
@pytest.mark.parametrize(
    ("spacing", "value"), [("leading", 0.37412849), ("trailing", 0.36995481), ("linspace", 0.36161172)]
)
def test_first_order_rules_have_the_gain_of_ddim(sampler: str, spacing: str, value: float) -> None:
    den = Gaussian(Schedule.linear())
    assert final(den, sampler, 10, spacing) / den.schedule.sigma(1.0) == pytest.approx(value, abs=5e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_orders_on_the_mixture_between_two_times(kind: str) -> None:
    """From lambda = -1.5 to 2 in even steps, where no leg is special: 4 times the steps divide the error by 4^order."""
    schedule: Any = getattr(Schedule, kind)()
    den, start = Mixture(schedule), torch.linspace(-2, 2, 7, dtype=torch.float64)[None]

    def walk(sampler: str, steps: int) -> torch.Tensor:
        lam = torch.linspace(-1.5, 2, steps + 1, dtype=torch.float64)
        times = schedule.t_of_logsnr(2 * lam).tolist()
        *_, state = build(sampler).walk(den, schedule, start, times, Noise([0]))
        return state.x

    exact = walk("dpm_solver_3", 400)
    for sampler, order in RULES.items():
        few, many = ((walk(sampler, steps) - exact).abs().max().item() for steps in (25, 100))
        assert math.log(few / many, 4) == pytest.approx(order, abs=0.35), sampler
        assert build(sampler).order == order


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("sampler", "calls"), [("heun", 15), ("dpm_solver_2", 15), ("dpm_solver_3", 22)])
def test_network_calls(sampler: str, calls: int, kind: str) -> None:
    """2 N - 1 and 3 N - 2: the leg onto the clean image costs one, and so does one from where no signal is."""
    schedule: Any = getattr(Schedule, kind)()
    legs = build(sampler).legs(schedule, schedule.grid(8).tolist())
    first = build(sampler).calls - 1 if kind == "flow" else 0
    assert sum(len(leg.stages) for leg in legs) == calls - first


@pytest.mark.parametrize("sampler", [*RULES, "restart", "rk45"])
@pytest.mark.parametrize("kind", ["linear", "karras", "flow"])
def test_a_single_image_is_reached(sampler: str, kind: str) -> None:
    den = Gaussian(getattr(Schedule, kind)(), mean=0.3, std=0.0)
    torch.testing.assert_close(generate(den, (2, 1, 3), sampler, 4), torch.full((2, 1, 3), 0.3))


def test_the_gain_of_heun_is_that_of_its_own_recursion() -> None:
    """Algorithm 1 of 2206.00364 written out, on a variance-preserving table in y = x / alpha."""
    schedule: Any = Schedule.linear()
    den, times = Gaussian(schedule), schedule.grid(12).tolist()
    r = [schedule.sigma(t) / schedule.alpha(t) for t in times]
    y = r[0] * ONE
    for (t, s), (r_t, r_s) in zip(itertools.pairwise(times), itertools.pairwise(r), strict=True):
        d = (y - den(schedule.alpha(t) * y, t)) / r_t
        y_s = y + (r_s - r_t) * d
        if r_s > 0:
            d = (d + (y_s - den(schedule.alpha(s) * y_s, s)) / r_s) / 2
        y = y + (r_s - r_t) * d
    noise = schedule.alpha(1.0) * r[0] / schedule.sigma(1.0) * ONE
    torch.testing.assert_close(generate(den, (1, 1), "heun", 12, noise=noise), y, rtol=1e-10, atol=0)
