"""Bits per dimension: closed forms on Gaussians, both bounds on grey values, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from diffunet import Denoiser, Schedule
from diffunet.errors import ConfigError
from diffunet.likelihood import BINS, flow, variational
from diffunet.likelihood.base import Batch, decode
from diffunet.likelihood.bound import Steps
from diffunet.posterior import Chain
from diffunet.samplers import Noise
from tests import tiny
from tests.oracles import Gaussian, Mixture

LINEAR = Schedule.linear()
ENTROPY = 1.04709559  # of N(0, 0.5^2), log2(0.5 sqrt(2 pi e))
LINEAR_BOUND = 1.70547  # of N(0, 0.5^2) over the 1000 steps of the linear schedule, fixed-small


def normal(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the bound --------------------------------------------------------------------------------------------------------


class Signs(Noise):
    """Noise of 1 and -1 in turn: beside x0 = 0.5, 0.5, -0.5, -0.5 the mean of any square is that of two Gaussians."""

    def like(self, x: Tensor) -> Tensor:
        return torch.tensor([1.0, -1.0], dtype=x.dtype).repeat(len(x) // 2).reshape(x.shape)


def gaussian_bound(T: int = 1000) -> dict[str, float]:
    """E over x0 ~ N(0, 1/4) of every term, in bits, from the schedule's numbers alone (numpy, not our posterior).

    An exact denoiser errs by the posterior's variance p = v (1 - abar) / (abar v + 1 - abar), and a step by c1 times
    that: KL = c1^2 p / (2 btilde). The last one is the density under N(D, beta_1).
    """
    v, beta = 0.25, np.linspace(1e-4, 0.02, T)
    bar = np.cumprod(1 - beta)
    before = np.concatenate([[1.0], bar[:-1]])
    btilde, c1 = (1 - before) / (1 - bar) * beta, np.sqrt(before) * beta / (1 - bar)
    p = v * (1 - bar) / (bar * v + 1 - bar)
    steps = c1[1:] ** 2 * p[1:] / (2 * btilde[1:])
    last = np.log(2 * np.pi * beta[0]) / 2 + p[0] / (2 * beta[0])
    prior = (bar[-1] * (v - 1) - np.log(1 - bar[-1])) / 2
    return {"decoder": last / np.log(2), "steps": steps.sum() / np.log(2), "prior": prior / np.log(2)}


def test_the_bound_of_a_gaussian_is_its_closed_form() -> None:
    expected = gaussian_bound()
    assert sum(expected.values()) == pytest.approx(LINEAR_BOUND, abs=1e-4)
    batch = Batch(torch.tensor([0.5, 0.5, -0.5, -0.5], dtype=torch.float64).reshape(4, 1), {}, Signs(range(4)))
    found = Steps(Gaussian(LINEAR), Chain.of(LINEAR), "small", None)(batch, None)
    assert found.mean == pytest.approx(LINEAR_BOUND, abs=1e-4)
    parts = {name: float(value.mean()) for name, value in found.parts.items()}
    assert parts["decoder"] == pytest.approx(expected["decoder"], abs=1e-9)
    assert parts["prior"] == pytest.approx(expected["prior"], abs=1e-9)
    assert sum(v for name, v in parts.items() if name.startswith("t ")) == pytest.approx(expected["steps"], abs=1e-6)


def test_the_prior_costs_what_the_reference_says() -> None:
    x0 = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64).reshape(3, 1)
    prior = variational(Gaussian(Schedule.linear(T=1000)), x0, times=1).parts["prior"]
    assert prior.tolist() == pytest.approx([2.9112945e-5, 2.9112945e-5, 5.87e-10], rel=1e-3)


def test_real_noise_gives_the_bound_in_the_mean_whatever_the_times() -> None:
    """The closed form given x0: 4000 values at T = 20 steps have a standard error of 0.055."""
    schedule, x0 = Schedule.linear(T=20, beta_start=0.01, beta_end=0.5), 0.5 * normal((4, 1000))
    whole = variational(Gaussian(schedule), x0)
    beta = np.linspace(0.01, 0.5, 20)
    bar = np.cumprod(1 - beta)
    gain = np.sqrt(bar) * 0.25 / (bar * 0.25 + 1 - bar)  # D = gain x_t
    error = (1 - gain * np.sqrt(bar)) ** 2 * float((x0**2).mean()) + gain**2 * (1 - bar)
    before = np.concatenate([[1.0], bar[:-1]])
    btilde, c1 = (1 - before) / (1 - bar) * beta, np.sqrt(before) * beta / (1 - bar)
    steps = (c1[1:] ** 2 * error[1:] / (2 * btilde[1:])).sum() / math.log(2)
    assert sum(float(v.mean()) for n, v in whole.parts.items() if n.startswith("t ")) == pytest.approx(steps, abs=0.22)
    some = [variational(Gaussian(schedule), x0, times=5, seed=seed).mean for seed in range(0, 24, 4)]
    assert np.mean(some) == pytest.approx(whole.mean, abs=4 * np.std(some) / math.sqrt(len(some)))


def test_the_variance_of_a_step_is_a_choice() -> None:
    """KL between Gaussians of two variances, term by term, of an estimate that is exact: only the variances differ."""

    class Knows:
        schedule = Schedule.linear(T=10, beta_start=0.02, beta_end=0.3)

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.full_like(x, 0.4)

    x0, chain = torch.full((2, 3), 0.4, dtype=torch.float64), Chain.of(Knows.schedule)
    small, large = (variational(Knows(), x0, variance=kind) for kind in ("small", "large"))
    steps = [sum(v[0] for n, v in r.parts.items() if n.startswith("t ")).item() for r in (small, large)]
    ratio = (chain.log_small - chain.log_large).exp().numpy()[1:]
    assert steps[0] == pytest.approx(0, abs=1e-12)
    assert steps[1] == pytest.approx((ratio - 1 - np.log(ratio)).sum() / 2 / math.log(2), rel=1e-9)
    with pytest.raises(ConfigError, match="unknown variance 'learned' for this network; one of: small, large"):
        variational(Knows(), x0, variance="learned")


def test_a_learned_variance_is_what_a_step_then_has() -> None:
    class Split(nn.Module):
        """Guess 0.4 and v = 1, the larger variance."""

        config = type("Config", (), {"learned_variance": True})

        def forward(self, x: Tensor, k: Tensor) -> Tensor:
            return torch.cat([torch.full_like(x, 0.4), torch.ones_like(x)], dim=1)

    schedule, x0 = Schedule.linear(T=10, beta_start=0.02, beta_end=0.3), torch.full((2, 1, 3), 0.4, dtype=torch.float64)
    den = Denoiser(Split(), schedule, "x0")
    learned, large = variational(den, x0), variational(den, x0, variance="large")
    torch.testing.assert_close(learned.bits, large.bits, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(variational(den, x0, variance="small").bits, large.bits, atol=1e-3)


# --- grey values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_decoder_is_a_distribution_over_the_grey_values(levels: int) -> None:
    grey = torch.linspace(-1, 1, levels, dtype=torch.float64)[:, None]
    for mean, std in ((0.0, 0.3), (0.93, 0.05), (-1.4, 1e-2)):
        bits = decode(grey, torch.full_like(grey, mean), torch.tensor(2 * math.log(std)).double(), levels)
        assert float((2**-bits).sum()) == pytest.approx(1, abs=1e-9)
        edges = [-np.inf, *((grey[1:, 0] + grey[:-1, 0]) / 2).tolist(), np.inf]
        mass = np.diff(norm.cdf(edges, mean, std))
        likely = mass > 1e-9  # the oracle's difference of two cdfs has few digits left below
        np.testing.assert_allclose((2**-bits).numpy()[likely], mass[likely], rtol=1e-5)


def test_grey_values_drawn_evenly_need_their_logarithm() -> None:
    """An exact model of five of them needs log2(5) bits by the flow, and by the bound what T = 60 steps lose more."""
    levels, schedule = 5, Schedule.cosine(T=60)
    grey = (-1.0, -0.5, 0.0, 0.5, 1.0)
    den = Mixture(schedule, (1 / levels,) * levels, grey, (1e-8,) * levels)
    x0 = torch.tensor(grey, dtype=torch.float64).repeat(10).reshape(5, 10)
    ode, bound = flow(den, x0, levels=levels, tolerance=1e-3), variational(den, x0, levels=levels)
    assert bound.parts["decoder"].max() < 1e-6, "sigma is 0.04 at t_min, and half a bin 0.25"
    # the noise at t_min of 50 values makes a standard error of 0.14, that of all the steps 0.5
    assert ode.mean == pytest.approx(math.log2(levels), abs=0.4)
    assert ode.mean < bound.mean < math.log2(levels) + 2


# --- the flow ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize("schedule", [LINEAR, Schedule.cosine(), Schedule.karras(), Schedule.flow()])
def test_the_flow_of_a_gaussian_gives_its_density(schedule: Schedule, trace: str) -> None:
    """Each image's own -log2 N(x; 0, 0.25); read at t_min, where x_t has (alpha / 2)^2 + sigma^2 for its variance."""
    x0 = 0.5 * normal((3, 1, 2))
    found = flow(Gaussian(schedule), x0, trace=trace)
    closed = -torch.distributions.Normal(0.0, Gaussian(schedule).spread(schedule.t_min)).log_prob(x0)
    # what the flow starts from at t = 1 is held to be N(0, 1): for the linear schedule wrong by 3e-5, for EDM's by 2e-5
    torch.testing.assert_close(found.bits, closed.flatten(1).mean(dim=1) / math.log(2), rtol=0, atol=2e-4)
    exact = -torch.distributions.Normal(0.0, 0.5).log_prob(x0).flatten(1).mean(dim=1) / math.log(2)
    torch.testing.assert_close(found.bits, exact, rtol=0, atol=1e-3 if schedule != Schedule.flow() else 3e-3)


