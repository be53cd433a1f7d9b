"""Segmentation: what is minimised, how much each pixel counts, how crops are drawn, and what the weights remember."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from diffunet.spec.base import ByName, Count, Floats, Ints, Pair, Spec, Strings, contradictions

MAX_VALUE = 65535  # of a label, since masks are PNG files


def without_false(data: Any, key: str) -> Any:
    """TOML has no null: `key = false` says "none"."""
    return data | {key: None} if isinstance(data, dict) and data.get(key) is False else data


class CrossEntropyLoss(Spec):
    """-log p of the right class."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    pixelwise: ClassVar[bool] = True


class BinaryCrossEntropyLoss(Spec):
    """Every class against all others, each by a sigmoid of its own; the mean over the classes."""

    kind: Literal["bce"] = "bce"
    pixelwise: ClassVar[bool] = True


class FocalLoss(Spec):
    """(1 - p)^gamma times the cross-entropy, so that easy pixels count less (1708.02002)."""

    kind: Literal["focal"] = "focal"
    gamma: float = Field(2.0, ge=0, le=10)
    pixelwise: ClassVar[bool] = True


class DiceLoss(Spec):
    """One minus the soft Dice of each class and image (1606.04797)."""

    kind: Literal["dice"] = "dice"
    smooth: float = Field(1.0, gt=0, description="pixels added above and below, so that an absent class has a value")
    pixelwise: ClassVar[bool] = False


class TverskyLoss(Spec):
    """Dice with its own price for a false positive (alpha) and for a false negative (beta) (1706.05721)."""

    kind: Literal["tversky"] = "tversky"
    alpha: float = Field(0.3, gt=0, le=10)
    beta: float = Field(0.7, gt=0, le=10)
    smooth: float = Field(1.0, gt=0)
    pixelwise: ClassVar[bool] = False


OneLossConfig = Annotated[
    Annotated[
        CrossEntropyLoss | BinaryCrossEntropyLoss | FocalLoss | DiceLoss | TverskyLoss, Field(discriminator="kind")
    ],
    ByName,
]


class SumLoss(Spec):
    """Losses of several kinds, each times its weight (1 where no weights are given)."""

    kind: Literal["sum"] = "sum"
    losses: Annotated[tuple[OneLossConfig, ...], Field(strict=False, min_length=1, max_length=8)] = (
        CrossEntropyLoss(),
        DiceLoss(),
    )
    weights: Floats | None = None

    @property
    def pixelwise(self) -> bool:
        """Whether some loss of the sum is a mean over pixels, which a border map can weigh."""
        return any(loss.pixelwise for loss in self.losses)

    @model_validator(mode="after")
    def _check(self) -> SumLoss:
        bad = []
        if self.weights is not None and len(self.weights) != len(self.losses):
            bad.append(f"weights names {len(self.weights)} but there are {len(self.losses)} losses")
        bad += [f"weights must be positive, not {w:g}" for w in self.weights or () if w <= 0]
        contradictions(bad)
        return self


LossConfig = Annotated[
    Annotated[
        CrossEntropyLoss | BinaryCrossEntropyLoss | FocalLoss | DiceLoss | TverskyLoss | SumLoss,
        Field(discriminator="kind"),
    ],
    ByName,
]


class BorderConfig(Spec):
    """The weight of each pixel, w = w_c + w0 exp(-(d1 + d2)^2 / (2 sigma^2)) (1505.04597, eq. 2).

    d1 and d2 are the distances to the borders of the nearest two cells: connected pixels of one label value that is not
    `background`.
    """

    w0: float = Field(10.0, ge=0, le=1e4)
    sigma: float = Field(5.0, gt=0, le=100, description="pixels")
    background: Annotated[int, Field(ge=0, le=MAX_VALUE)] | None = Field(
        None, description="the label value that is no cell; the lowest if unset"
    )
    balance: bool = Field(True, description="w_c makes every class weigh the same over the training set; otherwise 1")


class ElasticConfig(Spec):
    """Displacements of a coarse grid, normal with `sigma` pixels, between whose points a cubic runs (1505.04597, 3.1).

    The paper's grid is 3 x 3 points over a tile of 572 pixels, with sigma = 10.
    """

    spacing: float = Field(64.0, ge=8, le=4096, description="pixels between two points of the grid")
    sigma: float = Field(6.0, ge=0, le=512, description="pixels")


class AugmentConfig(Spec):
    """What is done to a training crop; all of it is drawn from (seed, position), so that a run resumes exactly."""

    flip: bool = True
    rotate: bool = Field(True, description="by multiples of 90 degrees")
    elastic: ElasticConfig | None = Field(ElasticConfig(), description="false for none")

    @model_validator(mode="before")
    @classmethod
    def _none(cls, data: Any) -> Any:
        return without_false(data, "elastic")


class SegmentConfig(Spec):
    """What a segmentation run minimises and sees, and how it goes over images that are larger than its crops."""

    loss: LossConfig = CrossEntropyLoss()
    border: BorderConfig | None = Field(BorderConfig(), description="false: every pixel weighs 1")
    crop: Annotated[int, Field(ge=1, le=65536)] = Field(
        256, description="side of what the network sees in training; rounded up to a side that it takes"
    )
    augment: AugmentConfig = AugmentConfig()
    tile: Annotated[int, Field(ge=1, le=65536)] = Field(768, description="largest side that the network sees at once")
    margin: Annotated[int, Field(ge=0, le=4096)] = Field(
        32, description="pixels of a tile's rim that are not used; valid convolutions have their own"
    )
    batch_size: Count = Field(1, description="tiles at once")
    preview_images: Annotated[int, Field(ge=1, le=64)] = 3

    @model_validator(mode="before")
    @classmethod
    def _none(cls, data: Any) -> Any:
        return without_false(data, "border")

    @model_validator(mode="after")
    def _check(self) -> SegmentConfig:
        bad = []
        if self.border and not self.loss.pixelwise:
            bad.append(f"border weighs pixels, which loss '{self.loss.kind}' does not count; set border = false")
        if self.tile <= 2 * self.margin:
            bad.append(f"tile = {self.tile} must be more than twice margin = {self.margin}")
        contradictions(bad)
        return self


class SegmentInfo(Spec):
    """What the weights file remembers: how a picture becomes numbers, how a class becomes a label, how to tile."""

    channels: Count
    values: Ints = Field(description="the label value of each class, rising")
    classes: Strings = Field(description="the name of each class")
    value_range: Pair | None = Field(None, description="stored values that become -1 and 1; a file's own if unset")
    background: Ints = (255, 255, 255)
    tile: Count = 768
    margin: int = Field(32, ge=0)

    @model_validator(mode="after")
    def _check(self) -> SegmentInfo:
        bad = ["values must rise"] if list(self.values) != sorted(set(self.values)) else []
        bad += [f"values must be 0 to {MAX_VALUE}, not {v}" for v in self.values if not 0 <= v <= MAX_VALUE]
        if len(self.classes) != len(self.values) or len(self.values) < 2:
            bad.append(f"there are {len(self.values)} values and {len(self.classes)} classes")
        contradictions(bad)
        return self
