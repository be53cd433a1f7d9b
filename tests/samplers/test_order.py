"""Orders of convergence: what each sampler claims is what is measured, on data whose probability flow is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import integrate

from diffunet import Schedule
from diffunet.analysis.convergence import MixtureDenoiser, gaussian_denoiser, measure_order, show, smooth_grid, table
from diffunet.samplers import SAMPLERS, build
from tests.oracles import Gaussian, Mixture

FLOW, KARRAS = Schedule.flow(), Schedule.karras()
CLAIMS: list[dict[str, Any]] = [
    *({"kind": name} for name in SAMPLERS if build(name).order is not None),
    {"kind": "dpmpp_2m", "solver_type": "heun"},
    {"kind": "unipc", "order": 1},
    {"kind": "unipc", "order": 1, "variant": "bh1"},
    {"kind": "unipc", "variant": "bh1", "corrector": False},
    {"kind": "unipc", "order": 3},
    {"kind": "deis", "variable": "log_rho"},
    {"kind": "deis", "variable": "rho", "order": 2},
    {"kind": "lms", "order": 3},
    {"kind": "ipndm", "order": 1},
    {"kind": "ipndm", "order": 3},
]


@pytest.mark.parametrize("den", [gaussian_denoiser(KARRAS), MixtureDenoiser(FLOW)], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("sampler", CLAIMS, ids=str)
def test_a_sampler_converges_with_the_order_it_claims(sampler: dict[str, Any], den: MixtureDenoiser) -> None:
    order = build(sampler).order or 0
    # the higher the order, the finer the grid on which the leading term alone is left
    steps = (64, 128, 256) if order < 4 else (128, 256, 512)
    assert measure_order(sampler, den, steps).orders == pytest.approx([order, order], abs=0.15)


@pytest.mark.parametrize(("sampler", "order"), [("dpmpp_2m", 2), ("unipc", 3), ("dpmpp_3m", 2), ("lms", 2)])
def test_a_cold_start_costs_what_exceeds_order_two(sampler: str, order: int) -> None:
    """The first step is Euler's, of error h^2; UniPC corrects it without a call."""
    cold = measure_order(sampler, MixtureDenoiser(KARRAS), (64, 128, 256), primed=False)
    assert cold.orders[-1] == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("schedule", [FLOW, KARRAS, Schedule.linear()], ids=repr)
def test_the_flow_of_a_mixture_is_what_an_integrator_finds(schedule: Schedule) -> None:
    """dx/dlog r = x' - D for x' = x / alpha: dx'/dr = (x' - D) / r, r = sigma / alpha."""
    den, (t, *_, s) = MixtureDenoiser(schedule), smooth_grid(schedule, 8)
    r = [schedule.sigma(v) / schedule.alpha(v) for v in (t, s)]
    mixture = Mixture(schedule)

    def slope(level: float, y: Any) -> Any:
        one, sigma = torch.ones(1, dtype=torch.float64), torch.tensor([level], dtype=torch.float64)
        x = torch.from_numpy(y)
        return ((x - mixture.mean(x, one, sigma)) / level).numpy()

    start = torch.linspace(-2, 2, 5, dtype=torch.float64) * r[0]
    found = integrate.solve_ivp(slope, r, start.numpy(), method="DOP853", rtol=1e-13, atol=1e-13).y[:, -1]
    flow = den.flow(start * schedule.alpha(t), t, s) / schedule.alpha(s)
    torch.testing.assert_close(flow, torch.from_numpy(found), rtol=1e-11, atol=1e-11)


def test_exact_denoisers_are_those_of_the_tests() -> None:
    x, t = torch.linspace(-2, 2, 6, dtype=torch.float64).view(2, 1, 3), torch.tensor([0.3, 0.9], dtype=torch.float64)
    pairs: Any = [
        (MixtureDenoiser(FLOW), Mixture(FLOW)),
        (gaussian_denoiser(FLOW, 0.3, 0.5), Gaussian(FLOW, 0.3, 0.5)),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours(x, t), theirs(x, t), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(ours(x, 0.3), theirs(x, 0.3), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(pairs[1][0].flow(x, 0.9, 0.2), pairs[1][1].flow(x, 0.9, 0.2), rtol=1e-13, atol=1e-13)


def test_the_table_shows_claim_and_measurement() -> None:
    rows = table(gaussian_denoiser(KARRAS), ["ddim", {"kind": "dpmpp_2m"}], steps=(16, 32))
    assert [(row.sampler, row.claimed) for row in rows] == [("ddim", 1), ("dpmpp_2m", 2)]
    text = show(rows)
    assert text.splitlines()[2].startswith("ddim")
    assert f"{rows[1].primed.orders[-1]:.2f}" in text.splitlines()[3]
