"""Posteriors, the variational bound and a learned variance: DDPM's and improved DDPM's numbers, diffusers, SciPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from diffunet import Denoiser, Objective, Schedule
from diffunet.errors import ConfigError
from diffunet.posterior import BIN, Chain, discretized_log_likelihood, gaussian_kl, posterior
from tests import tiny

EVERY = torch.arange(1000)
GREY = torch.linspace(-1, 1, 256, dtype=torch.float64)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_posterior_variances_are_the_papers() -> None:
    """2006.11239, eq. 7, on linear betas; the first is 0, and its logarithm is the second's."""
    chain = Chain.of(Schedule.linear())
    wanted = [0, 5.45318766e-5, 1.003135541e-2, 1.999998353e-2]
    assert chain.variance[[0, 1, 499, 999]].tolist() == pytest.approx(wanted, rel=1e-8)
    assert chain.log_small[0] == chain.log_small[1]
    torch.testing.assert_close(chain.log_large.exp(), Schedule.linear().betas(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("schedule", [Schedule.linear(), Schedule.cosine(), Schedule.sigmoid(T=50)])
def test_posterior_means_keep_the_marginal(schedule: Schedule) -> None:
    """c1 + c2 sqrt(abar_t) = sqrt(abar_s), the identity that makes q(x_s | x_0) what it is."""
    chain = Chain.of(schedule)
    before = torch.cat([torch.ones(1, dtype=torch.float64), chain.alphas[:-1]])
    torch.testing.assert_close(chain.by_x0 + chain.by_x_t * chain.alphas, before, rtol=0, atol=3e-13)


@pytest.mark.parametrize("k", [20, 300, 999])
def test_posteriors_are_those_of_diffusers(k: int) -> None:
    theirs = DDPMScheduler(beta_schedule="linear", clip_sample=False, variance_type="fixed_small")
    chain = Chain.of(Schedule.linear())
    assert chain.variance[k].item() == pytest.approx(float(theirs._get_variance(k)), rel=2e-3)  # float32 tables
    eps, x_t, index = noise(1, 1, 6), noise(1, 1, 6, seed=1), torch.tensor([k])
    x0 = (x_t - chain.sigmas[k] * eps) / chain.alphas[k]
    step = theirs.step(eps.float(), k, x_t.float(), generator=torch.Generator().manual_seed(0)).prev_sample
    z = torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(0))
    mean = step - theirs._get_variance(k) ** 0.5 * z
    torch.testing.assert_close(chain.mean(x0, x_t, index).float(), mean, rtol=0, atol=2e-5)


@given(alpha=st.floats(0.01, 0.99), kept=st.floats(0.05, 0.95), noisy=st.floats(0.05, 3), earlier=st.floats(0.05, 0.9))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_a_posterior_is_bayes_rule(alpha: float, kept: float, noisy: float, earlier: float) -> None:
    """Of any Gaussian chain: x_s ~ N(a_s x_0, s_s^2), x_t = r x_s + noise; precisions add."""
    alpha_s, alpha_t, sigma_s = alpha, alpha * kept, earlier
    sigma_t = math.hypot(kept * sigma_s, noisy)
    found = posterior(alpha_t, sigma_t, alpha_s, sigma_s)
    precision = 1 / sigma_s**2 + kept**2 / noisy**2
    assert found.small == pytest.approx(1 / precision, rel=1e-9)
    assert found.large == pytest.approx(noisy**2, rel=1e-9)
    assert found.x_t == pytest.approx(kept / noisy**2 / precision, rel=1e-9)
    assert found.x0 == pytest.approx(alpha_s / sigma_s**2 / precision, rel=1e-9)


def test_a_learned_variance_lies_between_the_posteriors_and_beta() -> None:
    """2102.09672, eq. 15."""
    chain, k = Chain.of(Schedule.cosine()), torch.tensor([0, 1, 500, 999])
    one = torch.ones(4, 1, 2, dtype=torch.float64)
    beta, btilde = (table[k].reshape(-1, 1, 1).expand(4, 1, 2) for table in (chain.log_large, chain.log_small))
    assert torch.equal(chain.log_variance(one, k), beta)
    assert torch.equal(chain.log_variance(0 * one, k), btilde)
    torch.testing.assert_close(chain.log_variance(0.3 * one, k), 0.3 * beta + 0.7 * btilde)


@given(a=st.floats(-3, 3), b=st.floats(-3, 3), s=st.floats(-8, 3), r=st.floats(-8, 3))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_the_gaussian_kl_is_torchs(a: float, b: float, s: float, r: float) -> None:
    a_, b_, s_, r_ = (torch.tensor(v, dtype=torch.float64) for v in (a, b, s, r))
    wanted = kl_divergence(Normal(a_, (s_ / 2).exp()), Normal(b_, (r_ / 2).exp()))
    torch.testing.assert_close(gaussian_kl(a_, s_, b_, r_), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("mean", "log_variance"), [(0.3, -1.0), (-0.2, -8.0), (1.3, 0.5), (-1.0, -14.0)])
def test_grey_values_share_all_the_mass_as_scipy_says(mean: float, log_variance: float) -> None:
    exact = (torch.tensor(value, dtype=torch.float64) for value in (mean, log_variance))
    got = discretized_log_likelihood(GREY, *exact)
    assert got.exp().sum().item() == pytest.approx(1, abs=1e-12)
    normal = stats.norm(mean, math.exp(log_variance / 2))
    inner = GREY[1:-1].numpy()
    near = np.abs(inner - mean) < 8 * normal.std()  # a difference of cdfs has no digits left further out
    wanted = np.where(
        inner > mean,
        normal.sf(inner - BIN) - normal.sf(inner + BIN),
        normal.cdf(inner + BIN) - normal.cdf(inner - BIN),
    )
    np.testing.assert_allclose(got[1:-1].exp().numpy()[near], wanted[near], rtol=1e-8)
    low = discretized_log_likelihood(GREY.float(), torch.tensor(mean), torch.tensor(log_variance))
    assert torch.isfinite(low).all(), "also where no mass is left, in float32"


def test_the_prior_is_what_the_last_step_of_the_chain_has_forgotten() -> None:
    chain = Chain.of(Schedule.linear())
    assert chain.prior(torch.ones(1, 3)).item() == pytest.approx(2.9112945e-5, rel=1e-6)
    assert chain.prior(torch.zeros(1, 3)).item() == pytest.approx(5.87e-10, rel=2e-3)


def test_the_bound_of_a_perfect_guess_is_what_its_variance_costs() -> None:
    """KL of two centred Gaussians for k > 0; at k = 0 how much mass falls on the right grey value."""
    chain, k = Chain.of(Schedule.linear()), torch.tensor([1, 500, 999])
    x0, x_t = GREY[[3, 100, 200]].reshape(3, 1, 1), noise(3, 1, 1)
    own = chain.fixed(k, x0)
    assert chain.bound(x0, x_t, k, x0, own).abs().max() < 1e-12
    wider = gaussian_kl(torch.zeros(1), own[:, 0, 0], torch.zeros(1), chain.fixed(k, x0, "large")[:, 0, 0])
    torch.testing.assert_close(chain.bound(x0, x_t, k, x0, chain.fixed(k, x0, "large")), wider / math.log(2))
    first = chain.bound(x0, x_t, torch.zeros(3, dtype=torch.long), x0, torch.full_like(x0, -14.0))
    # deviation exp(-7) = 0.23 of half a bin: all but 1.7e-5 of the mass
    assert first.tolist() == pytest.approx([0.0] * 3, abs=3e-5)


def test_a_schedule_without_steps_has_no_chain_of_its_own() -> None:
    with pytest.raises(ConfigError, match="no steps of its own"):
        Chain.of(Schedule.flow())
    assert Chain.of(Schedule.flow(), (0.0, 0.25, 0.5, 0.9)).steps == 3


class Pair(nn.Module):
    """A network of two numbers: its guess and its variance's output, everywhere the same."""

    class config:  # noqa: N801
        learned_variance, num_classes, self_conditioning = True, None, False

    def __init__(self, guess: float, variance: float) -> None:
        super().__init__()
        self.guess, self.variance = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (guess, variance))

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return torch.cat([self.guess * torch.ones_like(x), self.variance * torch.ones_like(x)], dim=1)


