"""How well classes are found: Dice and IoU of each class and the share of wrong pixels, with error bars over images.

Each image counts once, whatever its size. A class that neither the label nor the prediction of an image holds has no
Dice or IoU there: that image is left out of the class's mean, and the number of images that remain is said. A class
that was found where there is none, or missed where there is some, has 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean over images with its standard error: the sample's standard deviation over the root of their number.

    `mean` is None of no image, `error` None of fewer than two.
    """

    mean: float | None
    error: float | None
    images: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Of the values that are not NaN."""
        kept = np.array([v for v in values if not math.isnan(v)], dtype=np.float64)
        mean = float(kept.mean()) if len(kept) else None
        error = float(kept.std(ddof=1) / math.sqrt(len(kept))) if len(kept) > 1 else None
        return cls(mean, error, len(kept))

    def __str__(self) -> str:
        if self.mean is None:
            return "-"
        return f"{self.mean:.4f}" + (f" +- {self.error:.4f}" if self.error is not None else "")

    def to_json(self) -> dict[str, float | int | None]:
        """As a dict that JSON can hold."""
        return {"mean": self.mean, "standard_error": self.error, "images": self.images}


def confusion(predicted: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Pixels (K, K) by right class (row) and predicted class (column); both arrays hold 0 .. K - 1."""
    assert predicted.shape == label.shape, "a prediction answers for every pixel of its label"
    pairs = label.reshape(-1).astype(np.int64) * classes + predicted.reshape(-1).astype(np.int64)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where the whole is nothing."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def dice(table: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) of each class (K,); NaN of a class in neither."""
    return _share(2.0 * np.diag(table), table.sum(0) + table.sum(1))


def iou(table: np.ndarray) -> np.ndarray:
    """TP / (TP + FP + FN) of each class (K,); NaN of a class in neither."""
    return _share(1.0 * np.diag(table), table.sum(0) + table.sum(1) - np.diag(table))


def pixel_error(table: np.ndarray) -> float:
    """The share of pixels whose class is wrong."""
    return float(1 - np.diag(table).sum() / table.sum())


@dataclass
class Scores:
    """Gathers images one by one.

    Args:
        classes: the name of each class.
    """

    classes: tuple[str, ...]
    names: list[str] = field(default_factory=list)
    tables: list[np.ndarray] = field(default_factory=list)

    def add(self, name: str, predicted: np.ndarray, label: np.ndarray) -> None:
        """Count one image: its classes as predicted and as labelled, (H, W) each."""
        self.names.append(name)
        self.tables.append(confusion(predicted, label, len(self.classes)))

    def of_classes(self) -> dict[str, dict[str, Estimate]]:
        """Dice and IoU by class name."""
        rows = {"dice": [dice(t) for t in self.tables], "iou": [iou(t) for t in self.tables]}
        return {
            name: {metric: Estimate.of([float(row[k]) for row in values]) for metric, values in rows.items()}
            for k, name in enumerate(self.classes)
        }

    def pixel_error(self) -> Estimate:
        """The share of wrong pixels."""
        return Estimate.of([pixel_error(t) for t in self.tables])

    def table(self) -> str:
        """Plain text, a line a class and one of the pixel error."""
        many = len(self.tables)
        width = max(len("pixel error"), *(len(name) for name in self.classes))
        lines = [f"{'class':<{width}}  {'Dice':<18}  {'IoU':<18}  images"]
        for name, row in self.of_classes().items():
            lines.append(f"{name:<{width}}  {row['dice']!s:<18}  {row['iou']!s:<18}  {row['dice'].images} of {many}")
        lines.append(f"{'pixel error':<{width}}  {self.pixel_error()!s:<18}  {'':<18}  {many} of {many}")
        if many > 1:
            lines.append("+- standard error over images; a class counts where the label or the mask has it")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same, and each image's own values, as a dict that JSON can hold."""
        return {
            "classes": {
                name: {metric: value.to_json() for metric, value in row.items()}
                for name, row in self.of_classes().items()
            },
            "pixel_error": self.pixel_error().to_json(),
            "images": [
                {
                    "name": name,
                    "dice": [None if math.isnan(v) else float(v) for v in dice(table)],
                    "iou": [None if math.isnan(v) else float(v) for v in iou(table)],
                    "pixel_error": pixel_error(table),
                }
                for name, table in zip(self.names, self.tables, strict=True)
            ],
        }
