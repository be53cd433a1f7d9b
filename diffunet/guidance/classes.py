"""Guidance towards classes, by a network that was trained with and without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from diffunet.errors import ConfigError
from diffunet.guidance.base import Estimates, Guidance, Time, estimate
from diffunet.spec import ClassifierFreeGuidance, CompositionGuidance


class Composition(Guidance):
    """D_u + sum_i w_i (D_i - D_u): images of several classes at once, and of none where w_i < 0 (2206.01714).

    Every image may have its own classes: `den(x_t, t, class_labels=..., **cond)` with labels (B, K), or (B,) where the
    others are the same for all. All the estimates are asked in one call of K + 1 times the batch.

    Args:
        denoiser: a Denoiser whose network has a null class.
        scales: w_1..w_K. The first class is the base of other guidance, and what is left where w = 1.
        classes: the last of the K classes, where all images have the same.

    Raises:
        ConfigError: the denoiser has no null class, or not these; when called, labels that are missing or too few.
    """

    def __init__(self, denoiser: Any, scales: Sequence[float], classes: Sequence[int] = ()) -> None:
        super().__init__(denoiser)
        self.scales, self.classes = tuple(scales), tuple(classes)
        if self.null_label is None:
            raise ConfigError("guidance needs a model trained with model.null_class = true and class dropout")
        if not all(0 <= label < self.null_label for label in self.classes):
            raise ConfigError(f"guidance by classes {list(classes)}, but the model has 0 to {self.null_label - 1}")

    def estimates(self, x_t: Tensor, t: Time, *, class_labels: Tensor | None = None, **cond: Any) -> Estimates:
        columns = self._columns(class_labels)
        columns.append(torch.full_like(columns[0], cast(int, self.null_label)))
        *conditional, x0_u = self._ask(x_t, t, columns, cond)
        guided = x0_u + sum(w * (x0_c - x0_u) for w, x0_c in zip(self.scales, conditional, strict=True))
        return Estimates(guided, conditional[0], x0_u)

    def plain(self, x_t: Tensor, t: Time, *, class_labels: Tensor | None = None, **cond: Any) -> Tensor:
        return estimate(self.denoiser, x_t, t, class_labels=self._columns(class_labels)[0], **cond)

    def _columns(self, class_labels: Tensor | None) -> list[Tensor]:
        if class_labels is None:
            raise ConfigError("guidance needs class_labels: it leads from the null class to a class")
        columns = list(class_labels.reshape(len(class_labels), -1).unbind(dim=1))
        columns += [torch.full_like(columns[0], label) for label in self.classes]
        if len(columns) != len(self.scales):
            raise ConfigError(f"guidance has {len(self.scales)} scales, but an image has {len(columns)} classes")
        return columns

    def _ask(self, x_t: Tensor, t: Time, columns: list[Tensor], cond: dict[str, Any]) -> Sequence[Tensor]:
        """An estimate for each column of labels, of one call."""
        k = len(columns)
        repeated = {name: _repeat(value, k) for name, value in cond.items()}
        time = _repeat(t, k) if isinstance(t, Tensor) and t.ndim else t
        return estimate(self.denoiser, _repeat(x_t, k), time, class_labels=torch.cat(columns), **repeated).chunk(k)


def _repeat(value: Any, k: int) -> Any:
    """k times the rows of a tensor; what is no tensor holds for all rows."""
    return torch.cat([value] * k) if isinstance(value, Tensor) else value


class ClassifierFree(Composition):
    """D_u + w (D_c - D_u) in one call of twice the batch (2207.12598, eq 6, whose w is ours less 1).

    w = 1 is the conditional model and w = 0 the unconditional one.

    Args:
        denoiser: a Denoiser whose network has a null class.
        scale: w.

    Raises:
        ConfigError: the denoiser has no null class; when called, labels that are missing or not one for each image.
    """

    def __init__(self, denoiser: Any, scale: float) -> None:
        super().__init__(denoiser, (scale,))
        self.scale = scale

    def acts(self, t: Time) -> bool:
        return self.scale != 1


def classifier_free(config: ClassifierFreeGuidance, denoiser: Any) -> Guidance:
    """The guidance of a spec."""
    return ClassifierFree(denoiser, config.scale)


def composition(config: CompositionGuidance, denoiser: Any) -> Guidance:
    """The guidance of a spec."""
    return Composition(denoiser, config.scales, config.classes)
