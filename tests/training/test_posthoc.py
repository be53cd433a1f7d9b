"""Power-function averages: the paper's numbers, and averages made afterwards of stored ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from diffunet.errors import ConfigError
from diffunet.training.posthoc import Profile, beta, gamma_of, inner, sigma_rel, weights


@pytest.mark.parametrize(("length", "gamma"), [(0.05, 16.97219860), (0.10, 6.93720394)])
def test_a_length_has_the_papers_exponent(length: float, gamma: float) -> None:
    assert gamma_of(length) == pytest.approx(gamma, abs=5e-9)


@given(st.floats(0.005, 0.28))
def test_exponent_and_length_are_each_others_inverse(length: float) -> None:
    assert sigma_rel(gamma_of(length)) == pytest.approx(length, rel=1e-9)


@given(st.floats(0.1, 40), st.integers(2, 200))
def test_the_running_average_has_the_profile_of_its_exponent(gamma: float, steps: int) -> None:
    """Of weights that are tau at step tau: the mean of tau under p, up to a step's width."""
    average = 0.0
    for t in range(1, steps + 1):
        average = beta(t, gamma) * average + (1 - beta(t, gamma)) * t
    assert average == pytest.approx((gamma + 1) / (gamma + 2) * steps, abs=1.0)


@given(st.floats(0.5, 20), st.floats(0.5, 20), st.floats(1, 9), st.floats(1, 9))
def test_the_inner_product_is_the_integral(g_a: float, g_b: float, t_a: float, t_b: float) -> None:
    a, b = Profile(t_a, g_a), Profile(t_b, g_b)

    def density(one: Profile, tau: float) -> float:
        return (one.gamma + 1) * tau**one.gamma / one.step ** (one.gamma + 1)

    value, _ = quad(lambda tau: density(a, tau) * density(b, tau), 0, min(t_a, t_b), epsabs=1e-12, epsrel=1e-11)
    assert inner(a, b) == pytest.approx(value, rel=1e-7)


STORED = [Profile(t, gamma_of(s)) for t in (2000.0, 4000.0, 6000.0, 8000.0) for s in (0.05, 0.10)]


@pytest.mark.parametrize("i", range(len(STORED)))
def test_a_stored_average_is_found_again(i: int) -> None:
    assert weights(STORED, STORED[i]) == pytest.approx(list(np.eye(len(STORED))[i]), abs=1e-6)


@pytest.mark.parametrize("length", [0.06, 0.08, 0.12])
def test_another_length_is_near_and_its_weights_sum_to_one(length: float) -> None:
    wanted = Profile(8000.0, gamma_of(length))
    x = weights(STORED, wanted)
    products = np.array([[inner(a, b) for b in [*STORED, wanted]] for a in [*STORED, wanted]])
    lack = np.array([*x, -1.0])
    assert sum(x) == pytest.approx(1, abs=0.02)
    # what is left of the wanted profile, beside its own size
    assert (lack @ products @ lack) / products[-1, -1] < 2e-3


def test_impossible_lengths_and_steps_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"relative length 0\.3"):
        gamma_of(0.3)
    with pytest.raises(ConfigError, match="up to step 100"):
        weights(STORED, Profile(100.0, 5.0))
