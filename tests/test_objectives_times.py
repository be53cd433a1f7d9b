"""Times of training: each kind has the distribution that it names, and importance sampling stays unbiased."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from diffunet import Denoiser, Objective, Schedule
from diffunet.errors import ConfigError
from diffunet.objectives import TIMES
from diffunet.objectives.times import Importance
from diffunet.schedules import SCHEDULES
from diffunet.spec import objective_config
from diffunet.spec.objectives import ImportanceTimes
from diffunet.training.indexstream import Noises

OWN = {"karras": "edm", "ve": "edm", "flow": "flow"}
EVEN = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000


class Nothing(nn.Module):
    """A network that is never called."""


def den(schedule: Schedule) -> Denoiser:
    return Denoiser(Nothing(), schedule, OWN.get(schedule.config.kind, "v"))


def ranks(values: Tensor, law: Any) -> float:
    """Largest distance between the values' distribution and a law (Kolmogorov)."""
    return float(stats.kstest(values.numpy(), law).statistic)


@pytest.mark.parametrize("kind", TIMES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_times_are_ones_that_the_network_may_be_asked_about(kind: str, schedule: str) -> None:
    model = den(getattr(Schedule, schedule)())
    if kind == "importance" and not hasattr(model.schedule.config, "T"):
        with pytest.raises(ConfigError, match="needs a schedule of T steps"):
            Objective(times=kind).times(model, EVEN)
        return
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    t = Objective(times=kind).times(model, torch.cat([ends, EVEN[::1000]]))
    assert t.dtype == torch.float64
    least = 0 if kind == "schedule" else model.schedule.t_min  # its own is what its paper did
    assert ((t >= least) & (t > 0) & (t <= 1)).all()
    assert torch.isfinite(torch.stack(model.schedule.alpha_sigma(t))).all()


def test_log_normal_is_edms() -> None:
    """The numbers of EDM's table 1 are the schedule's own times of karras."""
    model = den(Schedule.karras())
    t = Objective(times="log_normal").times(model, EVEN)
    torch.testing.assert_close(t, Objective().times(model, EVEN), rtol=0, atol=1e-9)
    r = model.schedule.sigma(t)
    inner = (r > 0.0021) & (r < 79)
    assert ranks(r[inner].log(), stats.norm(-1.2, 1.2).cdf) < 1e-3


@pytest.mark.parametrize("schedule", [Schedule.cosine(), Schedule.flow(), Schedule.karras()])
@pytest.mark.parametrize(
    ("times", "law"),
    [
        ({"kind": "log_normal", "mean": 0.1, "std": 0.3}, lambda r, t: stats.norm(0.1, 0.3).cdf(np.log(r))),
        ({"kind": "logit_normal", "mean": 0.2, "std": 0.5}, lambda r, t: stats.norm(0.2, 0.5).cdf(np.log(t / (1 - t)))),
        ({"kind": "uniform_sigma", "low": 0.1, "high": 0.9}, lambda r, t: stats.uniform(0.1, 0.8).cdf(r)),
        ({"kind": "uniform_logsnr", "low": -2.0, "high": 3.0}, lambda r, t: stats.uniform(-2, 5).sf(-2 * np.log(r))),
    ],
)
def test_each_kind_has_the_distribution_that_it_names(times: Any, law: Any, schedule: Schedule) -> None:
    t = Objective(times=times).times(den(schedule), EVEN)
    alpha, sigma = schedule.alpha_sigma(t)
    quantiles = np.sort(law((sigma / alpha).numpy(), t.numpy()))
    # a time within a thousandth of an index of a table snaps to it
    np.testing.assert_allclose(quantiles, EVEN.numpy(), rtol=0, atol=2e-5)


def test_uniform_is_every_index_alike() -> None:
    t = Objective(times="uniform").times(den(Schedule.linear(T=40)), EVEN)
    assert torch.equal(torch.bincount((t * 40).round().long())[1:], torch.full((40,), 500))
    assert ranks(Objective(times="uniform").times(den(Schedule.karras()), EVEN), stats.uniform(0, 1).cdf) < 2e-3


def test_ranges_end_with_the_schedule_and_one_that_it_has_not_is_refused() -> None:
    model = den(Schedule.karras())
    r = model.schedule.sigma(Objective(times={"kind": "uniform_sigma", "high": 1000.0}).times(model, EVEN))
    assert ranks(r, stats.uniform(0.002, 79.998).cdf) < 1e-3
    with pytest.raises(ConfigError, match=r"asks for sigma / alpha from 90\.0 to 100\.0, but schedule 'karras'"):
        Objective(times={"kind": "uniform_sigma", "low": 90.0, "high": 100.0}).times(model, EVEN)
    with pytest.raises(ConfigError, match=r"low = 2\.0 must be below high = 1\.0"):
        Objective(times={"kind": "uniform_sigma", "low": 2.0})


def test_stratified_draws_fill_every_part_once_and_are_uniform_over_steps() -> None:
    stratified = Noises(3, objective_config(times={"stratified": True}), batch_size=16)
    u = np.array([[stratified(16 * step + i, (1, 1))["u"] for i in range(16)] for step in range(300)])
    assert all(sorted((row * 16).astype(int)) == list(range(16)) for row in u)
    assert ((u >= 0) & (u < 1)).all()
    # 300 free offsets of width 1/16: the smallest gap to a law that is uniform is that of 300 draws
    assert stats.kstest((u[:, 0] * 16) % 1, "uniform").pvalue > 1e-3
    plain = Noises(3, batch_size=16)
    assert plain(5, (1, 1))["eps"] == stratified(5, (1, 1))["eps"], "the noise is the same"


def full(T: int, history: int, level: Tensor) -> Importance:
    """Importance sampling that has seen `history` losses of every index."""
    times = Importance(ImportanceTimes(history=history))
    t = (torch.arange(T).repeat(history) + 1) / T
    times.observe(Schedule.linear(T=T), t, level.repeat(history))
    return times


def test_importance_follows_the_second_moment_once_every_index_is_known() -> None:
    """2102.09672, eq. 18, with a thousandth of uniform draws."""
    level = torch.tensor([4.0, 1.0, 2.0, 3.0])
    times = full(4, 10, level)
    p = 0.999 * level.double() / 10 + 0.001 / 4
    torch.testing.assert_close(times.chances(4), p)
    t = times(Schedule.linear(T=4), EVEN)
    counted = torch.bincount((t * 4).round().long())[1:].double() / len(EVEN)
    torch.testing.assert_close(counted, p, rtol=0, atol=1e-4)
    young = full(4, 10, level)
    young.counts[2] = 9
    assert torch.equal(young.chances(4), torch.full((4,), 0.25, dtype=torch.float64))


def test_importance_is_unbiased() -> None:
    """Corrected losses have the mean of uniform indices, whatever was seen before."""
    schedule, loss = Schedule.linear(T=5), torch.tensor([1.0, 7.0, 0.5, 3.0, 2.0], dtype=torch.float64)
    times = full(5, 2, torch.tensor([9.0, 1.0, 1.0, 0.1, 4.0]))
    t = times(schedule, EVEN)
    corrected = loss[(t * 5).round().long() - 1] * times.correction(schedule, t)
    assert corrected.mean().item() == pytest.approx(loss.mean().item(), rel=2e-3)  # 20,000 even draws of 5 indices
    p = times.chances(5)
    every = (torch.arange(5, dtype=torch.float64) + 1) / 5
    assert (p * loss * times.correction(schedule, every)).sum().item() == pytest.approx(loss.mean().item(), rel=1e-12)


def test_importance_remembers_the_last_losses_of_an_index_in_order() -> None:
    times, schedule = Importance(ImportanceTimes(history=3)), Schedule.linear(T=2)
    for step in range(4):  # index 0 gets 1, 2 then 3, 4 then ...; index 1 one a step
        losses = torch.tensor([2.0 * step + 1, 100.0 + step, 2.0 * step + 2])
        times.observe(schedule, torch.tensor([0.5, 1.0, 0.5]), losses)
    assert sorted(times.losses[0].tolist()) == [6, 7, 8]
    assert sorted(times.losses[1].tolist()) == [101, 102, 103]
    assert times.counts.tolist() == [8, 4]
    times.observe(schedule, torch.full((7,), 0.5), torch.arange(7.0))  # more than it keeps
    assert sorted(times.losses[0].tolist()) == [4, 5, 6]
    again = Importance(ImportanceTimes(history=3))
    again.restore(times.state())
    assert torch.equal(again.chances(2), times.chances(2))


def test_a_held_out_score_never_follows_importance() -> None:
    objective = Objective(times="importance")
    model = den(Schedule.linear(T=4))
    before = objective.held_out_times(model, EVEN)
    objective.distribution = full(4, 10, torch.tensor([4.0, 1.0, 2.0, 3.0]))
    assert torch.equal(objective.held_out_times(model, EVEN), before)
    assert not torch.equal(objective.times(model, EVEN), before)


def test_a_uniform_logsnr_is_that_of_the_schedule_at_most() -> None:
    schedule = Schedule.cosine()
    logsnr = schedule.logsnr(
        Objective(times={"kind": "uniform_logsnr", "high": 30.0, "low": 8.0}).times(den(schedule), EVEN)
    )
    assert ranks(logsnr, stats.uniform(8, schedule.logsnr(1 / 1000) - 8).cdf) < 1e-3
    assert math.isfinite(logsnr.max())
