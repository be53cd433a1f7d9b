"""What counts as a sudden loss, and which checkpoint it holds back."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from diffunet.spec import SpikeConfig
from diffunet.training.guard import Guard

LOSSES = [float(x) for x in 0.1 * np.exp(0.3 * np.random.default_rng(0).standard_normal(200))]


def judged(losses: list[float], **options: object) -> list[str]:
    guard = Guard(SpikeConfig(**{"window": 20} | options))
    return [guard.judge(loss, 1.0) for loss in losses]


def test_an_ordinary_run_has_no_spike() -> None:
    assert set(judged(LOSSES)) == {"kept"}


@pytest.mark.parametrize("at", [10, 50, 199])
def test_ten_times_the_usual_loss_is_one(at: int) -> None:
    spoiled = [loss * (50 if place == at else 1) for place, loss in enumerate(LOSSES)]
    found = judged(spoiled)
    assert found[at] == "spike"
    assert found.count("spike") == 1


def test_before_half_of_the_window_nothing_is_usual() -> None:
    assert judged([0.1] * 9 + [1e9]) == ["kept"] * 10
    assert judged([0.1] * 10 + [1e9])[-1] == "spike"


def test_a_level_that_stays_becomes_usual() -> None:
    """Half of the window at the new level, and the median is there."""
    found = judged([0.1] * 40 + [5.0] * 40)
    assert found[40:50] == ["spike"] * 10
    assert found[51:] == ["kept"] * 29


def test_negative_losses_are_judged_by_their_spread() -> None:
    """A learned variance makes the loss a log likelihood, which may cross zero."""
    around = [float(x) for x in 0.02 * np.random.default_rng(1).standard_normal(100)]
    assert set(judged(around)) == {"kept"}
    assert judged([*around, 2.0])[-1] == "spike"
    assert judged([-3.0 + x for x in around] + [60.0])[-1] == "spike"


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (0.1, math.nan), (0.1, math.inf)])
def test_what_is_not_finite_is_told_apart_and_not_remembered(loss: float, norm: float) -> None:
    guard = Guard(SpikeConfig(window=4))
    assert [guard.judge(0.1, 1.0), guard.judge(loss, norm), guard.judge(0.1, 1.0)] == ["kept", "nonfinite", "kept"]
    assert guard.losses == [0.1, 0.1]


def test_it_can_be_turned_off() -> None:
    assert set(judged([0.1] * 30 + [1e9], policy="off")) == {"kept"}


def test_the_checkpoint_before_a_spike_is_held_until_a_window_without_one() -> None:
    guard = Guard(SpikeConfig(window=6))
    for _ in range(6):
        guard.judge(0.1, 1.0)
    assert guard.judge(9.0, 1.0) == "spike"
    guard.pin(40)
    guard.pin(50)  # a later checkpoint may already be spoiled
    for left in range(6, 0, -1):
        assert guard.pinned == 40, left
        guard.judge(0.1, 1.0)
    assert guard.pinned is None


def test_its_state_goes_through_json() -> None:
    one, other = Guard(SpikeConfig(window=8)), Guard(SpikeConfig(window=8))
    for loss in LOSSES[:30]:
        one.judge(loss, 1.0)
    one.pin(3)
    other.restore(json.loads(json.dumps(one.state())))
    assert other.state() == one.state()
    assert other.judge(1.0, 1.0) == one.judge(1.0, 1.0) == "spike"
