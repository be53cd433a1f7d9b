"""Segmentation losses are what their papers' formulas say, on logits, with gradients that are right."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from diffunet import losses, spec
from diffunet.losses import LOSSES

B, K, SIDES = 3, 4, (5, 7)
KINDS: dict[str, Any] = {
    "cross_entropy": spec.CrossEntropyLoss(),
    "bce": spec.BinaryCrossEntropyLoss(),
    "focal": spec.FocalLoss(gamma=1.5),
    "dice": spec.DiceLoss(smooth=0.5),
    "tversky": spec.TverskyLoss(alpha=0.2, beta=0.9),
    "sum": spec.SumLoss(weights=(0.5, 2.0)),
}
every_loss = pytest.mark.parametrize("kind", KINDS)


def example(channels: int = K) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits in float64, classes and pixel weights."""
    logits = torch.randn(B, channels, *SIDES, dtype=torch.float64) * 2
    target = torch.randint(max(channels, 2), (B, *SIDES))
    return logits, target, torch.rand(B, *SIDES, dtype=torch.float64) + 0.5


def of(kind: str, *inputs: Any) -> torch.Tensor:
    """The loss of this kind."""
    return losses.make(KINDS[kind])(*inputs)


def test_every_loss_of_the_table_is_tried_here() -> None:
    assert set(KINDS) == set(LOSSES)


def test_cross_entropy_is_that_of_torch_with_the_weight_of_each_pixel() -> None:
    logits, target, weight = example()
    each = F.cross_entropy(logits, target, reduction="none")
    assert torch.allclose(of("cross_entropy", logits, target, None), each.mean((1, 2)))
    assert torch.allclose(of("cross_entropy", logits, target, weight), (each * weight).mean((1, 2)))


def test_cross_entropy_of_equal_logits_is_the_logarithm_of_the_classes() -> None:
    target = torch.randint(K, (B, *SIDES))
    assert torch.allclose(of("cross_entropy", torch.zeros(B, K, *SIDES), target, None), torch.tensor(math.log(K)))


@pytest.mark.parametrize("kind", ["cross_entropy", "focal", "dice", "tversky", "sum"])
def test_one_channel_is_a_sigmoid_and_two_are_a_softmax(kind: str) -> None:
    """The logit z of one channel is the difference of two; the pair (z, 2 z) and the pair (0, z) say the same."""
    logits, target, weight = example(1)
    assert torch.allclose(
        of(kind, logits, target, weight), of(kind, torch.cat([logits, 2 * logits], 1), target, weight)
    )
    assert torch.allclose(losses.probabilities(logits)[:, 1], logits[:, 0].sigmoid())


def test_binary_cross_entropy_is_that_of_torch() -> None:
    logits, target, weight = example(1)
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], target.double(), weight, reduction="none")
    assert torch.allclose(of("bce", logits, target, weight), expected.mean((1, 2)))
    assert torch.allclose(of("bce", logits, target, None), of("cross_entropy", logits, target, None))
    logits, target, _ = example()
    one_hot = torch.stack([(target == k).double() for k in range(K)], dim=1)
    expected = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none").mean((1, 2, 3))
    assert torch.allclose(of("bce", logits, target, None), expected)


def test_focal_without_its_factor_is_cross_entropy_and_with_it_the_paper_s() -> None:
    logits, target, weight = example()
    plain = losses.focal(logits, target, weight, gamma=0.0)
    assert torch.allclose(plain, losses.cross_entropy(logits, target, weight))
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    assert torch.allclose(of("focal", logits, target, weight), (weight * (1 - p) ** 1.5 * -p.log()).mean((1, 2)))


def test_a_root_of_an_error_of_zero_has_a_finite_slope() -> None:
    logits = torch.tensor([[[200.0], [-200.0]]], requires_grad=True)
    losses.focal(logits, torch.zeros(1, 1, dtype=torch.long), gamma=0.5).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_dice_of_a_hand_made_case() -> None:
    """Four pixels, p of class 1: 1, 1, 0, 0.5 and label 1, 0, 0, 1: TP 1.5, sums 2.5 and 2; class 0: TP 1, 1.5, 2."""
    p = torch.tensor([1 - 1e-12, 1 - 1e-12, 1e-12, 0.5], dtype=torch.float64)
    logits, target = torch.logit(p)[None, None], torch.tensor([[1, 0, 0, 1]])
    dice = [(2 * 1.5 + 1) / (2.5 + 2 + 1), (2 * 1 + 1) / (1.5 + 2 + 1)]
    assert losses.dice(logits, target, smooth=1.0).item() == pytest.approx(1 - sum(dice) / 2)


