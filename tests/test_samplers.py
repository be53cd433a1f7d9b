"""Samplers against closed forms: Gaussian data makes every step linear, so that its result is one number."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from diffunet import Schedule, generate
from diffunet.errors import ConfigError
from diffunet.samplers import SAMPLERS, Noise, Sampler, build
from diffunet.schedules import SCHEDULES, Discrete
from tests.oracles import Gaussian, Mixture

OWN = [name for name in SAMPLERS if name != "diffusers"]  # the adapter has a file of its own
STOCHASTIC: dict[str, dict[str, Any]] = {
    "ddpm fixed_small": {"kind": "ddpm"},
    "ddpm fixed_large": {"kind": "ddpm", "variance": "fixed_large"},
    "ddim eta=1": {"kind": "ddim", "eta": 1.0},
    "ddim eta=0.5": {"kind": "ddim", "eta": 0.5},
}
LINEAR: Any = Schedule.linear()
ALPHAS_BAR: Tensor = LINEAR.alphas_bar()
# diffusers' schedulers make arrays of tensors in a way that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


class Constant(Noise):
    """Noise whose every value is the same, to probe a step."""

    def __init__(self, value: float) -> None:
        self.value = value

    def like(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float64)


def gain(den: Gaussian, sampler: Any, steps: int, spacing: str | None = None) -> float:
    """x_0 / x_T of a deterministic sampler on centred Gaussian data."""
    x_T = den.schedule.sigma(1.0)  # what unit noise starts as
    return generate(den, (1, 1), sampler, steps, spacing, noise=ones(1, 1)).item() / x_T


def probe(rule: Sampler, den: Any, t: float, s: float) -> tuple[float, float, float]:
    """mean, c, h of a step x_s = mean + c x_t + h z that is affine in x_t and noise z."""

    def step(x: float, z: float) -> float:
        (leg,) = rule.legs(den.schedule, [t, s])
        return rule.step(den, x * ones(1, 1), leg, Constant(z)).x.item()

    mean = step(0, 0)
    return mean, step(1, 0) - mean, step(0, 1) - mean


def final_std(den: Gaussian, sampler: Any, steps: int, spacing: str | None = None) -> float:
    """Standard deviation of what a sampler makes of unit noise: v' = c^2 v + h^2 at each step."""
    rule = build(sampler)
    variance = rule.scale(den.schedule) ** 2
    for t, s in pairwise(rule.times(den.schedule, steps, spacing)):
        _, c, h = probe(rule, den, t, s)
        variance = c**2 * variance + h**2
    return math.sqrt(variance)


def test_mixture_oracle_has_the_known_mean_and_score() -> None:
    a, s = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)
    x = torch.tensor([0.37], dtype=torch.float64, requires_grad=True)
    oracle = Mixture(LINEAR)
    mean = oracle.mean(x, a, s)
    (score,) = torch.autograd.grad(oracle.log_density(x, a, s), x)
    assert mean.item() == pytest.approx(0.8941720010, abs=1e-10)
    assert score.item() == pytest.approx(0.2601612509, abs=1e-10)
    assert ((a * mean - x) / s**2).item() == pytest.approx(score.item(), abs=1e-14)


@pytest.mark.parametrize(
    ("k", "variance"), [(1, 5.45318766e-5), (499, 1.003135541e-2), (500, 0.0100513358), (999, 1.999998353e-2)]
)
@pytest.mark.parametrize("sampler", ["ddpm", {"kind": "ddim", "eta": 1.0}])
def test_posterior_variance_is_the_papers(sampler: Any, k: int, variance: float) -> None:
    h = probe(build(sampler), Gaussian(LINEAR), (k + 1) / 1000, k / 1000)[2]
    assert h**2 == pytest.approx(variance, rel=1e-8)


