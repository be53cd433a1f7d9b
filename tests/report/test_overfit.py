"""The over-fit rule, on curves whose answer is known because we made them."""

from __future__ import annotations

import numpy as np
import pytest

from diffunet.report.curves import Series, series
from diffunet.report.overfit import FEWEST, judge

STEPS = np.arange(100, 5001, 100)
NONE = series([], [])


def curve(function: object, noise: float = 0.0, seed: int = 0) -> Series:
    random = np.random.default_rng(seed)
    return series(STEPS, function(STEPS) + noise * random.standard_normal(len(STEPS)))  # type: ignore[operator]


def falls(x: np.ndarray) -> np.ndarray:
    return 0.2 + np.exp(-x / 800)


def turns(x: np.ndarray) -> np.ndarray:
    """Least at step 2000, then rising by a third of the minimum."""
    return falls(np.minimum(x, 2000)) + np.maximum(0, x - 2000) / 30_000


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_a_curve_that_turns_is_found_soon_after_it_turned(noise: float, seed: int) -> None:
    verdict = judge(curve(turns, noise, seed), curve(falls, noise, seed + 100))
    assert verdict.since is not None
    assert 2000 < verdict.since <= 3200
    assert verdict.best is not None
    assert abs(verdict.best - 2000) <= 500
    assert f"over-fits since step {verdict.since:,}" in verdict.text


@pytest.mark.parametrize("noise", [0.0, 0.005, 0.02])
def test_noise_alone_is_no_over_fit(noise: float) -> None:
    """Curves that fall, and curves that lie still: of 100 runs of each, at most two are reported."""
    for function in (falls, lambda x: np.full(len(x), 0.2)):
        found = [judge(curve(function, noise, seed), curve(falls, noise, seed + 100)).since for seed in range(100)]
        assert sum(since is not None for since in found) <= 2


def test_a_rise_that_passed_is_no_over_fit() -> None:
    bump = curve(lambda x: falls(x) + 0.2 * ((x > 2000) & (x < 3000)))
    assert judge(bump, curve(falls)).since is None


def test_a_run_that_gets_worse_on_seen_images_too_diverges_and_does_not_over_fit() -> None:
    assert judge(curve(turns), curve(turns)).since is None


def test_the_noise_is_the_one_that_was_put_in() -> None:
    found = [judge(curve(falls, 0.01, seed), NONE).noise for seed in range(50)]
    assert np.mean(found) == pytest.approx(0.01, rel=0.15)


@pytest.mark.parametrize("count", range(FEWEST))
def test_few_measurements_say_nothing(count: int) -> None:
    few = Series(STEPS[:count], np.linspace(1, 2, count))
    verdict = judge(few, few)
    assert (verdict.since, verdict.best, verdict.measurements) == (None, None, count)
    assert ("too early" if count else "no loss on held-out images") in verdict.text


def test_the_gap_is_held_out_less_seen() -> None:
    assert judge(curve(turns), curve(falls)).gap == pytest.approx(turns(STEPS)[-1] - falls(STEPS)[-1])
    assert judge(curve(turns), NONE).gap is None
