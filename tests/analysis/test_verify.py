"""The verifier: it passes what is right, and finds what is not, whichever sampler it is and whatever is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from diffunet import Denoiser, Schedule
from diffunet.analysis.convergence import MixtureDenoiser, gaussian_denoiser
from diffunet.analysis.verify import Curve, Effort, Verification, fitted, own_samplers, spacings_of, verify
from diffunet.analysis.verify_measures import Posed, gaussian_error, window
from diffunet.analysis.verify_report import as_json, merged, notes, text
from diffunet.samplers import SAMPLERS, build
from diffunet.samplers.base import D0, Leg, Sampler, X, points
from diffunet.samplers.exponential import euler_data, keep, past
from diffunet.schedules import SCHEDULES
from tests import tiny
from tests.oracles import Mixture

QUICK = Effort(draws=2048, draw_steps=80, curve=(4, 8))


class Scaled(Sampler):
    """DDIM whose estimate counts for 1 % too much."""

    order = 1

    def __init__(self, config: Any) -> None:
        self.config = config

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        grid = pairwise(points(schedule, times))
        return [Leg.of(t, s, 1.01 * s.alpha * D0 + s.sigma * (X - t.alpha * D0) / t.sigma) for t, s in grid]


class Halved(SAMPLERS["dpmpp_3m"]):  # type: ignore[misc]
    """DPM-Solver++ 3M with half of its curvature, as other libraries have it: of order 2."""

    def _leg(self, grid: Any, i: int) -> Leg:
        t, s = grid[i : i + 2]
        evaluations = [(t, D0), *past("H", grid, i, 2)]
        line, curve = (self.rule(t, s, evaluations[:n], 0.0) for n in (2, 3))
        return Leg.of(t, s, euler_data(X, D0, t, s) + line + 0.5 * (curve - line), keep("H", D0, i, 2))


class Loud(SAMPLERS["ddpm"]):  # type: ignore[misc]
    """DDPM whose noise has the size of the variance, not of the deviation."""

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        legs = super().legs(schedule, times)
        return [leg._replace(end=tuple((n, v * v if n == "z" else v) for n, v in leg.end)) for leg in legs]


class Single(SAMPLERS["ddim"]):  # type: ignore[misc]
    """DDIM that computes in half precision."""

    def step(self, denoise: Any, x: Tensor, *rest: Any) -> Any:
        step = super().step(denoise, x, *rest)
        return step if x.dtype == torch.float64 else step._replace(x=step.x.bfloat16().to(x.dtype))


def result(name: str, schedule: str = "flow", **options: Any) -> Verification:
    return verify(getattr(Schedule, schedule)(**options), samplers=[name], effort=QUICK)


def complaints(name: str) -> set[str]:
    return {kind for row in result(name).rows for kind in row.wrong}


@pytest.mark.parametrize("name", own_samplers())
def test_every_sampler_is_right_on_straight_paths(name: str) -> None:
    found = result(name)
    assert [row.wrong for row in found.rows if row.wrong] == []
    assert {(row.prediction, row.spacing) for row in found.rows} == {
        (prediction, spacing) for prediction in ("x0", "flow") for spacing in found.schedule.spacings
    }
    order = SAMPLERS[name].order if SAMPLERS[name].order is not None else build(name).order
    assert all(row.order_declared == order for row in found.rows)
    assert all((row.order_measured is None) == (order is None) for row in found.rows)


@pytest.mark.parametrize(("schedule", "predictions"), [("linear", 3), ("karras", 3)])
def test_ddim_is_right_over_every_grid_of_other_processes(schedule: str, predictions: int) -> None:
    found = result("ddim", schedule)
    assert found.passed
    assert len(found.rows) == predictions * len(found.schedule.spacings)


@pytest.mark.parametrize(
    ("name", "broken", "kinds"),
    [
        ("ddim", Scaled, {"order", "error"}),
        ("dpmpp_3m", Halved, {"order"}),
        ("ddpm", Loud, {"error", "draws"}),
        ("ddim", Single, {"float32"}),
    ],
)
def test_a_broken_sampler_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, broken: type[Sampler], kinds: set[str]
) -> None:
    """And each passes as it is: see above."""
    monkeypatch.setitem(SAMPLERS, name, broken)
    assert complaints(name) == kinds


def test_what_is_off_is_said_once_a_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "dpmpp_3m", Halved)
    found = result("dpmpp_3m")
    said = text(found)
    assert "14 of 14 rows are OFF" in said
    (line,) = said.split("OFF:\n")[1].splitlines()
    assert "where 3 is claimed" in line
    assert "(all predictions, all spacings)" in line
    assert text(found, everything=True).count(" OFF\n") == 14
    assert not as_json([found])["passed"]


@pytest.mark.parametrize(
    ("schedule", "prediction"), [("linear", "eps"), ("linear", "v"), ("flow", "flow"), ("karras", "edm")]
)
def test_an_answer_is_turned_back_into_the_exact_estimate(schedule: str, prediction: str) -> None:
    process = getattr(Schedule, schedule)()
    den, oracle = Posed(MixtureDenoiser(process), prediction), Mixture(process)
    x = torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(3, 1, 2)
    for t in (0.1, 0.6, torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)):
        torch.testing.assert_close(den(x, t), oracle(x, t), rtol=0, atol=1e-11)
    assert den.calls == 3


def test_the_distribution_of_a_noisy_walk_is_known_without_drawing() -> None:
    """One DDPM step from t to 0.5 and on to the estimate: m and d by hand from the posterior's moments."""
    schedule = Schedule.flow()
    den = Posed(gaussian_denoiser(schedule), "x0")
    rule = build("euler_ancestral")
    times = schedule.grid(2, "uniform").tolist()
    (a, b), c = [points(schedule, times)[i] for i in (0, 1)], 0.25
    assert (a.alpha, b.t) == (0.0, 0.5)
    # D at t = 1 is the mean; x_s = alpha_s D + down eps + up z, with down^2 + up^2 = sigma_s^2
    gain = b.alpha * c / (b.alpha**2 * c + b.sigma**2)
    wanted = abs(gain * b.sigma - 0.5)
    assert gaussian_error(rule, den, times) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_orders_are_measured_inside_of_a_process(schedule: str) -> None:
    process = getattr(Schedule, schedule)()
    first, reach = window(process, 64)
    noisy, clean = (float(process.logsnr(t)) / 2 for t in (process.t_max, process.t_min))
    assert noisy + 6 * 1.25 * (reach - first) / 64 < first < reach - 1
    assert reach <= clean