def test_the_flow_of_a_gaussian_costs_its_entropy_in_the_mean() -> None:
    """x0 = 0.5 and -0.5 have the mean square of N(0, 0.25), so that the mean of -log2 p is the entropy itself."""
    found = flow(Gaussian(LINEAR), torch.tensor([[0.5], [-0.5]], dtype=torch.float64), trace="exact")
    assert found.mean == pytest.approx(ENTROPY, abs=1e-3)
    assert len(found.parts) == BINS + 2
    torch.testing.assert_close(sum(found.parts.values()), found.bits)


def test_the_flow_of_a_mixture_gives_its_density() -> None:
    den = Mixture(LINEAR, weights=(0.5, 0.5), means=(-1.0, 1.0))
    x0 = torch.tensor([[-1.1], [0.2], [1.4]], dtype=torch.float64)
    alpha, sigma = (torch.tensor([[f(LINEAR.t_min)]]).double() for f in (LINEAR.alpha, LINEAR.sigma))
    closed = -den.log_density(x0, alpha, sigma)[:, 0] / math.log(2)
    # N(0, 1) at t = 1 for a mixture of mean 0 of which alpha = 0.0064 is left: 1e-4 bits; the rest is the integrator's
    torch.testing.assert_close(flow(den, x0, trace="exact", tolerance=1e-5).bits, closed, rtol=0, atol=1e-3)


