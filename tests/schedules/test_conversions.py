"""From a time to its noise level and back, and how fast both levels change."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffunet import Schedule
from diffunet.schedules import Discrete
from tests.schedules.families import every

few = settings(derandomize=True, deadline=None, max_examples=4)


def times(schedule: Schedule, seed: int = 0) -> Tensor:
    """Times in all of [0, 1], away from where a table snaps to an index, since there all times are one."""
    t = torch.rand(200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    t = torch.cat([t, t[:20] * 1e-3, 1 - t[:20] * 1e-3])
    if not isinstance(schedule, Discrete):
        return t
    T = schedule.config.T
    return ((t * T).floor() + (t * T % 1).clamp(0.01, 0.99)) / T


@every
@given(seed=st.integers(0, 2**31))
@few
def test_a_time_comes_back_from_its_noise_level(schedule: Schedule, seed: int) -> None:
    t = times(schedule, seed)
    alpha, sigma = schedule.alpha_sigma(t)
    torch.testing.assert_close(schedule.t_of_logsnr(schedule.logsnr(t)), t, rtol=0, atol=1e-10)
    torch.testing.assert_close(schedule.t_of_sigma(sigma / alpha), t, rtol=0, atol=1e-10)
    assert schedule.t_of_logsnr(schedule.logsnr(t[0].item())) == pytest.approx(t[0].item(), abs=1e-10)


@every
def test_a_noise_level_comes_back_from_its_time(schedule: Schedule) -> None:
    high, low = schedule.logsnr(schedule.t_min), schedule.logsnr(schedule.t_max)
    logsnr = torch.linspace(high, low, 99, dtype=torch.float64)
    # a table snaps to its indices within 1e-3 of one, where its beta may be a hundred times the one before; where the
    # logSNR is steep in t, t has not the digits for more
    slack = 2e-2 * (high - low) if isinstance(schedule, Discrete) else 1e-6
    torch.testing.assert_close(schedule.logsnr(schedule.t_of_logsnr(logsnr)), logsnr, rtol=0, atol=slack)


@every
def test_logsnr_is_the_logarithm_of_the_ratio(schedule: Schedule) -> None:
    for t in (0.0007, 0.3, 0.8, 0.99977, 1.0):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        expected = math.log(alpha**2 / sigma**2) if alpha else -math.inf
        assert schedule.logsnr(t) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@every
def test_clean_and_beyond_are_the_ends(schedule: Schedule) -> None:
    assert schedule.logsnr(0.0) == math.inf
    assert schedule.t_of_logsnr(math.inf) == schedule.t_of_sigma(0.0) == 0
    assert schedule.t_of_logsnr(-math.inf) == schedule.t_of_sigma(math.inf) == 1
    assert schedule.t_of_sigma(1e30) == pytest.approx(1)


@every
def test_conversions_keep_shape_and_type(schedule: Schedule) -> None:
    for dtype in (torch.float64, torch.float32):
        t = torch.rand(5, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)[:, :2].T  # not contiguous
        answers = (schedule.logsnr(t), schedule.t_of_logsnr(t), schedule.t_of_sigma(t), *schedule.derivatives(t))
        assert all(answer.shape == t.shape and answer.dtype == dtype for answer in answers)
        one = (*(f(0.3) for f in (schedule.logsnr, schedule.t_of_logsnr, schedule.t_of_sigma, schedule.network_time)),)
        assert all(isinstance(answer, float) for answer in one + schedule.derivatives(0.3))
    assert schedule.network_time(0.3) == schedule.network_time(torch.tensor(0.3, dtype=torch.float64)).item()


@every
def test_derivatives_are_those_of_autograd(schedule: Schedule) -> None:
    t = times(schedule).requires_grad_()
    for level, slope in zip(schedule.alpha_sigma(t), schedule.derivatives(t.detach()), strict=True):
        expected = (
            torch.autograd.grad(level.sum(), t, retain_graph=True)[0] if level.requires_grad else torch.zeros_like(t)
        )
        torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-12)


@every
def test_derivatives_are_differences(schedule: Schedule) -> None:
    """Central ones of width 2 h; h^2 times the third derivative is what they are off by."""
    T, h = getattr(schedule.config, "T", 1000), 1e-6
    t = (torch.tensor([0.1, 0.35, 0.62, 0.9], dtype=torch.float64) * T).floor() / T + 0.4 / T
    above, below = schedule.alpha_sigma(t + h), schedule.alpha_sigma(t - h)
    for up, down, slope in zip(above, below, schedule.derivatives(t), strict=True):
        torch.testing.assert_close((up - down) / (2 * h), slope, rtol=1e-5, atol=1e-7)


@every
def test_derivatives_at_the_ends_are_known(schedule: Schedule) -> None:
    for t in (0.0, 1.0):
        slopes = schedule.derivatives(t)
        assert not any(map(math.isnan, slopes))
        assert slopes[0] <= 0 <= slopes[1]


@every
def test_smallest_and_largest_time_have_finite_levels(schedule: Schedule) -> None:
    assert 0 < schedule.t_min <= schedule.t_max <= 1
    assert schedule.alpha(schedule.t_max) > 0
    assert (schedule.t_max < 1) == (schedule.alpha(1.0) == 0)
    assert schedule.sigma(schedule.t_min) > 0
