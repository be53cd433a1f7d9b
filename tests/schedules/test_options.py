"""Zero terminal SNR, the shift for large images, the continuous schedules: the numbers of their papers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import integrate, stats

from diffunet import Schedule, compat
from diffunet.schedules import Discrete
from tests.schedules.families import TABLES, every_table, repeatable

SHIFTED = [*TABLES, "vp", "laplace"]
THEIRS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
POSTERIOR = [(0, 0.0), (1, 5.45318766e-5), (499, 1.003135541e-2), (999, 1.999998353e-2)]


@pytest.mark.parametrize(("name", "theirs"), THEIRS.items())
@pytest.mark.parametrize("T", [10, 1000])
@pytest.mark.parametrize("rescale", [False, True])
def test_tables_are_those_of_diffusers(name: str, theirs: str, T: int, rescale: bool) -> None:
    schedule = getattr(Schedule, name)(T=T, zero_terminal_snr=rescale)
    ends = {k: getattr(schedule.config, k) for k in ("beta_start", "beta_end") if hasattr(schedule.config, k)}
    scheduler = compat.diffusers().DDIMScheduler(T, beta_schedule=theirs, rescale_betas_zero_snr=rescale, **ends)
    # float32, in which 1 - alpha^2 loses digits where beta is small
    torch.testing.assert_close(schedule.betas().float(), scheduler.betas, rtol=2e-3 if rescale else 1e-5, atol=1e-6)
    torch.testing.assert_close(schedule.alphas_bar().float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-7)


@every_table
@given(T=st.integers(2, 3000))
@repeatable
def test_zero_terminal_snr_ends_in_noise_and_keeps_its_beginning(schedule: Discrete, T: int) -> None:
    """2305.08891, algorithm 1: sqrt(alpha^2) is shifted and stretched."""
    before, after = (schedule.config.model_copy(update={"T": T, "zero_terminal_snr": zero}) for zero in (False, True))
    plain, rescaled = type(schedule)(before), type(schedule)(after)
    assert rescaled.alphas_bar()[0].item() == pytest.approx(plain.alphas_bar()[0].item(), rel=1e-12)
    assert (rescaled.alphas_bar()[-1], rescaled.betas()[-1]) == (0, 1)
    assert (rescaled.alpha(1.0), rescaled.sigma(1.0), rescaled.logsnr(1.0)) == (0, 1, -math.inf)
    # straight in sqrt(alpha^2): the same line through all points
    old, new = plain.alphas_bar().sqrt(), rescaled.alphas_bar().sqrt()
    line = (new[0] - new[-1]) / (old[0] - old[-1])
    torch.testing.assert_close(new, new[0] + line * (old - old[0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SHIFTED)
@pytest.mark.parametrize(("resolution", "shift"), [(128, -1.38629436), (64, 0.0), (32, 1.38629436)])
def test_resolution_shifts_the_logsnr_of_the_paper(name: str, resolution: int, shift: float) -> None:
    """2301.11093: logSNR' = logSNR + 2 log(64 / d), at every index of a table and every time of the others."""
    plain, shifted = getattr(Schedule, name)(), getattr(Schedule, name)(resolution=resolution)
    t = torch.tensor([0.001, 0.002, 0.25, 0.5, 0.77, 0.999, 1.0], dtype=torch.float64)
    torch.testing.assert_close(shifted.logsnr(t), plain.logsnr(t) + shift, rtol=0, atol=2e-8)


@pytest.mark.parametrize("name", SHIFTED)
@given(resolution=st.integers(1, 4096), k=st.integers(1, 1000))
@repeatable
def test_resolution_shifts_any_side(name: str, resolution: int, k: int) -> None:
    plain, shifted = getattr(Schedule, name)(), getattr(Schedule, name)(resolution=resolution)
    expected = plain.logsnr(k / 1000) + 2 * math.log(64 / resolution)
    # a table holds alpha^2, of which 1 - alpha^2 has few digits left where a small side takes the noise away
    assert shifted.logsnr(k / 1000) == pytest.approx(expected, abs=2e-5)


@every_table
def test_options_keep_the_chain_of_betas(schedule: Discrete) -> None:
    """cumprod(1 - beta) is alpha^2, whatever was done to the table."""
    for options in ({}, {"zero_terminal_snr": True}, {"resolution": 256}, {"T": 50, "resolution": 128}):
        changed = type(schedule)(schedule.config.model_copy(update=options))
        betas = changed.betas()
        assert ((betas > 0) & (betas <= 1)).all()
        torch.testing.assert_close(torch.cumprod(1 - betas, dim=0), changed.alphas_bar(), rtol=1e-9, atol=1e-15)


def test_posterior_variances_are_the_papers() -> None:
    """btilde_k = (1 - abar_{k-1}) / (1 - abar_k) beta_k (2006.11239, eq 7)."""
    schedule: Any = Schedule.linear()
    bar = torch.cat([torch.ones(1, dtype=torch.float64), schedule.alphas_bar()])
    tilde = (1 - bar[:-1]) / (1 - bar[1:]) * schedule.betas()
    for k, value in POSTERIOR:
        assert tilde[k].item() == pytest.approx(value, rel=2e-9)
    c1, c2 = bar[:-1].sqrt() * schedule.betas(), (1 - schedule.betas()).sqrt() * (1 - bar[:-1])
    torch.testing.assert_close(
        (c1 + c2 * bar[1:].sqrt()) / (1 - bar[1:]), bar[:-1].sqrt(), rtol=0, atol=3e-12
    )  # at k = 0 both sides of the quotient have 12 digits