def test_a_grid_that_does_not_get_finer_is_no_samplers_fault() -> None:
    """The times of a Laplace logSNR leave its ends to one leg each, however many there are."""
    found = result("ddim", "laplace")
    assert found.coarse == ("uniform", "quadratic")
    assert found.passed
    assert "coarse here, and so not held against a sampler: uniform, quadratic" in text(found)
    few, many = ([row.error for row in found.rows if (row.spacing in found.coarse) == coarse] for coarse in (0, 1))
    assert max(few) < min(many)


def test_a_short_table_takes_as_many_steps_as_it_has() -> None:
    effort = fitted(Effort(), Schedule.linear(T=20))
    assert (effort.few, effort.many, effort.draw_steps, effort.curve) == (5, 20, 20, (4, 6, 10, 16))
    assert fitted(Effort(), Schedule.vp()) == Effort()


def test_a_grid_that_a_schedule_refuses_is_left_out_with_the_reason() -> None:
    offered, left_out = spacings_of(Schedule.linear(zero_terminal_snr=True), 10)
    assert "trailing" in offered
    assert list(left_out) == ["leading"]
    assert "never visits" in left_out["leading"]


def test_samplers_that_are_one_method_share_a_curve() -> None:
    curves = [Curve(name, (4,), (error,), False) for name, error in [("a", 1.0), ("b", 2.0), ("c", 1.0 + 1e-9)]]
    assert [label for label, _ in merged(curves)] == ["a = c", "b"]


def test_a_run_is_told_what_its_process_means() -> None:
    first, second, third = notes(Denoiser(tiny.unet(), Schedule.linear(), clip=(-1.0, 1.0)))
    assert "guesses eps and is told 0 to 999" in first
    assert "logSNR -10.1" in second
    # sigma / alpha at t = 1
    assert f"{math.exp(10.1 / 2):.2g}"[0] in third
    assert "leaves images in [-1, 1] as they are" in third
    assert "no signal is left" in notes(Denoiser(tiny.unet(), Schedule.flow(), "flow"))[1]
    assert (
        "CHANGES images in [-1, 1] by up to 0.5" in notes(Denoiser(tiny.unet(), Schedule.linear(), clip=(-0.5, 1)))[2]
    )