@pytest.mark.parametrize("T", [1000, 50])
def test_the_hybrid_loss_is_simple_and_a_thousandth_of_the_bound(T: int) -> None:
    """2102.09672, eq. 16: the bound is T times the mean of its terms."""
    den = Denoiser(Pair(0.2, -0.4), Schedule.linear(T=T, beta_start=0.1 / T, beta_end=20 / T))
    k = torch.tensor([0, 1, T // 2, T - 1])
    t, x0, eps = (k + 1).double() / T, GREY[noise(4, 1, 5).abs().mul(60).long()], noise(4, 1, 5, seed=1)
    chain = Chain.of(den.schedule)
    alpha, sigma = (table[k].reshape(-1, 1, 1) for table in (chain.alphas, chain.sigmas))
    x_t = alpha * x0 + sigma * eps
    guess = (x_t - sigma * 0.2) / alpha
    v = torch.full_like(x0, (1 - 0.4) / 2)
    bound = chain.bound(x0, x_t, k, guess, chain.log_variance(v, k))
    wanted = Objective()(den, x0, eps, t) + 0.001 * T * bound
    got = Objective(variance="hybrid")(den, x0, eps, t)
    torch.testing.assert_close(got, wanted.float(), rtol=1e-4, atol=1e-5)  # terms in float32


def test_the_bound_moves_the_variance_and_not_the_guess() -> None:
    den = Denoiser(Pair(0.2, -0.4), Schedule.linear())
    x0, eps, t = GREY[noise(4, 1, 5).abs().mul(60).long()], noise(4, 1, 5), torch.tensor([0.001, 0.2, 0.7, 1.0])
    network: Any = den.network
    Objective()(den, x0, eps, t).mean().backward()
    alone = network.guess.grad.clone()
    assert network.variance.grad.item() == 0
    den.zero_grad()
    Objective(variance="hybrid")(den, x0, eps, t).mean().backward()
    torch.testing.assert_close(network.guess.grad, alone, rtol=1e-6, atol=0)
    assert network.variance.grad.abs() > 0


def test_the_best_variance_is_the_truth() -> None:
    """With the right guess the bound is least at v = 0, the posterior's own variance."""
    chain, k = Chain.of(Schedule.linear()), torch.tensor([400])
    x0, x_t = GREY[[40]].reshape(1, 1, 1), noise(1, 1, 1)
    v = torch.zeros(1, 1, 1, dtype=torch.float64, requires_grad=True)
    chain.bound(x0, x_t, k, x0, chain.log_variance(v, k)).sum().backward()
    assert v.grad is not None
    assert abs(v.grad.item()) < 1e-9


def test_hybrid_needs_a_variance_and_steps() -> None:
    x, t = torch.zeros(2, 1, 8), torch.full((2,), 0.5)
    with pytest.raises(ConfigError, match=r"needs a network with model\.learned_variance"):
        Objective(variance="hybrid")(tiny.denoiser(), x, x, t)
    den = Denoiser(tiny.unet(learned_variance=True), Schedule.flow(), "flow")
    with pytest.raises(ConfigError, match="needs a schedule of T steps"):
        Objective(variance="hybrid")(den, x, x, t)
