"""Levels of schedules: the numbers of the papers, and what holds for every schedule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffunet import Schedule
from diffunet.schedules import SCHEDULES, Discrete
from tests.schedules.families import TABLES, every, every_table, repeatable

# the reference values have 9 digits or more
golden: Any = {"rel": 2e-9}

ALPHAS_BAR = [
    # schedule, index, alpha^2 (2006.11239 eq 4; 2102.09672 eq 17), its known precision
    (Schedule.linear(), 0, 0.9999, 1e-15),
    (Schedule.linear(), 499, 0.07858724288, 1e-9),
    (Schedule.linear(), 999, 4.03582977e-5, 2e-9),
    (Schedule.cosine(), 499, 0.4938435904, 2e-10),
    (Schedule.cosine(), 999, 2.42876691e-9, 3e-9),
    (Schedule.cosine(T=4000), 3999, 1.51798e-10, 5e-6),
]
BETAS = [
    (Schedule.cosine(), 0, 4.12842248e-5),
    (Schedule.cosine(), 998, 0.7499993929),
    (Schedule.cosine(), 999, 0.999),
    (Schedule.cosine(T=4000), 0, 9.86581881e-6),
]


@pytest.mark.parametrize(("schedule", "k", "value", "precision"), ALPHAS_BAR)
def test_alpha_squared_is_the_papers(schedule: Discrete, k: int, value: float, precision: float) -> None:
    assert schedule.alphas_bar()[k].item() == pytest.approx(value, rel=precision)
    assert schedule.alpha((k + 1) / schedule.config.T) ** 2 == pytest.approx(value, rel=precision)


@pytest.mark.parametrize(("schedule", "k", "value"), BETAS)
def test_beta_is_the_papers(schedule: Discrete, k: int, value: float) -> None:
    assert schedule.betas()[k].item() == pytest.approx(value, **golden)


def test_linear_schedule_spans_the_known_noise_levels() -> None:
    first, last = ((s.alpha(t), s.sigma(t)) for s, t in ((Schedule.linear(), 0.001), (Schedule.linear(), 1.0)))
    assert last[0] == pytest.approx(6.35281809e-3, **golden)
    assert 2 * math.log(first[0] / first[1]) == pytest.approx(9.21024037, **golden)
    assert 2 * math.log(last[0] / last[1]) == pytest.approx(-10.11767318, **golden)
    # sigma / alpha, the range as a variance-exploding process: known to 6 and 8 digits
    assert first[1] / first[0] == pytest.approx(0.0100005, rel=1e-7)
    assert last[1] / last[0] == pytest.approx(157.40728, rel=1e-8)


@pytest.mark.parametrize(("t", "gamma"), [(0.25, 0.85085355), (0.5, 0.5), (0.75, 0.14914645)])
def test_sigmoid_schedule_is_the_papers(t: float, gamma: float) -> None:
    assert Schedule.sigmoid().alpha(t) ** 2 == pytest.approx(gamma, rel=1e-7)


@every
def test_time_zero_is_the_clean_image(schedule: Schedule) -> None:
    assert (schedule.alpha(0.0), schedule.sigma(0.0)) == (1, 0)


@every
def test_noise_rises_and_signal_does_not(schedule: Schedule) -> None:
    alpha, sigma = schedule.alpha_sigma(torch.linspace(0, 1, 501, dtype=torch.float64))
    assert (sigma.diff() > 0).all()
    assert (alpha.diff() <= 0).all()
    assert ((alpha[1:] / sigma[1:]).diff() < 0).all()
    assert alpha.min() >= 0


@every_table
@given(t=st.floats(0, 1))
@repeatable
def test_tables_preserve_the_variance(schedule: Discrete, t: float) -> None:
    assert schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2 == pytest.approx(1, abs=1e-15)


@every
@given(t=st.floats(0, 1))
@repeatable
def test_a_float_and_a_tensor_give_the_same(schedule: Schedule, t: float) -> None:
    at = torch.full((2, 3), t, dtype=torch.float64)
    for level in (schedule.alpha, schedule.sigma):
        assert isinstance(level(t), float)
        assert torch.equal(level(at), torch.full_like(at, level(t)))


@every
def test_levels_keep_shape_and_type_of_the_time(schedule: Schedule) -> None:
    for dtype, expected in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.long, torch.float32),
    ):
        assert schedule.alpha(torch.ones(2, 3, dtype=dtype)).dtype == expected
        assert schedule.sigma(torch.ones(2, 3, dtype=dtype)).shape == (2, 3)


@pytest.mark.parametrize("T", [1, 10, 1000, 4000])
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_index_k_stands_at_k_plus_1_over_t_max(name: str, T: int, dtype: torch.dtype) -> None:
    schedule = getattr(Schedule, name)(T=T)
    k = torch.arange(T)
    t = (k.double() + 1).div(T).to(dtype)
    # a float32 time is off by 3e-8 T indices and must still name its index exactly
    assert torch.equal(schedule.network_time(t), k.float())
    torch.testing.assert_close(schedule.alpha_sigma(t)[0] ** 2, schedule.alphas_bar(), rtol=1e-12, atol=0)


@every_table
def test_network_sees_fractions_between_indices(schedule: Discrete) -> None:
    assert schedule.network_time(torch.tensor([0.5005], dtype=torch.float64)).item() == pytest.approx(499.5)


def test_network_sees_noise_levels_of_karras_and_scaled_times_of_flow() -> None:
    karras, flow = Schedule.karras(), Schedule.flow(time_scale=250.0)
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(karras.network_time(t), (karras.sigma(t).log() / 4).float())
    torch.testing.assert_close(flow.network_time(t), (250 * t).float())


@every_table
def test_training_draws_every_index_alike(schedule: Discrete) -> None:
    T = schedule.config.T
    u = (torch.arange(4 * T, dtype=torch.float64) + 0.5) / (4 * T)
    k = schedule.network_time(schedule.training_time(u)).long()
    assert torch.equal(k.bincount(minlength=T), torch.full((T,), 4))
    edges = torch.tensor([0.0, 1 - 2**-24])  # what torch.rand can give at its ends
    assert schedule.network_time(schedule.training_time(edges)).tolist() == [0, T - 1]


@pytest.mark.parametrize("z", [-2.0, -1.0, 0.0, 1.0, 2.0])
def test_training_on_karras_draws_edms_log_normal(z: float) -> None:
    schedule = Schedule.karras()
    u = torch.special.ndtr(torch.tensor([z], dtype=torch.float64))
    assert schedule.sigma(schedule.training_time(u)).item() == pytest.approx(math.exp(1.2 * z - 1.2), rel=1e-9)


@every
def test_training_times_lie_where_there_is_noise(schedule: Schedule) -> None:
    t = schedule.training_time(torch.linspace(0, 1 - 2**-24, 999))
    assert t.dtype == torch.float64
    assert ((t > 0) & (t <= 1)).all()


@every
def test_schedules_of_the_same_options_are_equal(schedule: Schedule) -> None:
    again = SCHEDULES.build(schedule.config)
    assert again == schedule
    assert len({again, schedule}) == 1
    assert repr(schedule).startswith(f"Schedule.{schedule.config.kind}(")
    assert Schedule.linear(T=10) != Schedule.linear()
