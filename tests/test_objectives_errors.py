"""Errors of a guess, the uncertainty of a loss, a first estimate for self-conditioning, and the pairing of noises."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffunet import Denoiser, Objective, Schedule
from diffunet.errors import ConfigError
from diffunet.objectives import ERRORS, first_estimate
from diffunet.objectives.errors import halved
from diffunet.training.pairing import PAIRINGS
from tests import tiny


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 5), (3, 1, 4, 7), (3, 2, 3, 1, 4), (3, 1, 1, 1)])
def test_an_error_is_one_number_a_sample_and_has_a_gradient(error: str, shape: tuple[int, ...]) -> None:
    rule, d = Objective(error=error).error, noise(*shape).requires_grad_(True)
    found = rule(d)
    assert found.shape == (3,)
    torch.testing.assert_close(found, torch.cat([rule(d[i : i + 1]) for i in range(3)]))
    assert torch.autograd.gradcheck(rule, d)


def test_pseudo_huber_is_squared_nearby_and_straight_far_away() -> None:
    rule = Objective(error={"kind": "huber", "c": 0.5}).error
    d = torch.tensor([[1e-5], [0.3], [-200.0]], dtype=torch.float64)
    exact = 2 * 0.5 * ((d**2 + 0.25).sqrt() - 0.5)
    torch.testing.assert_close(rule(d)[1:], exact[1:, 0])
    assert rule(d)[0].item() == pytest.approx(1e-10, rel=1e-9)  # d^2
    assert rule(d)[2].item() == pytest.approx(2 * 0.5 * (200 - 0.5), rel=1e-5)


def test_multi_scale_is_the_mean_over_pooled_sizes() -> None:
    """Against averages over blocks of 1, 2 and 4."""
    d = noise(2, 3, 8, 12)
    wanted = [
        F.avg_pool2d(d, size).pow(2).flatten(1).mean(1) if size > 1 else d.pow(2).flatten(1).mean(1)
        for size in (1, 2, 4)
    ]
    got = Objective(error={"kind": "multi_scale", "scales": 3}).error(d)
    torch.testing.assert_close(got, torch.stack(wanted).mean(0))


def test_an_odd_side_keeps_its_last_value() -> None:
    assert halved(torch.tensor([[[1.0, 3.0, 7.0]]])).tolist() == [[[2.0, 7.0]]]


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_is_what_the_objective_minimises(error: str) -> None:
    den, x0 = tiny.denoiser(), noise(3, 1, 8).float()
    eps, t = noise(3, 1, 8, seed=1).float(), torch.tensor([0.1, 0.5, 1.0])
    _, alpha, sigma = den.levels(t, x0)
    d = den.guess(alpha * x0 + sigma * eps, t) - eps
    objective = Objective(error=error)
    torch.testing.assert_close(objective(den, x0, eps, t), objective.error(d))


def test_the_shown_noise_is_not_the_target() -> None:
    """Input perturbation: the network sees eps + gamma xi and is to tell eps (2301.11706)."""
    den, x0, eps = tiny.denoiser(), noise(2, 1, 8).float(), noise(2, 1, 8, seed=1).float()
    shown, t = eps + 0.1 * noise(2, 1, 8, seed=2).float(), torch.tensor([0.3, 0.9])
    _, alpha, sigma = den.levels(t, x0)
    d = den.guess(alpha * x0 + sigma * shown, t) - eps
    torch.testing.assert_close(Objective()(den, x0, eps, t, shown=shown), (d**2).flatten(1).mean(1))


def test_uncertainty_divides_and_adds() -> None:
    """L / exp(u) + u, least where u = log L (2312.02696)."""
    den = Denoiser(tiny.unet(uncertainty_channels=8), Schedule.linear())
    x0, eps, t = noise(4, 1, 8).float(), noise(4, 1, 8, seed=1).float(), torch.tensor([0.1, 0.3, 0.7, 1.0])
    network: Any = den.network
    u = network.log_variance(den.schedule.network_time(t))
    plain, learned = Objective()(den, x0, eps, t), Objective(uncertainty=True)(den, x0, eps, t)
    torch.testing.assert_close(learned, plain * torch.exp(-u) + u)
    (grad,) = torch.autograd.grad(learned.sum(), network.uncertainty.linear.weight)
    assert grad.abs().sum() > 0
    with pytest.raises(ConfigError, match="uncertainty_channels"):
        Objective(uncertainty=True)(tiny.denoiser(), x0, eps, t)


def test_a_first_estimate_is_shown_where_chosen_and_carries_no_gradient() -> None:
    den = Denoiser(tiny.unet(self_conditioning=True), Schedule.linear(), clip=(-1, 1))
    x_t, t = noise(3, 1, 8).float(), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    previous = first_estimate(den, x_t, t, torch.tensor([True, False, True]))
    assert not previous.requires_grad
    assert torch.equal(previous[1], torch.zeros(1, 8))
    torch.testing.assert_close(previous[[0, 2]], den(x_t, t)[[0, 2]])
    assert not torch.equal(den(x_t, t, previous=previous), den(x_t, t))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_optimal_pairing_has_the_least_distance_of_all(n: int) -> None:
    x0, eps = noise(n, 2, 3).float(), noise(n, 2, 3, seed=1).float()
    order = PAIRINGS["optimal"](x0, eps)
    distance = ((x0[:, None] - eps[None]) ** 2).sum(dim=(2, 3)).numpy()
    least = min(sum(distance[i, p[i]] for i in range(n)) for p in permutations(range(n)))
    assert sorted(order.tolist()) == list(range(n))
    assert float(np.sum(distance[np.arange(n), order.numpy()])) == pytest.approx(least, rel=1e-6)
    assert torch.equal(eps[PAIRINGS["random"](x0, eps)], eps)
