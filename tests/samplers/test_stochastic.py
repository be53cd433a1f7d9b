"""Stochastic samplers at a thousand steps have the mean, covariance and mode weights of the data."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffunet import Schedule, generate
from diffunet.errors import ConfigError
from diffunet.samplers import Noise, build
from tests.oracles import Gaussian, Mixture

RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm small": ("linear", {"kind": "ddpm"}),
    "ddpm large": ("linear", {"kind": "ddpm", "variance": "fixed_large"}),
    "ddpm learned": ("linear", {"kind": "ddpm", "variance": "learned"}),
    "ddim eta 1": ("linear", {"kind": "ddim", "eta": 1.0}),
    "ddim eta 0.5": ("linear", {"kind": "ddim", "eta": 0.5}),
    "euler ancestral": ("linear", {"kind": "euler_ancestral"}),
    "euler ancestral on flow": ("flow", {"kind": "euler_ancestral", "eta": 0.7}),
    "euler churn": ("karras", {"kind": "euler", "churn": 40.0}),
    "heun churn": ("karras", {"kind": "heun", "churn": 40.0, "churn_low": 0.05, "churn_high": 50.0}),
    "heun churn on linear": ("linear", {"kind": "heun", "churn": 40.0}),
    "restart": ("karras", {"kind": "restart", "intervals": [{"low": 0.06, "high": 1.0, "steps": 30, "repeats": 4}]}),
}
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.25, 0.12], [0.12, 0.16]], dtype=torch.float64)


class Correlated:
    """x_0 ~ N(MEAN, COVARIANCE) over two channels; its learned variance lies between the two fixed ones."""

    def __init__(self, schedule: Any) -> None:
        self.schedule = schedule

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        """m + a S (a^2 S + s^2)^-1 (x_t - a m)."""
        a, s = self.schedule.alpha(t), self.schedule.sigma(t)
        gain = a * COVARIANCE @ torch.linalg.inv(a**2 * COVARIANCE + s**2 * torch.eye(2, dtype=torch.float64))
        m = MEAN.to(x_t)[:, None]
        return m + gain.to(x_t) @ (x_t - a * m)

    def with_variance(self, x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
        return self(x_t, t), torch.full_like(x_t, 0.5)


class Blend(Gaussian):
    """A Gaussian whose learned variance is v everywhere."""

    def __init__(self, schedule: Any, v: float) -> None:
        super().__init__(schedule, mean=0.3)
        self.v = v

    def with_variance(self, x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
        return self(x_t, t), torch.full_like(x_t, self.v)


@pytest.mark.parametrize("rule", RULES)
def test_a_thousand_steps_have_the_mean_and_the_covariance(rule: str) -> None:
    kind, sampler = RULES[rule]
    images = generate(Correlated(getattr(Schedule, kind)()), (2, 2, 4096), sampler, 1000).double()
    values = images.transpose(0, 1).flatten(1)
    # of n = 8192 draws: means err by 0.5 / sqrt(n), covariances by at most 0.25 sqrt(2 / n) = 0.004; four of them
    torch.testing.assert_close(values.mean(dim=1), MEAN, rtol=0, atol=0.022)
    torch.testing.assert_close(torch.cov(values), COVARIANCE, rtol=0, atol=0.016)


@pytest.mark.parametrize("rule", [rule for rule in RULES if "learned" not in rule])
def test_modes_keep_their_weights_and_means(rule: str) -> None:
    kind, sampler = RULES[rule]
    images = generate(Mixture(getattr(Schedule, kind)()), (4, 1, 1024), sampler, 250)
    # as in a mixture of 0.3 N(-1, 0.2^2) and 0.7 N(1.5, 0.5^2): share below 0 errs by 0.72 % for n = 4096; four of them
    assert (images < 0).double().mean().item() == pytest.approx(0.3 + 0.7 * 0.00135, abs=0.029)
    means = (images[images < 0].mean().item(), images[images > 0].mean().item())
    assert means == pytest.approx((-1.0, 1.5), abs=0.045)  # 0.5 / sqrt(2870) = 0.0093 four times, and the cut at 0


@pytest.mark.parametrize("kind", ["linear", "karras", "flow", "cosine"])
def test_euler_ancestral_is_ddpm_whatever_the_schedule(kind: str) -> None:
    """Its fresh noise is the variance of q(x_s | x_t, x_0): sigma in place of sigma / alpha is another sampler."""
    den = Gaussian(getattr(Schedule, kind)(), mean=0.3)
    ours = generate(den, (2, 1, 8), "euler_ancestral", 10)
    torch.testing.assert_close(ours, generate(den, (2, 1, 8), "ddpm", 10), rtol=1e-4, atol=1e-5)
    half = generate(den, (2, 1, 8), {"kind": "euler_ancestral", "eta": 0.5}, 10)
    torch.testing.assert_close(half, generate(den, (2, 1, 8), {"kind": "ddim", "eta": 0.5}, 10), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("v", "variance"), [(0.0, "fixed_small"), (1.0, "fixed_large")])
def test_the_ends_of_the_learned_variance_are_the_fixed_ones(v: float, variance: str) -> None:
    den = Blend(Schedule.linear(), v)
    learned = generate(den, (2, 1, 8), {"kind": "ddpm", "variance": "learned"}, 10)
    fixed = generate(den, (2, 1, 8), {"kind": "ddpm", "variance": variance}, 10)
    torch.testing.assert_close(learned, fixed, rtol=0, atol=1e-5)


def test_the_learned_variance_is_the_papers() -> None:
    """exp(v log beta + (1 - v) log btilde) at index 499 of DDPM's table (2102.09672, eq 15)."""
    schedule = Schedule.linear()
    rule = build({"kind": "ddpm", "variance": "learned"})
    (leg,) = rule.legs(schedule, [0.5, 0.499])
    x, noise = torch.zeros(1, 1, 3, dtype=torch.float64), Noise([0])
    z = Noise([0]).like(x)
    den = Blend(schedule, 0.3)
    beta = 1 - (schedule.alpha(0.5) / schedule.alpha(0.499)) ** 2
    expected = math.exp(0.3 * math.log(beta) + 0.7 * math.log(1.003135541e-2))
    mean = rule.step(Blend(schedule, -1e6), x, leg, Noise([0])).x  # a variance of nothing
    torch.testing.assert_close(rule.step(den, x, leg, noise).x - mean, expected**0.5 * z, rtol=1e-8, atol=0)


