"""Predictions: what is guessed means the same clean image, whatever it is called; and the denoiser built on them."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from diffunet import Denoiser, Schedule
from diffunet.errors import ConfigError
from diffunet.predictions import EDM, MEANINGS, PREDICTIONS, Eps, Flow, V, convert
from diffunet.schedules import SCHEDULES
from diffunet.spec import ProcessConfig


def _fits(prediction: str, schedule: str) -> bool:
    try:
        ProcessConfig(prediction=prediction, schedule=schedule)  # type: ignore[arg-type]
    except ValidationError:
        return False
    return True


FITS = [(p, s) for p in PREDICTIONS for s in SCHEDULES if _fits(p, s)]
every_fit = pytest.mark.parametrize(("prediction", "schedule"), FITS)
repeatable = settings(derandomize=True, deadline=None, max_examples=40)


def _draw(shape: tuple[int, ...] = (3, 2, 5)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return x0, eps


def test_every_prediction_fits_some_schedule() -> None:
    assert {prediction for prediction, _ in FITS} == set(PREDICTIONS)


@every_fit
@given(t=st.floats(0.001, 0.999))  # at t = 1 alpha may be 0, where noise says nothing of the image
@repeatable
def test_the_right_guess_gives_the_image_back(prediction: str, schedule: str, t: float) -> None:
    rule, (x0, eps) = PREDICTIONS[prediction](), _draw()
    alpha, sigma = getattr(Schedule, schedule)().alpha_sigma(torch.tensor(t, dtype=torch.float64))
    guess = rule.target(x0, eps, alpha, sigma)
    got = rule.x0(alpha * x0 + sigma * eps, guess, alpha, sigma)
    # rounding of a guess grows as its weight says
    tolerance = 1e-14 * (1 + rule.x0_weight(alpha, sigma).sqrt().item())
    torch.testing.assert_close(got, x0, rtol=0, atol=tolerance)


@every_fit
@given(t=st.floats(0.001, 0.999))
@repeatable
def test_x0_weight_turns_an_error_of_the_guess_into_one_of_the_image(prediction: str, schedule: str, t: float) -> None:
    rule, (x0, eps) = PREDICTIONS[prediction](), _draw()
    alpha, sigma = getattr(Schedule, schedule)().alpha_sigma(torch.tensor(t, dtype=torch.float64))
    x_t, target = alpha * x0 + sigma * eps, rule.target(x0, eps, alpha, sigma)
    delta = torch.linspace(-1, 1, 5, dtype=torch.float64)
    error = (rule.x0(x_t, target + delta, alpha, sigma) - x0) ** 2
    weight = rule.x0_weight(alpha, sigma)
    # 1e-12: the difference of two images of size sqrt(weight), squared; sigma/alpha reaches 2e4 on cosine
    expected = (weight * delta**2).expand_as(error)
    torch.testing.assert_close(error, expected, rtol=1e-9, atol=1e-12 * (1 + weight.item()))


def test_v_is_eps_of_a_clean_image_and_minus_the_image_in_pure_noise() -> None:
    x0, eps = _draw()
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    assert torch.equal(V().target(x0, eps, one, zero), eps)
    assert torch.equal(V().target(x0, eps, zero, one), -x0)


@pytest.mark.parametrize("t", [0.001, 0.3, 0.5, 0.9, 1.0])
def test_v_rotates_into_image_and_noise(t: float) -> None:
    """x0 = alpha x - sigma v, eps = sigma x + alpha v (2202.00512, appendix D)."""
    x0, eps = _draw()
    alpha, sigma = Schedule.cosine().alpha_sigma(torch.tensor(t, dtype=torch.float64))
    x_t, v = alpha * x0 + sigma * eps, V().target(x0, eps, alpha, sigma)
    torch.testing.assert_close(alpha * x_t - sigma * v, x0, rtol=0, atol=1e-14)
    torch.testing.assert_close(sigma * x_t + alpha * v, eps, rtol=0, atol=1e-14)


@pytest.mark.parametrize("t", [0.001, 0.3, 0.5, 0.9, 1.0])
def test_flow_turns_into_image_and_noise(t: float) -> None:
    """x0 = x - t u, eps = x + (1 - t) u."""
    x0, eps = _draw()
    alpha, sigma = Schedule.flow().alpha_sigma(torch.tensor(t, dtype=torch.float64))
    x_t, u = alpha * x0 + sigma * eps, Flow().target(x0, eps, alpha, sigma)
    torch.testing.assert_close(Flow().x0(x_t, u, alpha, sigma), x0, rtol=0, atol=1e-14)
    torch.testing.assert_close(x_t + (1 - t) * u, eps, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("sigma", "c_skip", "c_out", "c_in", "c_noise", "weight"),
    [(0.5, 0.5, 0.35355339, 1.41421356, -0.17328680, 8), (1.0, 0.2, 0.44721360, 0.89442719, 0, 5)],
)
def test_edm_coefficients_are_the_papers(
    sigma: float, c_skip: float, c_out: float, c_in: float, c_noise: float, weight: float
) -> None:
    """2206.00364, table 1; `weight` is its lambda, which makes every noise level weigh 1 in the network's terms."""
    rule, one, zero = EDM(), torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    s = sigma * one
    assert rule.x0(one, zero, one, s).item() == pytest.approx(c_skip)
    assert rule.x0(zero, one, one, s).item() == pytest.approx(c_out)
    assert rule.input(one, one, s).item() == pytest.approx(c_in)
    assert 1 / rule.x0_weight(one, s).item() == pytest.approx(weight)
    schedule = Schedule.karras(sigma_max=sigma)  # which it has at t = 1
    assert schedule.network_time(one).item() == pytest.approx(c_noise, abs=1e-7)  # float32