def test_posterior_mean_is_the_papers() -> None:
    """c1 x0 + c2 x_t (2006.11239, eq 7), and a noiseless x_t stays noiseless: c1 + c2 sqrt(abar_t) = sqrt(abar_s)."""
    point, rule = Gaussian(LINEAR, mean=1.0, std=0.0), build("ddpm")
    for k in [*range(1, 20), 250, 499, 750, 998, 999]:
        beta, abar, before = 1 - ALPHAS_BAR[k] / ALPHAS_BAR[k - 1], ALPHAS_BAR[k], ALPHAS_BAR[k - 1]
        c1, c2, h = probe(rule, point, (k + 1) / 1000, k / 1000)
        assert c1 == pytest.approx((before.sqrt() * beta / (1 - abar)).item(), rel=1e-9)
        assert c2 == pytest.approx(((1 - beta).sqrt() * (1 - before) / (1 - abar)).item(), rel=1e-9)
        assert h**2 == pytest.approx(((1 - before) / (1 - abar) * beta).item(), rel=1e-9)
        assert c1 + c2 * abar.sqrt().item() == pytest.approx(before.sqrt().item(), abs=1e-12)


@pytest.mark.parametrize("sampler", [*OWN, *STOCHASTIC.values()])
def test_last_step_is_the_estimate_without_noise(sampler: Any) -> None:
    den = Gaussian(LINEAR, mean=0.3)
    x, source = ones(2, 3), Noise([0, 1])
    (last,) = build(sampler).walk(den, LINEAR, x, [0.001, 0.0], source)
    assert torch.equal(last.x, den(x, 0.001))
    assert torch.equal(last.x0, last.x)


