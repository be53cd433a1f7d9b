"""Losses of segmentation, all on logits: softmax over K > 1 channels, a sigmoid where there is only one.

A loss takes logits (B, K, *S), the classes (B, *S) as int64 and a weight for each pixel (B, *S) or None, and gives one
loss per image (B,). With one channel the logit is that of class 1 against class 0.

Legend: B batch, K classes, *S spatial, y one-hot labels, p probabilities, w pixel weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffunet.spec import DiceLoss, FocalLoss, LossConfig, SumLoss, TverskyLoss
from diffunet.table import Table

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def two_sided(logits: Tensor) -> Tensor:
    """Logits (B, max(K, 2), *S): one channel z becomes the pair (0, z), whose softmax is the sigmoid of z."""
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def probabilities(logits: Tensor) -> Tensor:
    """Class probabilities (B, max(K, 2), *S), in float32 or better."""
    return two_sided(_exact(logits)).softmax(dim=1)


def _exact(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _one_hot(target: Tensor, classes: int, like: Tensor) -> Tensor:
    """y (B, K, *S) of classes (B, *S)."""
    return F.one_hot(target, classes).movedim(-1, 1).to(like.dtype)


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of w times the values (B, *S) over the pixels of each image.

    Divided by the number of pixels, not by the sum of w: the paper's sum, at a scale that no crop size changes.
    """
    return (values if weight is None else values * weight).flatten(1).mean(dim=1)


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """-w log p of the right class, mean over pixels (1505.04597, eq. 1)."""
    return _mean(F.cross_entropy(two_sided(_exact(logits)), target, reduction="none"), weight)


def binary_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """-w (y log s + (1 - y) log(1 - s)) with s the sigmoid of each channel, mean over pixels and channels."""
    logits = _exact(logits)
    y = target[:, None].to(logits.dtype) if logits.shape[1] == 1 else _one_hot(target, logits.shape[1], logits)
    return _mean(F.binary_cross_entropy_with_logits(logits, y, reduction="none").mean(dim=1), weight)


def focal(logits: Tensor, target: Tensor, weight: Tensor | None = None, *, gamma: float) -> Tensor:
    """-w (1 - p)^gamma log p of the right class, mean over pixels (1708.02002, eq. 4)."""
    log_p = -F.cross_entropy(two_sided(_exact(logits)), target, reduction="none")
    # 1 - exp(log p) without the cancellation of a p near 1; never 0, where a root (gamma < 1) has no slope
    miss = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
    return _mean(miss**gamma * -log_p, weight)


def tversky(logits: Tensor, target: Tensor, *, alpha: float, beta: float, smooth: float) -> Tensor:
    """1 - (TP + s) / (TP + alpha FP + beta FN + s) of each class, mean over classes (1706.05721, eq. 3).

    TP = sum p y, FP = sum p (1 - y), FN = sum (1 - p) y over the pixels of one image, so that the loss does not depend
    on how images are batched.
    """
    p = probabilities(logits).flatten(2)
    y = _one_hot(target, p.shape[1], p).flatten(2)
    true, false_positive, false_negative = ((a * b).sum(dim=2) for a, b in ((p, y), (p, 1 - y), (1 - p, y)))
    index = (true + smooth) / (true + alpha * false_positive + beta * false_negative + smooth)
    return 1 - index.mean(dim=1)


def dice(logits: Tensor, target: Tensor, *, smooth: float) -> Tensor:
    """1 - (2 sum p y + s) / (sum p + sum y + s) of each class, mean over classes (1606.04797): Tversky's halves."""
    return tversky(logits, target, alpha=0.5, beta=0.5, smooth=smooth / 2)


def _pixelwise(loss: Loss) -> Callable[[Any], Loss]:
    return lambda config: loss


def _focal(config: FocalLoss) -> Loss:
    return lambda logits, target, weight: focal(logits, target, weight, gamma=config.gamma)


# Overlaps are of whole images and leave the weight of a pixel alone.


def _dice(config: DiceLoss) -> Loss:
    return lambda logits, target, weight: dice(logits, target, smooth=config.smooth)


def _tversky(config: TverskyLoss) -> Loss:
    options = config.model_dump(exclude={"kind"})
    return lambda logits, target, weight: tversky(logits, target, **options)


def _sum(config: SumLoss) -> Loss:
    parts = [make(part) for part in config.losses]
    weights = config.weights or (1.0,) * len(parts)

    def total(logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        return torch.stack([w * part(logits, target, weight) for w, part in zip(weights, parts, strict=True)]).sum(0)

    return total


def make(config: LossConfig) -> Loss:
    """The loss of a spec: (logits, classes, pixel weights or None) -> (B,)."""
    return LOSSES.build(config)


LOSSES: Table[Callable[[Any], Loss]] = Table(
    "loss",
    {
        "cross_entropy": _pixelwise(cross_entropy),
        "bce": _pixelwise(binary_cross_entropy),
        "focal": _focal,
        "dice": _dice,
        "tversky": _tversky,
        "sum": _sum,
    },
)