@pytest.mark.parametrize("sigma", [0.002, 0.1, 0.5, 1.0, 10.0, 80.0])
def test_edm_targets_and_inputs_have_unit_variance(sigma: float) -> None:
    """For data of deviation 0.5: the sums of the squared coefficients of x0 / 0.5 and eps are 1."""
    rule, one, zero = EDM(), torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    s = sigma * one
    by_x0, by_eps = rule.target(0.5 * one, zero, one, s), rule.target(zero, one, one, s)
    assert (by_x0**2 + by_eps**2).item() == pytest.approx(1, abs=1e-9)
    in_x0, in_eps = rule.input(0.5 * one, one, s), rule.input(s, one, s)
    assert (in_x0**2 + in_eps**2).item() == pytest.approx(1, abs=1e-12)


class Knows(nn.Module):
    """A network that makes the right guess, and records the time that it is told."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target = target

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.x, self.t = x, t
        return self.target


@every_fit
@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 2, 5), (3, 1, 2, 3), (3, 1, 2, 3, 1)])
def test_denoiser_joins_network_schedule_and_prediction(prediction: str, schedule: str, shape: tuple[int, ...]) -> None:
    x0, eps = _draw(shape)
    process = getattr(Schedule, schedule)()
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    den = Denoiser(Knows(torch.empty(0)), process, prediction)
    _, alpha, sigma = den.levels(t, x0)
    den.network = Knows(den.rule.target(x0, eps, alpha, sigma))
    # float64 throughout; eps at t = 0.9 grows by sigma / alpha <= 30
    torch.testing.assert_close(den(alpha * x0 + sigma * eps, t), x0, rtol=0, atol=1e-12)
    assert torch.equal(den.network.t, process.network_time(t))
    assert torch.equal(den.network.x, den.rule.input(alpha * x0 + sigma * eps, alpha, sigma))


def test_denoiser_takes_one_time_for_all_or_one_each() -> None:
    x0, eps = _draw()
    den = Denoiser(Knows(eps), Schedule.linear())
    x_t = Schedule.linear().alpha(0.5) * x0 + Schedule.linear().sigma(0.5) * eps
    one = den(x_t, 0.5)
    for t in (torch.tensor(0.5), torch.full((3,), 0.5)):
        torch.testing.assert_close(den(x_t, t), one, rtol=0, atol=1e-14)  # a float multiplies and adds in one rounding


def test_denoiser_clamps_to_its_clip_and_estimate_does_not() -> None:
    x0, eps = _draw()
    den = Denoiser(Knows(3 * x0), Schedule.linear(), "x0", clip=(-0.5, 1.0))
    assert torch.equal(den.estimate(eps, 0.5), 3 * x0)
    assert torch.equal(den(eps, 0.5), (3 * x0).clamp(-0.5, 1))


def test_denoiser_gives_the_type_of_its_input() -> None:
    den = Denoiser(Knows(torch.ones(1, 1, 2, dtype=torch.float32)), Schedule.linear())
    assert den(torch.ones(1, 1, 2, dtype=torch.float64), 0.5).dtype == torch.float64


def test_unknown_prediction_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="unknown prediction 'epsilon'; did you mean 'eps'"):
        Denoiser(nn.Identity(), Schedule.linear(), "epsilon")


def test_eps_weight_is_one_over_snr() -> None:
    alpha, sigma = Schedule.linear().alpha_sigma(torch.tensor(0.5, dtype=torch.float64))
    assert Eps().x0_weight(alpha, sigma).item() == pytest.approx(math.exp(-2 * math.log(alpha / sigma)))


LEVELS = [(alpha, (1 - alpha**2) ** 0.5) for alpha in (1e-9, 1e-3, 0.3, 0.8, 1 - 1e-9)] + [(0.4, 0.6), (1.0, 30.0)]


@pytest.mark.parametrize("target", MEANINGS)
def test_every_meaning_becomes_every_other(target: str) -> None:
    """From the value that x0 and eps make to the value that they make, for floats and tensors alike.

    x0 from eps divides by alpha, eps from x0 by sigma, and a score is eps / sigma: each division makes rounding larger.
    """
    x0, eps = _draw()
    for (alpha, sigma), source in product(LEVELS, MEANINGS):
        x_t = alpha * x0 + sigma * eps
        value, wanted = (MEANINGS[name]().target(x0, eps, alpha, sigma) for name in (source, target))
        growth = 1 + {"eps": 1 / alpha, "score": 1 / alpha, "x0": alpha / sigma}.get(source, 0)
        growth *= 1 + 1 / sigma if target == "score" else 1
        close = {"rtol": 0, "atol": 3e-15 * growth * (1 + wanted.abs().max().item())}
        torch.testing.assert_close(convert(value, source, target, x_t, alpha, sigma), wanted, **close)
        tensors = (torch.tensor(size, dtype=torch.float64) for size in (alpha, sigma))
        torch.testing.assert_close(convert(value, source, target, x_t, *tensors), wanted, **close)


@pytest.mark.parametrize("through", ["v", "flow", "edm"])
def test_round_trips_keep_twelve_digits_at_both_ends(through: str) -> None:
    """v, flow and edm hold x0 and eps at once: what is said through them comes back even where alpha or sigma is 0."""
    x0, eps = _draw()
    for alpha in (0.0, 1e-12, 1e-6, 0.5, 1 - 1e-6, 1 - 1e-12, 1.0):
        sigma = math.sqrt((1 - alpha) * (1 + alpha))
        x_t = alpha * x0 + sigma * eps
        value = MEANINGS[through]().target(x0, eps, alpha, sigma)
        both = convert(value, through, "x0", x_t, alpha, sigma), convert(value, through, "eps", x_t, alpha, sigma)
        torch.testing.assert_close(both, (x0, eps), rtol=0, atol=1e-12)
        for other in ("v", "flow", "edm"):
            there = convert(value, through, other, x_t, alpha, sigma)
            torch.testing.assert_close(convert(there, other, through, x_t, alpha, sigma), value, rtol=0, atol=1e-12)


def test_an_unknown_meaning_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown meaning 'scroe'; did you mean 'score'"):
        convert(torch.zeros(1, 1), "eps", "scroe", torch.zeros(1, 1), 1.0, 1.0)