@pytest.mark.parametrize("steps", [2, 10, 100, 1000])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_with_eta_1_is_ddpm_with_the_posterior_variance(schedule: str, steps: int) -> None:
    process = getattr(Schedule, schedule)()
    ddim, ddpm, den = build(STOCHASTIC["ddim eta=1"]), build("ddpm"), Gaussian(process, mean=0.3)
    times = process.grid(steps).tolist()
    for t, s in list(pairwise(times))[:: max(1, steps // 50)]:
        # both are exact forms of the same posterior: float64 rounding, and steps that nearly cancel
        assert probe(ddim, den, t, s) == pytest.approx(probe(ddpm, den, t, s), rel=1e-8, abs=1e-8)


@pytest.mark.parametrize(
    ("spacing", "value"), [("leading", 0.37412849), ("trailing", 0.36995481), ("linspace", 0.36161172)]
)
def test_ddim_gain_of_ten_steps(spacing: str, value: float) -> None:
    assert gain(Gaussian(LINEAR), "ddim", 10, spacing) == pytest.approx(value, abs=5e-9)


def test_exact_gain_of_the_probability_flow() -> None:
    assert Gaussian(LINEAR).flow(ones(1), 1.0).item() == pytest.approx(0.50000757, abs=5e-9)
    assert Gaussian(Schedule.karras()).flow(80 * ones(1), 1.0).item() == pytest.approx(0.49999023, abs=5e-9)


@pytest.mark.parametrize(("variance", "value"), [("fixed_small", 0.49611008), ("fixed_large", 0.50075152)])
def test_ddpm_of_a_thousand_steps_has_the_known_deviation(variance: str, value: float) -> None:
    sampler = {"kind": "ddpm", "variance": variance}
    assert final_std(Gaussian(LINEAR), sampler, 1000) == pytest.approx(value, abs=2e-8)
    images = generate(Gaussian(LINEAR), (4, 1, 4096), sampler, 1000)
    # the deviation of n draws errs by 1 / sqrt(2 n) = 0.55 %; four of them
    assert images.std().item() == pytest.approx(value, rel=0.022)


def test_ddim_on_karras_is_eulers_method_in_sigma() -> None:
    schedule = Schedule.karras()
    den, times = Gaussian(schedule), schedule.grid(18).tolist()
    x = 80 * ones(1, 1)
    for t, s in pairwise(times):
        x = x + (schedule.sigma(s) - schedule.sigma(t)) * (x - den(x, t)) / schedule.sigma(t)
    got = generate(den, (1, 1), "ddim", 18, noise=ones(1, 1))
    assert got.item() == pytest.approx(0.42303144, abs=5e-9)
    torch.testing.assert_close(got, x, rtol=1e-12, atol=0)


@pytest.mark.parametrize("schedule", ["karras", "flow", "linear", "cosine"])
@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_a_first_order_sampler_converges_so_from_noise_to_the_clean_image(name: str, schedule: str) -> None:
    den = Gaussian(getattr(Schedule, schedule)())
    exact = den.flow(ones(1), 1.0).item()
    # 125 to 1000 divide no table unevenly, which would change the grid's shape with its size
    few, many = (abs(gain(den, name, steps) - exact) for steps in (125, 1000))
    slope = math.log(few / many) / math.log(8)
    # the noise level at the grid's last step shrinks a little slower than 1 / steps on the tables
    assert slope == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_single_image_is_reached_in_any_number_of_steps(sampler: str, schedule: str, steps: int) -> None:
    den = Gaussian(getattr(Schedule, schedule)(), mean=0.3, std=0.0)
    if sampler == "diffusers" and not isinstance(den.schedule, Discrete):
        with pytest.raises(ConfigError, match=f"discrete schedule, not '{schedule}'"):
            generate(den, (2, 1, 3), sampler, steps)
        return
    noise = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = generate(den, (2, 1, 3), sampler, steps, noise=noise)
    # own samplers end on the estimate itself; diffusers divides by alpha >= 3e-5 taken from float32 tables
    torch.testing.assert_close(images, torch.full_like(images, 0.3), rtol=0, atol=1e-12 if sampler in OWN else 1e-3)


def test_straight_paths_are_walked_exactly() -> None:
    """On the flow schedule a single image's path is the line (1 - t) m + t eps."""
    schedule, noise = Schedule.flow(), torch.linspace(-2, 2, 5, dtype=torch.float64)[None]
    seen: list[Any] = []
    generate(Gaussian(schedule, mean=0.3, std=0.0), (1, 5), "ddim", 4, noise=noise, on_step=seen.append)
    for progress in seen:
        line = (1 - progress.t) * 0.3 + progress.t * noise
        torch.testing.assert_close(progress.x, line, rtol=0, atol=1e-15)


@pytest.mark.parametrize("sampler", ["ddim", *STOCHASTIC.values()], ids=["ddim", *STOCHASTIC])
def test_modes_keep_their_weights(sampler: Any) -> None:
    images = generate(Mixture(LINEAR), (8, 1, 2048), sampler, 200)
    # weight below 0: all but 3e-7 of the left mode (5 deviations), 0.135 % of the right one (3 deviations)
    below = (images < 0).double().mean().item()
    expected = 0.3 * 0.9999997 + 0.7 * 0.0013499
    # the share of n draws errs by sqrt(p (1 - p) / n) = 0.36 %; four of them
    assert below == pytest.approx(expected, abs=0.0144)
    right, left = images[images > 0], images[images < 0]
    # means err by 0.5 / sqrt(11000) and 0.2 / sqrt(4900); 0.02 covers four of them and the cut at 0
    assert (left.mean().item(), right.mean().item()) == pytest.approx((-1.0, 1.5), abs=0.02)


@pytest.mark.parametrize("sampler", STOCHASTIC.values(), ids=STOCHASTIC)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_stochastic_samplers_approach_the_deviation_of_the_data(schedule: str, sampler: Any) -> None:
    den = Gaussian(getattr(Schedule, schedule)())
    few, many = (abs(final_std(den, sampler, steps) - 0.5) for steps in (25, 200))
    assert many < few / 3  # first order would be 8
    assert many < 0.03


def test_ddim_is_deterministic_and_eta_makes_it_random() -> None:
    den, noise = Gaussian(LINEAR), ones(2, 3)
    same = [generate(den, (2, 3), "ddim", 5, seed=seed, noise=noise) for seed in (0, 7)]
    assert torch.equal(*same)
    other = [generate(den, (2, 3), STOCHASTIC["ddim eta=0.5"], 5, seed=seed, noise=noise) for seed in (0, 7)]
    assert not torch.equal(*other)


def test_a_sampler_is_built_from_a_name_a_dict_or_itself() -> None:
    for name in SAMPLERS:
        rule = build(name)
        assert isinstance(rule, Sampler)
        assert build(rule) is rule
        assert type(build({"kind": name})) is type(rule)


def test_unknown_sampler_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown sampler 'dimm'; did you mean 'ddim'.*ddpm"):
        build("dimm")
    with pytest.raises(ValueError, match="eta"):
        build({"kind": "ddim", "etaa": 1.0})
