"""Time grids: those of the papers and of diffusers, and what holds for every grid on every schedule."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffunet import Schedule, compat, spec
from diffunet.errors import ConfigError
from diffunet.schedules import GRIDS, Discrete
from tests.schedules.families import ALL, every, every_plain, every_table, repeatable

KARRAS = [80, 57.585985, 40.785574, 28.374585, 19.352453, 12.910082, 8.400935, 5.315195, 3.256822]
KARRAS += [1.92334, 1.088171, 0.585348, 0.296442, 0.139516, 0.059947, 0.022935, 0.007528, 0.002]


def test_karras_grid_is_edms() -> None:
    schedule = Schedule.karras()
    sigmas = [schedule.sigma(t) for t in schedule.grid(18).tolist()]
    assert sigmas == pytest.approx([*KARRAS, 0], abs=6e-7)  # printed to 6 decimals


# pure noise is the first time of a zero terminal SNR (2305.08891, section 3.3)
LEFT_OUT = {schedule: {"leading"} for schedule in ALL.values() if getattr(schedule.config, "zero_terminal_snr", False)}


@every
@given(steps=st.integers(1, 300))
@repeatable
def test_grids_fall_to_the_clean_image(schedule: Schedule, steps: int) -> None:
    steps = min(steps, getattr(schedule.config, "T", steps))
    for spacing in {*schedule.spacings, schedule.default_spacing} - LEFT_OUT.get(schedule, set()):
        grid = schedule.grid(steps, spacing)
        assert grid.shape == (steps + 1,)
        assert grid.dtype == torch.float64
        assert (grid.diff() < 0).all()
        # leading starts below the noise, by its definition
        assert grid[0] == 1 or spacing == "leading"
        assert grid[-2] >= schedule.t_min * (1 - 1e-12)
        assert grid[-1] == 0


def _scheduler(spacing: str) -> Any:
    return compat.diffusers().DDIMScheduler(num_train_timesteps=1000, timestep_spacing=spacing)


def _indices(schedule: Schedule, steps: int, spacing: str) -> Tensor:
    return (schedule.grid(steps, spacing)[:-1] * 1000 - 1).round().long()


# not linspace of one step: diffusers' starts at the clean end, ours at noise
@pytest.mark.parametrize("steps", [2, 3, 7, 10, 25, 30, 50, 100, 333, 600, 999, 1000])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_grids_are_those_of_diffusers(spacing: str, steps: int) -> None:
    scheduler = _scheduler(spacing)
    scheduler.set_timesteps(steps)
    assert torch.equal(_indices(Schedule.linear(), steps, spacing), scheduler.timesteps)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_grids_are_the_nearest_indices_at_every_step_count(spacing: str) -> None:
    """Half-way between two indices float error decides which it is, in diffusers as here: hence 1e-9 beyond 1/2."""
    schedule = Schedule.linear()
    for steps in range(2, 1001):
        i = torch.arange(steps, dtype=torch.float64)
        places = {"trailing": 999 - 1000 * i / steps, "linspace": 999 - 999 * i / (steps - 1)}[spacing]
        assert (places - _indices(schedule, steps, spacing)).abs().max() <= 0.5 + 1e-9, steps


def test_strided_grids_are_the_papers() -> None:
    assert _indices(Schedule.linear(), 10, "linspace").tolist() == list(range(999, -1, -111))
    assert _indices(Schedule.linear(), 25, "leading").tolist() == list(range(960, -1, -40))


@every
def test_unknown_spacing_is_an_error_that_lists_the_known(schedule: Schedule) -> None:
    with pytest.raises(ConfigError, match=f"unknown spacing 'cubic'.*{schedule.spacings[0]}"):
        schedule.grid(10, "cubic")
    with pytest.raises(ConfigError, match="did you mean 'trailing'"):
        Schedule.linear().grid(10, "trailin")


@every
@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_is_an_error(schedule: Schedule, steps: int) -> None:
    with pytest.raises(ConfigError, match=f"steps = {steps} "):
        schedule.grid(steps)


@every_table
def test_more_steps_than_the_table_has_is_an_error(schedule: Discrete) -> None:
    with pytest.raises(ConfigError, match=r"steps = 1001 .* 1 to 1000"):
        schedule.grid(1001)


def ratios(schedule: Schedule, grid: Tensor) -> Tensor:
    """sigma / alpha at the times of a grid but the last."""
    alpha, sigma = schedule.alpha_sigma(grid[:-1])
    return sigma / alpha


@every
@pytest.mark.parametrize("steps", [2, 5, 40])
def test_grids_over_noise_levels_are_even_where_they_say(schedule: Schedule, steps: int) -> None:
    """Between the first time, which may have no finite level, and t_min."""
    steps = min(steps, getattr(schedule.config, "T", steps))
    high, low = ratios(schedule, torch.tensor([schedule.t_max, schedule.t_min, 0.0], dtype=torch.float64)).tolist()
    rho = getattr(schedule.config, "rho", 7.0)
    for spacing, f in {"karras": lambda r: r ** (1 / rho), "logsnr": torch.log}.items():
        r = ratios(schedule, schedule.grid(steps, spacing))
        expected = torch.linspace(*f(torch.tensor([high, low], dtype=torch.float64)).tolist(), steps).double()
        # linspace in float32; a time within 1e-3 of an index of a table snaps to it
        torch.testing.assert_close(f(r[1:]), expected[1:], rtol=2e-4, atol=2e-4)
    root = schedule.grid(steps, "quadratic")[:-1].sqrt()
    torch.testing.assert_close(root.diff(), root.diff()[:1].expand(steps - 1), rtol=1e-9, atol=0)


@every_plain
def test_blended_is_the_geometric_mean_of_uniform_and_logsnr(schedule: Schedule) -> None:
    both, uniform, logsnr = (ratios(schedule, schedule.grid(9, name)) for name in ("blended", "uniform", "logsnr"))
    torch.testing.assert_close(both[1:] ** 2, uniform[1:] * logsnr[1:], rtol=2e-3, atol=0)  # snapping, as above


@pytest.mark.parametrize("steps", [2, 5, 18])
@pytest.mark.parametrize(("spacing", "option"), [("karras", "use_karras_sigmas"), ("logsnr", "use_exponential_sigmas")])
def test_grids_over_noise_levels_are_those_of_diffusers(spacing: str, option: str, steps: int) -> None:
    scheduler = compat.diffusers().EulerDiscreteScheduler(
        beta_start=1e-4, beta_end=0.02, timestep_spacing="linspace", **{option: True}
    )
    scheduler.set_timesteps(steps)
    ours = ratios(Schedule.linear(), Schedule.linear().grid(steps, spacing))
    # their table is in float32, and beta_0 = 1e-4 has 4 digits left in 1 - alpha^2
    torch.testing.assert_close(ours.float(), scheduler.sigmas[:-1], rtol=2e-3, atol=0)


def test_edms_own_scheduler_has_the_karras_grid() -> None:
    scheduler = compat.diffusers().EDMEulerScheduler()
    scheduler.set_timesteps(18)
    schedule = Schedule.karras()
    torch.testing.assert_close(schedule.sigma(schedule.grid(18)).float(), scheduler.sigmas, rtol=2e-6, atol=0)


def test_uniform_never_asks_below_the_smallest_time() -> None:
    assert torch.equal(Schedule.flow().grid(4), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64))
    assert Schedule.ve().grid(3000)[-2].item() == pytest.approx(Schedule.ve().t_min)


@every
@given(times=st.lists(st.floats(1e-6, 1), min_size=1, max_size=9, unique=True), end=st.booleans())
@repeatable
def test_a_list_of_times_is_a_grid(schedule: Schedule, times: list[float], end: bool) -> None:
    times = sorted(times, reverse=True)
    grid = schedule.grid(50, times + [0.0] * end)
    assert grid.tolist() == [*times, 0.0]


@pytest.mark.parametrize("times", [[], [0.0], [0.5, 0.5], [0.2, 0.7], [1.5, 0.5], [0.5, -0.1], [0.5, 0.0, 0.0]])
def test_a_list_that_does_not_fall_within_the_times_is_an_error(times: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"spacing = \[.*must fall from at most 1 to above 0"):
        Schedule.linear().grid(3, times)


def test_leading_is_refused_where_only_the_first_time_is_noise() -> None:
    schedule = Schedule.linear(zero_terminal_snr=True)
    with pytest.raises(ConfigError, match=r"'leading' never visits .* use 'trailing'"):
        schedule.grid(10, "leading")
    assert schedule.default_spacing == "trailing"
    assert schedule.grid(10)[0] == 1


def test_the_table_of_grids_is_what_a_config_may_name() -> None:
    assert set(GRIDS) == set(get_args(spec.SpacingName))
    for schedule in ALL.values():
        assert set(schedule.spacings) <= set(GRIDS)
        indexed = {"leading", "trailing", "linspace"}
        assert set(GRIDS) - set(schedule.spacings) == (set() if isinstance(schedule, Discrete) else indexed)