def test_restart_goes_up_by_noise_and_down_by_the_flow() -> None:
    schedule = Schedule.karras()
    interval = {"low": 0.06, "high": 0.3, "steps": 3, "repeats": 2}
    legs = build({"kind": "restart", "intervals": [interval]}).legs(schedule, schedule.grid(18).tolist())
    ups = [leg for leg in legs if leg.s > leg.t]
    assert len(ups) == 2
    assert len(legs) == 18 + 2 * (1 + 3)
    assert all(not leg.stages and leg.noisy for leg in ups)
    assert schedule.sigma(ups[0].s) == pytest.approx(0.3, rel=1e-9)
    assert schedule.sigma(ups[0].t) == pytest.approx(0.059947, rel=1e-4)  # the grid's nearest to 0.06
    assert all(leg.t == before.s for before, leg in itertools.pairwise(legs))


def test_churn_raises_the_noise_by_the_papers_factor() -> None:
    schedule = Schedule.karras()
    rule = build({"kind": "heun", "churn": 40.0, "churn_low": 0.05, "churn_high": 50.0})
    for leg in rule.legs(schedule, schedule.grid(256).tolist()):
        sigma, hat = schedule.sigma(leg.t), schedule.sigma(leg.stages[0][0])
        gamma = min(40 / 256, math.sqrt(2) - 1) if 0.05 <= sigma <= 50 else 0.0
        assert hat == pytest.approx(sigma * (1 + gamma), rel=1e-6)
        assert leg.noisy == (gamma > 0)


def test_an_interval_that_does_not_rise_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"low = 0\.5 but high = 0\.3"):
        build({"kind": "restart", "intervals": [{"low": 0.5}]})