def test_hutchinson_is_right_in_the_mean_and_exact_on_a_diagonal() -> None:
    net = tiny.denoiser(clip=None)
    x0 = normal((1, 1, 4)).expand(24, 1, 4)
    exact = flow(net, x0[:1], trace="exact", tolerance=1e-3).mean
    guessed = flow(net, x0, trace="hutchinson", tolerance=1e-3)
    assert guessed.error > 0
    assert guessed.mean == pytest.approx(exact, abs=4 * guessed.error + 2e-3)


# --- what both promise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [variational, flow])
def test_an_images_figure_never_depends_on_its_batch(kind: Any) -> None:
    net = tiny.denoiser(num_classes=3, null_class=True)
    x0, labels = (normal((3, 1, 4)) / 4).clamp(-1, 1), torch.tensor([0, 2, 1])
    options = {"times": 6} if kind is variational else {"tolerance": 1e-2, "start": "noise"}
    whole = kind(net, x0, class_labels=labels, **options)
    parts = [kind(net, x0[i : i + 1], class_labels=labels[i : i + 1], seed=i, **options).bits for i in range(3)]
    # float32 networks sum in another order
    torch.testing.assert_close(torch.cat(parts), whole.bits, rtol=1e-4, atol=1e-4)
    again = kind(net, x0, class_labels=labels, batch_size=2, **options)
    torch.testing.assert_close(again.bits, whole.bits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        (variational, {"schedule": Schedule.karras()}, "schedule 'karras' has no steps of its own"),
        (variational, {"levels": 256}, "not made of 256 values"),
        (flow, {"levels": 256}, "not made of 256 values"),
        (flow, {"levels": 1}, "levels = 1"),
        (flow, {"start": "unifrom"}, "did you mean 'uniform'?"),
        (flow, {"trace": "exakt"}, "did you mean 'exact'?"),
        (flow, {"start": "uniform"}, "needs levels"),
        (flow, {"start": "data", "levels": 3}, "grey values have no density"),
        (flow, {"x0": torch.zeros(0, 2)}, "0 images"),
    ],
)
def test_what_makes_no_sense_is_refused(kind: Any, options: dict[str, Any], expected: str) -> None:
    values = torch.tensor([[0.0, 1.0]]) if options.get("levels") == 3 else torch.tensor([[0.123, 0.9]])
    x0, schedule = options.pop("x0", values), options.pop("schedule", LINEAR)
    with pytest.raises(ConfigError, match=expected):
        kind(Gaussian(schedule), x0, **options)
