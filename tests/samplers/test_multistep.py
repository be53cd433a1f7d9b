"""Multistep samplers: exact integrals, identities between rules, and ends that need a limit."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from diffunet import Schedule
from diffunet.errors import ConfigError
from diffunet.samplers import Noise, build
from diffunet.samplers.base import D0, Form, Leg, Point, X
from diffunet.samplers.exponential import (
    data_correction,
    euler_data,
    euler_noise,
    lagrange_weights,
    noise_correction,
    rho,
    spread,
)
from tests.oracles import Gaussian

KARRAS, LINEAR = Schedule.karras(), Schedule.linear()
MULTISTEP: list[dict[str, Any]] = [
    {"kind": "dpmpp_2m"},
    {"kind": "dpmpp_3m"},
    {"kind": "dpmpp_2m_sde"},
    {"kind": "dpmpp_3m_sde", "eta": 0.5},
    {"kind": "unipc", "order": 3},
    {"kind": "unipc", "variant": "bh1"},
    {"kind": "deis"},
    {"kind": "deis", "variable": "log_rho"},
    {"kind": "lms"},
    {"kind": "ipndm"},
]
# times of a walk down, at least 0.01 apart
falls = st.lists(st.integers(1, 100), min_size=2, max_size=6, unique=True).map(
    lambda v: [k / 100 for k in sorted(v, reverse=True)]
)
etas = st.floats(0, 3)
quick = settings(max_examples=12, deadline=None)


def point(lam: float, scale: float = 1.0) -> Point:
    """A place of the process with alpha = scale."""
    return Point(0.0, scale, scale * math.exp(-lam))


def assert_same(a: list[Leg], b: list[Leg], tolerance: float = 1e-9) -> None:
    """The legs end in the same combinations; names as in dictionaries, coefficients to the tolerance."""
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        left, right = dict(one.end), dict(other.end)
        for name in left | right:
            assert left.get(name, 0.0) == pytest.approx(right.get(name, 0.0), rel=tolerance, abs=tolerance)


@quick
@given(
    st.lists(st.integers(-20, 20), min_size=1, max_size=4, unique=True),
    st.lists(st.floats(-2, 2), min_size=4, max_size=4),
    st.floats(-3, 3),
    st.floats(-3, 3),
)
def test_polynomials_are_integrated_exactly(nodes: list[int], c: list[float], a: float, b: float) -> None:
    u, polynomial = [k / 10 for k in nodes], np.polynomial.Polynomial(c[: len(nodes)])
    weights = lagrange_weights(u, a, b)
    scale = sum(abs(w * polynomial(v)) for w, v in zip(weights, u, strict=True)) + 1
    found = sum(w * polynomial(v) for w, v in zip(weights, u, strict=True))
    primitive = polynomial.integ()
    assert found == pytest.approx(primitive(b) - primitive(a), abs=1e-12 * scale)


@pytest.mark.parametrize("h", [1e-3, 1.0, 12.0, 40.0])
def test_weights_with_an_exponential_are_scipys(h: float) -> None:
    """int exp(l) l_i(u(l)) dl with u = exp(-l / 5), by adaptive quadrature, up to steps over the whole process."""
    nodes = [1.0, math.exp(h / 50), math.exp(h / 20)]
    ours = lagrange_weights(nodes, 0.0, h, lambda x: np.exp(x - h), lambda x: np.exp(-x / 5))
    for i, mine in enumerate(ours):

        def integrand(x: float, i: int = i) -> float:
            u = math.exp(-x / 5)
            return math.exp(x - h) * math.prod(
                (u - other) / (nodes[i] - other) for j, other in enumerate(nodes) if j != i
            )

        exact = integrate.quad(integrand, 0.0, h, epsabs=0, epsrel=1e-13, limit=200)[0]
        assert mine == pytest.approx(exact, rel=1e-10, abs=1e-10 * max(map(abs, ours)))


@pytest.mark.parametrize("used", [1, 2, 3, 4])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_the_data_form_solves_its_equation(used: int, eta: float) -> None:
    """With D a polynomial of degree below `used`: dx/dl = -(1 + eta) ... solved by scipy in the frame alpha = 1.

    y = x / sigma grows as dy/dl = (1 + eta) exp(l) D - eta y, the mean of the SDE.
    """
    lams, polynomial = [0.3, 0.1, -0.4, -0.6][:used], np.polynomial.Polynomial([0.5, -1.0, 0.7, 0.4][:used])
    t, s = point(0.3), point(1.1)
    evaluations = [(point(lam), Form({"one": polynomial(lam)})) for lam in lams]
    form = euler_data(Form({"one": 2.0}), evaluations[0][1], t, s, eta) + data_correction(t, s, evaluations, eta=eta)

    def slope(lam: float, y: Any) -> Any:
        return (1 + eta) * math.exp(lam) * polynomial(lam) - eta * y

    y = integrate.solve_ivp(slope, (t.lam, s.lam), [2.0 / t.sigma], method="DOP853", rtol=1e-12, atol=1e-12).y[0, -1]
    assert form.terms["one"] == pytest.approx(y * s.sigma, rel=1e-10)


@pytest.mark.parametrize("used", [1, 2, 3, 4])
def test_the_noise_form_solves_its_equation(used: int) -> None:
    """With e a polynomial in rho of degree below `used`: x_s / alpha_s = x_t / alpha_t + int e drho."""
    lams, polynomial = [0.3, 0.1, -0.4, -0.6][:used], np.polynomial.Polynomial([0.5, -1.0, 0.7, 0.4][:used])
    t, s, x = point(0.3, 0.8), point(1.1, 0.9), 2.0
    noises = [(point(lam), Form({"one": polynomial(math.exp(-lam))})) for lam in lams]
    clean = (x - t.sigma * noises[0][1].terms["one"]) / t.alpha
    form = euler_noise(Form({"one": clean}), noises[0][1], s) + noise_correction(t, s, noises, rho)
    primitive = polynomial.integ()
    exact = s.alpha * (x / t.alpha + primitive(math.exp(-s.lam)) - primitive(math.exp(-t.lam)))
    assert form.terms["one"] == pytest.approx(exact, rel=1e-12)


@quick
@given(falls)
def test_first_orders_are_ddim(times: list[float]) -> None:
    ddim = build("ddim").legs(LINEAR, times)
    for sampler in (
        {"kind": "unipc", "order": 1, "corrector": False},
        {"kind": "deis", "order": 1},
        {"kind": "lms", "order": 1},
        {"kind": "ipndm", "order": 1},
    ):
        assert_same(build(sampler).legs(LINEAR, times), ddim)
    for sampler in ({"kind": "dpmpp_2m"}, {"kind": "dpmpp_3m"}, {"kind": "unipc"}, {"kind": "lms"}):
        assert_same(build(sampler).legs(LINEAR, times)[:1], ddim[:1])


@quick
@given(falls)
def test_the_sdes_first_step_is_ddims_with_noise(times: list[float]) -> None:
    """At eta = 1 both are the posterior of DDPM, for any pair of times."""
    ddim = build({"kind": "ddim", "eta": 1.0})
    for t, s in pairwise(times):
        assert_same(build("dpmpp_2m_sde").legs(LINEAR, [t, s]), ddim.legs(LINEAR, [t, s]), 1e-7)


@quick
@given(falls)
def test_rules_meet_where_they_should(times: list[float]) -> None:
    pairs: list[tuple[Any, Any]] = [
        ({"kind": "dpmpp_2m_sde", "eta": 0.0}, "dpmpp_2m"),
        ({"kind": "dpmpp_3m_sde", "eta": 0.0}, "dpmpp_3m"),
        ({"kind": "unipc", "corrector": False, "lower_order_final": False}, "dpmpp_2m"),
        ({"kind": "lms", "order": 3}, {"kind": "deis", "variable": "rho", "lower_order_final": False}),
    ]
    for schedule in (LINEAR, KARRAS):
        for one, other in pairs:
            assert_same(build(one).legs(schedule, times), build(other).legs(schedule, times))


@quick
@given(st.floats(-5, 4), st.floats(0.01, 8), etas)
def test_noise_stays_at_the_level_of_the_schedule(lam: float, h: float, eta: float) -> None:
    """Of a point mass, whose D is right everywhere: g^2 sigma_t^2 + spread^2 = sigma_s^2, whatever eta."""
    t, s = point(lam), point(lam + h)
    g = euler_data(X, D0, t, s, eta).terms["x"]
    assert (g * t.sigma) ** 2 + spread(t, s, eta) ** 2 == pytest.approx(s.sigma**2, rel=1e-10)


@pytest.mark.parametrize(
    "schedule", [Schedule.flow(), Schedule.linear(zero_terminal_snr=True), KARRAS], ids=["flow", "zero-snr", "karras"]
)
@pytest.mark.parametrize("sampler", MULTISTEP, ids=str)
def test_walks_from_pure_noise_end_in_the_last_estimate(sampler: Any, schedule: Schedule) -> None:
    """alpha(1) = 0 in two of them; sigma(0) = 0 in all."""
    den, rule = Gaussian(schedule, mean=0.3), build(sampler)
    for dtype in (torch.float32, torch.float64):
        x = rule.scale(schedule) * torch.linspace(-1, 1, 3, dtype=dtype)[None, None]
        for steps in (1, 2, 3, 20):
            *_, last = rule.walk(den, schedule, x, rule.times(schedule, steps), Noise([0]))
            assert last.x.dtype == dtype
            assert torch.equal(last.x, last.x0)
            assert float((last.x - 0.3).abs().max()) < 3  # six standard deviations of the data


@pytest.mark.parametrize("sampler", MULTISTEP[1::2], ids=str)
def test_a_thousand_steps_are_planned_without_a_flaw(sampler: Any) -> None:
    """Every coefficient is finite, and the combination of a constant estimate is that estimate: alphas are kept."""
    times = LINEAR.grid(1000, "trailing").tolist()
    legs = build(sampler).legs(LINEAR, times)
    assert len(legs) == 1000
    values = {f"{name}{k}": 1.0 for name in "HDE" for k in range(5)} | {"E0": 0.0}
    for leg in legs:
        rows = [leg.end, *(row for _, row in leg.keep)]
        assert all(math.isfinite(value) for row in rows for _, value in row)
        # x = alpha D without noise: e = 0, and x1 = alpha D at the time of the leg before
        kept = values | {"x": LINEAR.alpha(leg.t), "z": 0.0, **{f"E{k}": 0.0 for k in range(5)}}
        kept["x1"] = LINEAR.alpha(times[max(times.index(leg.t) - 1, 0)])
        assert sum(value * kept[name] for name, value in leg.end) == pytest.approx(LINEAR.alpha(leg.s), abs=1e-9)


def test_options_out_of_range_are_errors() -> None:
    for wrong in ({"kind": "unipc", "order": 4}, {"kind": "lms", "order": 0}, {"kind": "dpmpp_2m_sde", "eta": -1.0}):
        with pytest.raises(ConfigError, match=r"order|eta"):
            build(wrong)


def test_deis_in_t_says_what_it_needs() -> None:
    class Bare:
        def alpha(self, t: float) -> float:
            return 1 - t

        def sigma(self, t: float) -> float:
            return t

    with pytest.raises(ConfigError, match=r"variable = 'log_rho'"):
        build("deis").legs(Bare(), [0.9, 0.5, 0.1])
    assert len(build({"kind": "deis", "variable": "log_rho"}).legs(Bare(), [0.9, 0.5, 0.1])) == 2
