"""The gradient noise scale against gradients whose covariance is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from diffunet.training.noisescale import NoiseScale


def observed(scale: NoiseScale, G: np.ndarray, deviation: float, steps: int) -> list[float | None]:
    """Steps whose images have gradients N(G, deviation^2 I)."""
    random, found = np.random.default_rng(0), []
    for _ in range(steps):
        each = G + deviation * random.standard_normal((scale.large, len(G)))
        small = each[: scale.small].mean(axis=0)
        found.append(scale.observe(float(small @ small), float(np.square(each.mean(axis=0)).sum())))
    return found


@pytest.mark.parametrize(("small", "large"), [(8, 16), (4, 32)])
def test_it_is_the_trace_of_the_covariance_over_the_squared_gradient(small: int, large: int) -> None:
    """S = d deviation^2 = 200, |G|^2 = 4: 50 images. 800 steps with a memory of 50: within a fifth."""
    G = np.full(50, np.sqrt(4 / 50))
    found = [value for value in observed(NoiseScale(small, large), G, 2.0, 800)[200:] if value is not None]
    assert np.mean(found) == pytest.approx(50, rel=0.2)


def test_without_noise_it_is_nothing() -> None:
    assert observed(NoiseScale(2, 8), np.ones(5), 0.0, 3) == pytest.approx([0, 0, 0], abs=1e-9)


def test_a_gradient_that_noise_hides_has_none() -> None:
    assert NoiseScale(2, 8).observe(4.0, 1.0) is None


def test_its_state_goes_through_json() -> None:
    one, other = NoiseScale(4, 8), NoiseScale(4, 8)
    observed(one, np.ones(3), 1.0, 5)
    other.restore(json.loads(json.dumps(one.state())))
    assert one.observe(2.0, 1.5) == other.observe(2.0, 1.5)
    other.restore({})
    assert other.state() == NoiseScale(4, 8).state()
