"""Guidance: what each scale means, when it acts, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffunet import Denoiser, Schedule, generate
from diffunet.errors import ConfigError
from diffunet.guidance import ClassifierFree
from tests import tiny
from tests.oracles import Gaussian

LINEAR = Schedule.linear()
SHAPE = (4, 1, 8)
LABELS = torch.tensor([0, 1, 2, 1])


class Classes(nn.Module):
    """The exact guess of x_0 for classes that are N(mean, 0.5^2), on the linear schedule; records its batch sizes."""

    def __init__(self, *means: float) -> None:
        super().__init__()
        self.means = torch.tensor(means, dtype=torch.float64)
        self.null_label = len(means) - 1
        self.calls: list[int] = []

    def forward(self, x: Tensor, k: Tensor, class_labels: Tensor) -> Tensor:
        self.calls.append(len(x))
        mean = self.means[class_labels].reshape(-1, *[1] * (x.ndim - 1))
        centred = Gaussian(LINEAR)
        alpha = LINEAR.alpha((k.double() + 1) / 1000).reshape(mean.shape)
        return mean + centred(x - alpha * mean, (k.double() + 1) / 1000)


def classes(*means: float, clip: tuple[float, float] | None = None) -> Denoiser:
    """A denoiser of classes with these means; the last is the null class."""
    return Denoiser(Classes(*means), LINEAR, "x0", clip)


@pytest.fixture(scope="module")
def net() -> Denoiser:
    return tiny.denoiser(num_classes=3, null_class=True)


@pytest.fixture
def x_t() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def test_scale_1_is_the_conditional_model_bit_for_bit(net: Denoiser, x_t: Tensor) -> None:
    assert torch.equal(ClassifierFree(net, 1.0)(x_t, 0.5, class_labels=LABELS), net(x_t, 0.5, class_labels=LABELS))
    guided = generate(net, SHAPE, steps=5, guidance=1.0, class_labels=LABELS)
    assert torch.equal(guided, generate(net, SHAPE, steps=5, class_labels=LABELS))


def test_scale_0_is_the_unconditional_model(net: Denoiser, x_t: Tensor) -> None:
    null = torch.full_like(LABELS, 3)
    guided = ClassifierFree(net, 0.0)(x_t, 0.5, class_labels=LABELS)
    # twice the batch may sum float32 in another order
    torch.testing.assert_close(guided, net(x_t, 0.5, class_labels=null), rtol=0, atol=1e-5)
    torch.testing.assert_close(guided, net(x_t, 0.5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [-1.0, 0.5, 2.0, 7.5])
def test_scale_extrapolates_from_the_unconditional_estimate(net: Denoiser, x_t: Tensor, scale: float) -> None:
    x0_c, x0_u = net.estimate(x_t, 0.5, class_labels=LABELS), net.estimate(x_t, 0.5)
    guided = ClassifierFree(net, scale)(x_t, 0.5, class_labels=LABELS)
    expected = (x0_u + scale * (x0_c - x0_u)).clamp(-1, 1)
    torch.testing.assert_close(guided, expected, rtol=0, atol=1e-5 * (1 + abs(scale)))
    assert not torch.allclose(guided, net(x_t, 0.5, class_labels=LABELS), atol=1e-3)


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.7, 0.3), (1.0, 2.0)])
def test_an_empty_interval_is_the_conditional_model_bit_for_bit(net: Denoiser, interval: tuple[float, float]) -> None:
    guided = generate(net, SHAPE, steps=5, guidance=4.0, guidance_interval=interval, class_labels=LABELS)
    assert torch.equal(guided, generate(net, SHAPE, steps=5, class_labels=LABELS))


@pytest.mark.parametrize(
    ("interval", "guided"),
    [
        ((0.0, 1.0), range(10)),
        ((0.3, 0.7), range(3, 7)),  # times 0.7, 0.6, 0.5, 0.4: low < t <= high
        ((0.0, 0.1), [9]),
        ((0.9, 1.0), [0]),
        ((0.5, 0.5), []),
    ],
)
def test_one_call_a_step_of_twice_the_batch_inside_the_interval(interval: tuple[float, float], guided: Any) -> None:
    den = classes(1.0, 0.0)
    generate(den, SHAPE, "ddim", 10, guidance=3.0, guidance_interval=interval, class_labels=0)
    assert den.network.calls == [8 if i in set(guided) else 4 for i in range(10)]


def test_the_threshold_comes_after_the_mixing() -> None:
    """Estimates of 3 and 2 would both be 1 after their own threshold, and so would every mixture of them."""
    den, label = classes(3.0, 2.0, clip=(-1.0, 1.0)), torch.zeros(1, dtype=torch.long)
    x_t = torch.zeros(1, 1, 2, dtype=torch.float64)
    assert torch.equal(den(x_t, 1.0, class_labels=label), torch.ones_like(x_t))
    assert torch.equal(ClassifierFree(den, -4.0)(x_t, 1.0, class_labels=label), -torch.ones_like(x_t))
    half = ClassifierFree(den, -1.5)(x_t, 1.0, class_labels=label)
    # alpha^2 = 4e-5 at t = 1: that is how far an estimate is from its class mean
    torch.testing.assert_close(half, torch.full_like(x_t, 0.5), rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_two_gaussians_are_guided_to_a_gaussian_with_the_mixed_mean(sampler: str, scale: float) -> None:
    """Equal variances: the guided score is that of a Gaussian with mean m_u + w (m_c - m_u)."""
    mean_c, mean_u = 0.8, -0.1
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    guided = generate(classes(mean_c, mean_u), SHAPE, sampler, 20, noise=noise, guidance=scale, class_labels=0)
    mixed = Gaussian(LINEAR, mean=mean_u + scale * (mean_c - mean_u))
    # float64, but the network is told a float32 index
    torch.testing.assert_close(guided, generate(mixed, SHAPE, sampler, 20, noise=noise), rtol=0, atol=1e-10)


def test_each_image_is_guided_to_its_own_class() -> None:
    den, labels = classes(-1.0, 1.0, 0.0), torch.tensor([0, 1, 1, 0])
    images = generate(den, SHAPE, steps=10, guidance=2.0, class_labels=labels)
    for i, label in enumerate(labels.tolist()):
        alone = generate(den, (1, *SHAPE[1:]), steps=10, seed=i, guidance=2.0, class_labels=label)
        torch.testing.assert_close(images[i : i + 1], alone, rtol=0, atol=1e-5)


def test_other_conditions_go_to_both_halves(x_t: Tensor) -> None:
    net = tiny.denoiser(clip=None, num_classes=3, null_class=True, cond_channels=1)
    x0_c, x0_u = net(x_t, 0.5, class_labels=LABELS, cond=x_t.flip(0)), net(x_t, 0.5, cond=x_t.flip(0))
    guided = ClassifierFree(net, 3.0)(x_t, 0.5, class_labels=LABELS, cond=x_t.flip(0))
    torch.testing.assert_close(guided, x0_u + 3 * (x0_c - x0_u), rtol=0, atol=1e-4)


def test_guidance_needs_a_null_class() -> None:
    for den in (tiny.denoiser(), tiny.denoiser(num_classes=3), Gaussian(LINEAR)):
        with pytest.raises(ConfigError, match=r"model.null_class = true"):
            ClassifierFree(den, 2.0)
        with pytest.raises(ConfigError, match=r"model.null_class = true"):
            generate(den, SHAPE, guidance=2.0)


def test_guidance_needs_a_class_to_lead_to(net: Denoiser) -> None:
    with pytest.raises(ConfigError, match="guidance needs class_labels"):
        generate(net, SHAPE, guidance=2.0)