def test_strided_betas_keep_the_noise_levels() -> None:
    """beta' = 1 - abar_{s_i} / abar_{s_{i-1}} (2102.09672, section 4)."""
    schedule: Any = Schedule.linear()
    k = (schedule.grid(10, "linspace")[:-1] * 1000 - 1).round().long().flip(0)
    bar = schedule.alphas_bar()[k]
    betas = 1 - bar / torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    torch.testing.assert_close(torch.cumprod(1 - betas, dim=0), bar)


@given(t=st.floats(0, 1), low=st.floats(0.01, 1), high=st.floats(2, 40))
@repeatable
def test_vp_is_the_integral_of_its_beta(t: float, low: float, high: float) -> None:
    """alpha = exp(-1/2 integral of beta), 2011.13456, eq 29."""
    integral = integrate.quad(lambda s: low + s * (high - low), 0, t)[0]
    assert Schedule.vp(beta_min=low, beta_max=high).alpha(t) == pytest.approx(math.exp(-integral / 2), rel=1e-12)


def test_vp_is_the_limit_of_ddpms_table() -> None:
    """beta_k = beta((k + 1) / T) / T: the table comes nearer as 1 / T."""
    t = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    exact, errors = Schedule.vp().alpha_sigma(t)[0], []
    for T in (1000, 4000):
        table = Schedule.linear(T=T, beta_start=0.1 / T, beta_end=20 / T)
        errors.append((table.alpha_sigma(t)[0] - exact).abs().max())
    assert 3.5 < errors[0] / errors[1] < 4.5
    assert errors[0] < 3e-3
    assert Schedule.vp().alpha(1.0) == pytest.approx(math.exp(-5.025), rel=1e-12)
    assert Schedule.vp().network_time(1.0) == 999


def test_ve_is_geometric() -> None:
    schedule = Schedule.ve()
    t = schedule.t_min + (1 - schedule.t_min) * torch.tensor([0, 0.25, 0.5, 1], dtype=torch.float64)
    expected = torch.tensor([0.01, 0.0840896415, 0.7071067812, 50], dtype=torch.float64)  # 0.01 * 5000^u
    torch.testing.assert_close(schedule.sigma(t), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(schedule.network_time(t), expected.log().float())
    assert schedule.sigma(1.0) == 50


@given(u=st.floats(0.001, 0.999), mu=st.floats(-2, 2), b=st.floats(0.5, 1))
@repeatable
def test_laplace_has_a_laplace_logsnr(u: float, mu: float, b: float) -> None:
    """Uniform draws are quantiles; the cut at +-10 takes at most exp(-8) of either tail."""
    schedule = Schedule.laplace(mu=mu, b=b)
    logsnr = schedule.logsnr(schedule.training_time(torch.tensor([u], dtype=torch.float64))).item()
    inside = stats.laplace(mu, b).cdf([-10, 10])
    assert logsnr == pytest.approx(stats.laplace(mu, b).ppf(inside[0] + u * (inside[1] - inside[0])), abs=1e-8)
    papers = mu - b * math.copysign(1, u - 0.5) * math.log(1 - 2 * abs(u - 0.5))  # at their t = 1 - u
    assert logsnr == pytest.approx(papers, abs=0.4 * b)  # at u = 0.999 the cut is a sixth of what is beyond


def test_laplace_reaches_its_ends_and_tells_the_noise_level() -> None:
    schedule = Schedule.laplace()
    assert schedule.logsnr(1.0) == pytest.approx(-10, abs=1e-12)
    assert schedule.logsnr(schedule.t_min) == pytest.approx(10, abs=1e-12)
    for t in (0.01, 0.5, 1.0):
        ratio = schedule.sigma(t) / schedule.alpha(t)
        assert schedule.network_time(t) == pytest.approx(math.log(ratio) / 4, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear", {"T": 1, "zero_terminal_snr": True}, "zero_terminal_snr keeps the first index"),
        ("cosine", {"resolution": 0}, "resolution"),
        ("vp", {"beta_min": 3.0, "beta_max": 2.0}, "beta_min = 3.0 must be below beta_max"),
        ("ve", {"sigma_min": 60.0}, "sigma_min = 60.0 must be below sigma_max"),
        ("karras", {"sigma_max": 0.001}, "sigma_min = 0.002 must be below sigma_max"),
        ("laplace", {"mu": 11.0}, "mu = 11.0 must lie between"),
        ("laplace", {"b": 0.35}, "within 25 b of mu"),
        ("karras", {"resolution": 64}, "resolution"),
        ("flow", {"zero_terminal_snr": True}, "zero_terminal_snr"),
    ],
)
def test_options_that_cannot_be_are_errors(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        getattr(Schedule, name)(**options)