def test_tversky_of_a_hand_made_case() -> None:
    """The same pixels: class 1 has TP 1.5, FP 1, FN 0.5; class 0 has TP 1, FP 0.5, FN 1."""
    p = torch.tensor([1 - 1e-12, 1 - 1e-12, 1e-12, 0.5], dtype=torch.float64)
    logits, target = torch.logit(p)[None, None], torch.tensor([[1, 0, 0, 1]])
    one, zero = 2.5 / (1.5 + 0.3 * 1 + 0.7 * 0.5 + 1), 2 / (1 + 0.3 * 0.5 + 0.7 * 1 + 1)
    found = losses.tversky(logits, target, alpha=0.3, beta=0.7, smooth=1.0)
    assert found.item() == pytest.approx(1 - (one + zero) / 2)


def test_a_class_that_is_absent_and_not_found_costs_nothing() -> None:
    logits = torch.tensor([100.0, -100.0, -100.0]).reshape(1, 3, 1).expand(1, 3, 6)
    target = torch.zeros(1, 6, dtype=torch.long)
    assert losses.dice(logits, target, smooth=1.0).item() == pytest.approx(0, abs=1e-6)
    missed = losses.dice(-logits, target, smooth=1.0).item()
    assert 0.5 < missed <= 1


@every_loss
def test_a_perfect_answer_costs_nothing_and_a_wrong_one_most(kind: str) -> None:
    target = torch.randint(K, (B, *SIDES))
    right = torch.stack([(target == k).float() for k in range(K)], dim=1) * 80 - 40
    assert torch.allclose(of(kind, right, target, None), torch.zeros(B), atol=1e-5)
    assert (of(kind, -right, target, None) > of(kind, right * 0, target, None)).all()


@every_loss
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_are_right(kind: str, channels: int) -> None:
    """Against finite differences in float64, in one, two and three dimensions."""
    for sides in ((5,), (2, 3), (2, 1, 2)):
        logits = torch.randn(2, channels, *sides, dtype=torch.float64, requires_grad=True)
        target = torch.randint(max(2, channels), (2, *sides))
        weight = torch.rand(2, *sides, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda x, t=target, w=weight: of(kind, x, t, w), (logits,))


@every_loss
def test_each_image_has_its_own_loss(kind: str) -> None:
    """What stands beside it in a batch changes nothing, so that accumulation and ranks do not either."""
    logits, target, weight = example()
    together = of(kind, logits, target, weight)
    alone = torch.cat([of(kind, logits[i : i + 1], target[i : i + 1], weight[i : i + 1]) for i in range(B)])
    assert together.shape == (B,)
    assert torch.allclose(together, alone)


@every_loss
def test_half_precision_logits_are_summed_in_float32(kind: str) -> None:
    logits, target, weight = (x.float() if x.is_floating_point() else x for x in example())
    low = of(kind, logits.bfloat16(), target, weight)
    assert low.dtype == torch.float32
    assert torch.allclose(low, of(kind, logits.bfloat16().float(), target, weight))


def test_a_sum_is_the_weighted_sum_of_its_losses() -> None:
    logits, target, weight = example()
    expected = 0.5 * losses.cross_entropy(logits, target, weight) + 2.0 * losses.dice(logits, target, smooth=1.0)
    assert torch.allclose(of("sum", logits, target, weight), expected)
    three = spec.SumLoss(losses=(spec.FocalLoss(), spec.TverskyLoss(), spec.BinaryCrossEntropyLoss()))
    parts = sum(losses.make(part)(logits, target, weight) for part in three.losses)
    assert torch.allclose(losses.make(three)(logits, target, weight), parts)
