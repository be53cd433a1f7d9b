"""Objectives: the published weights, and what a network that guesses zero must cost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffunet import Denoiser, Objective, Schedule
from diffunet.objectives import WEIGHTS
from diffunet.predictions import PREDICTIONS
from tests import tiny
from tests.tiny import PROCESSES


class Zero(nn.Module):
    """A network that always guesses zero."""

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return torch.zeros_like(x)


class OffByOne(nn.Module):
    """A network whose every guess is wrong by one, on data and noise that are zero."""

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return torch.ones_like(x)


@pytest.mark.parametrize(
    ("prediction", "snr", "weight"),
    [
        # min(S, 5) in x0 terms; / S for eps; / (S + 1) for v (2303.09556)
        ("x0", 100, 5),
        ("x0", 1, 1),
        ("eps", 100, 0.05),
        ("eps", 1, 1),
        ("eps", 1e-12, 1),
        ("v", 100, 0.0495050),
        ("v", 1, 0.5),
    ],
)
def test_min_snr_weights_are_the_papers(prediction: str, snr: float, weight: float) -> None:
    s = torch.tensor([snr], dtype=torch.float64)
    alpha, sigma = (s / (1 + s)).sqrt(), (1 / (1 + s)).sqrt()
    rule = Objective("min_snr", gamma=5.0).weight
    got = rule(PREDICTIONS[prediction]().x0_weight(alpha, sigma), s)
    assert got.item() == pytest.approx(weight, rel=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_min_snr_weighs_the_loss_of_every_index(prediction: str, gamma: float) -> None:
    den = Denoiser(OffByOne(), Schedule.linear(), prediction)
    t = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    nothing = torch.zeros(1000, 1, 2)
    loss = Objective("min_snr", gamma=gamma)(den, nothing, nothing, t)
    alpha2 = den.schedule.alpha(t) ** 2
    snr = alpha2 / (1 - alpha2)
    expected = {"x0": snr.clamp(max=gamma), "eps": (gamma / snr).clamp(max=1), "v": snr.clamp(max=gamma) / (snr + 1)}
    torch.testing.assert_close(loss, expected[prediction].float(), rtol=1e-5, atol=0)  # a float32 loss


SNRS = [1e-4, 0.3, 1.0, 7.0, 100.0]


@pytest.mark.parametrize("snr", SNRS)
@pytest.mark.parametrize(
    ("weight", "on_x0"),
    [
        ({"kind": "min_snr", "gamma": 5.0}, lambda s: min(s, 5)),
        ({"kind": "soft_min_snr", "gamma": 4.0}, lambda s: 1 / (1 / s + 1 / 4)),  # 1 / (sigma^2 + 1/gamma), 2401.11605
        ({"kind": "p2"}, lambda s: s / (1 + s)),  # eps weight times 1 / (1 + S), 2204.00227
        ({"kind": "p2", "k": 2.0, "gamma": 0.5}, lambda s: s / (2 + s) ** 0.5),
        ({"kind": "edm"}, lambda s: (1 / s + 0.25) / (0.25 / s)),  # (r^2 + sd^2) / (r sd)^2, 2206.00364
        ({"kind": "sigmoid", "bias": 1.0}, lambda s: s / (1 + s / math.e)),  # sigmoid(1 - log S) = 1 / (1 + S / e)
        ({"kind": "truncated_snr"}, lambda s: max(s, 1)),
    ],
)
def test_weights_are_the_papers_on_the_error_of_the_image(weight: dict[str, Any], on_x0: Any, snr: float) -> None:
    s = torch.tensor([snr], dtype=torch.float64)
    alpha, sigma = (s / (1 + s)).sqrt(), (1 / (1 + s)).sqrt()
    for prediction in ("x0", "eps", "v"):
        x0_weight = PREDICTIONS[prediction]().x0_weight(alpha, sigma)
        got = Objective(weight).weight(x0_weight, s)
        assert got.item() == pytest.approx(on_x0(snr) * x0_weight.item(), rel=1e-12)


@pytest.mark.parametrize(("sigma", "weight"), [(0.5, 8.0), (1.0, 5.0)])
def test_edms_weight_is_its_table(sigma: float, weight: float) -> None:
    """lambda on the image, and lambda c_out^2 = 1 on its own guess (2206.00364, table 1)."""
    rule, r, one = Objective("edm").weight, torch.tensor([sigma], dtype=torch.float64), torch.ones(1).double()
    assert rule(one, r**-2).item() == pytest.approx(weight)
    assert rule(PREDICTIONS["edm"]().x0_weight(one, r), r**-2).item() == pytest.approx(1)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_min_snr_is_one_where_no_signal_is_left(prediction: str) -> None:
    zero, one = torch.zeros(1).double(), torch.ones(1).double()
    x0_weight = PREDICTIONS[prediction]().x0_weight(zero, one)
    assert Objective("min_snr").weight(x0_weight, zero).item() == 1


def test_simple_weighs_every_time_alike() -> None:
    den = Denoiser(OffByOne(), Schedule.linear())
    nothing = torch.zeros(4, 1, 2)
    assert torch.equal(Objective()(den, nothing, nothing, torch.tensor([0.001, 0.3, 0.7, 1.0])), torch.ones(4))


@pytest.mark.parametrize("t", [0.05, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_guessing_zero_costs_the_variance_of_the_target(prediction: str, t: float) -> None:
    """On N(0, 0.5^2): 1 for eps and, at every sigma, for EDM."""
    den, n = Denoiser(Zero(), PROCESSES[prediction], prediction), 2**16
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 64, 1, n // 64, generator=generator, dtype=torch.float64)
    loss = Objective()(den, 0.5 * x0, eps, torch.full((64,), t)).mean().item()
    alpha, sigma = den.schedule.alpha(t), den.schedule.sigma(t)
    variance = {"eps": 1, "x0": 0.25, "v": alpha**2 + 0.25 * sigma**2, "flow": 1.25, "edm": 1}[prediction]
    # the mean of n squared Gaussians has a relative deviation of sqrt(2 / n) = 0.55 %; four of them
    assert loss == pytest.approx(variance, rel=0.022)


def test_the_right_guess_costs_nothing() -> None:
    x0 = torch.randn(3, 1, 4, generator=torch.Generator().manual_seed(0))
    den = Denoiser(Zero(), Schedule.linear())
    for weight in WEIGHTS:
        assert torch.equal(Objective(weight)(den, x0, torch.zeros_like(x0), torch.full((3,), 0.5)), torch.zeros(3))


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("shape", [(5, 3), (5, 1, 4), (5, 2, 4, 3), (5, 1, 2, 3, 4), (0, 1, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_float32_loss_per_sample(weight: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    den, x0 = Denoiser(Zero(), Schedule.linear()), torch.ones(shape, dtype=dtype)
    loss = Objective(weight)(den, x0, x0, torch.full((shape[0],), 0.5, dtype=torch.float64))
    assert (loss.shape, loss.dtype) == ((shape[0],), torch.float32)


def test_a_loss_depends_on_its_own_sample_only() -> None:
    den, objective = tiny.denoiser(), Objective("min_snr")
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 4, 1, 8, generator=generator)
    t = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)
    together = objective(den, x0, eps, t)
    alone = torch.cat([objective(den, x0[i : i + 1], eps[i : i + 1], t[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)  # another batch, another order of float32 sums


def test_every_parameter_gets_a_gradient() -> None:
    den = tiny.denoiser(num_classes=3)
    x0 = torch.randn(4, 1, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.1, 0.4, 0.7, 1.0])
    Objective()(den, x0, x0.flip(0), t, class_labels=torch.tensor([0, 1, 2, 0])).mean().backward()
    without = [name for name, p in den.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # one group of a convolution's output is normalised: its bias cancels
    assert [name for name in without if not name.endswith("conv_in.bias")] == []


def test_clip_does_not_touch_the_loss() -> None:
    x0 = torch.randn(4, 1, 8, generator=torch.Generator().manual_seed(0))
    t = torch.full((4,), 0.9)
    clipped, free = (Objective()(tiny.denoiser(clip=clip), x0, x0.flip(0), t) for clip in ((-0.1, 0.1), None))
    assert torch.equal(clipped, free)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_times_lie_on_the_grid_of_the_schedule(prediction: str) -> None:
    den = Denoiser(Zero(), PROCESSES[prediction], prediction)
    u = torch.rand(500, generator=torch.Generator().manual_seed(0))
    t = Objective().times(den, u)
    assert (t.shape, t.dtype) == ((500,), torch.float64)
    assert torch.equal(t, den.schedule.training_time(u))
    if hasattr(den.schedule.config, "T"):
        k = t * den.schedule.config.T
        torch.testing.assert_close(k, k.round(), rtol=0, atol=1e-9)


def test_unknown_weight_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"min_snrr.*min_snr"):
        Objective("min_snrr")
