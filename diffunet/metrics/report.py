"""Is the model good? Its samples against held-out images, beside what real training images would score there."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffunet.errors import ConfigError, DataError, NumericError
from diffunet.metrics.distances import distances
from diffunet.metrics.extractors import Extractor, RealImages, build
from diffunet.metrics.memorisation import nearest_distances
from diffunet.spec import EvaluateConfig

LABELS = {
    "frechet_distance": "Frechet distance (less is better)",
    "kernel_distance": "kernel distance, KID (less)",
    "precision": "precision (more)",
    "recall": "recall (more)",
    "nearest_training_image": "nearest training image (median)",
}
_WIDTH = 80


@dataclass(frozen=True)
class Row:
    """One metric: of the samples, and of real images in their place."""

    samples: float
    floor: float

    @property
    def ratio(self) -> float | None:
        """samples / floor; None where the floor is not positive (KID, being unbiased, may be below 0)."""
        return self.samples / self.floor if self.floor > 0 else None


@dataclass(frozen=True)
class Evaluation:
    """What `compare` found.

    Attributes:
        rows: by metric, in the order of `LABELS`. The floor is what n random training images score in place of the
            samples; of the nearest training image, what the held-out images have.
        extractor: name of the features.
        n: images on each side.
        seed: of the choice of images, of the subsets and of the extractor.
        sampler: how the samples were made, in the caller's words.
    """

    rows: dict[str, Row]
    extractor: str
    n: int
    seed: int
    sampler: str

    def table(self) -> str:
        """Plain text, at most 80 columns wide."""
        head = [f"features: {self.extractor}", f"sampler: {self.sampler}"]
        head.append(f"{self.n} samples against {self.n} held-out images, seed {self.seed}")
        rows = [[LABELS[name], *map(_number, (r.samples, r.floor, r.ratio))] for name, r in self.rows.items()]
        foot = (
            f"floor: {self.n} random training images in place of the samples; in the last row, the held-out images "
            "(there a ratio far below 1 means copies of training images)."
        )
        lines = [line for text in head for line in textwrap.wrap(text, _WIDTH, subsequent_indent="  ")]
        grid = [["metric", "samples", "floor", "ratio"], *rows]
        lines += ["", *(f"{row[0]:<38}" + "".join(f"{cell:>14}" for cell in row[1:]) for row in grid), ""]
        return "\n".join([*lines, *textwrap.wrap(foot, _WIDTH)])

    def to_json(self) -> dict[str, Any]:
        """The same as a dict that JSON can hold; a ratio that does not exist is None."""
        rows = {k: {"samples": r.samples, "floor": r.floor, "ratio": r.ratio} for k, r in self.rows.items()}
        about = {"extractor": self.extractor, "n": self.n, "seed": self.seed, "sampler": self.sampler}
        return {**about, "metrics": rows}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def image_count(config: EvaluateConfig, train: int, held_out: int) -> int:
    """How many samples `compare` needs, given the number of training and held-out images.

    Raises:
        DataError: fewer than two held-out or training images.
        ConfigError: fewer than `evaluate.n`, or (where it is unset) fewer training than held-out images.
    """
    kinds = {"held-out": held_out, "training": train}
    for kind, count in kinds.items():
        if count < 2:
            raise DataError(
                f"evaluation needs at least 2 {kind} images, found {count}; add images or set data.held_out"
            )
    n = config.n or held_out
    for kind, count in kinds.items():
        if n > count:
            raise ConfigError(
                f"evaluation with n = {n} needs {n} {kind} images, found {count}; set evaluate.n = {count}"
            )
    return n


def _check(samples: Tensor, real: RealImages, n: int) -> None:
    shapes = [tuple(images.shape[1:]) for images in (samples, real.held_out, real.train)]
    if not 2 <= len(shapes[0]) <= 4 or len(set(shapes)) > 1:
        raise DataError(
            "evaluation needs samples, held-out and training images of one shape (channels, then one to three sides), "
            f"not {', '.join(map(str, shapes))}"
        )
    if len(samples) < n:
        raise ConfigError(f"evaluate.n = {n} but there are {len(samples)} samples; draw {n} or lower evaluate.n")
    bad = int((~samples.isfinite()).flatten(1).any(1).sum())
    if bad:
        raise NumericError(f"{bad} of {len(samples)} samples hold values that are not finite; nothing was measured")


def compare(
    samples: Tensor,
    held_out: Tensor,
    train: Tensor,
    train_labels: Tensor | None,
    held_out_labels: Tensor | None,
    config: EvaluateConfig,
    *,
    sampler: str = "not stated",
    batch_size: int = 256,
    extractor: Extractor | None = None,
) -> Evaluation:
    """Measure samples against held-out images, and as many training images against the same held-out images.

    Args:
        samples: (N, C, *S); the first n are used (see `image_count`), clamped to [-1, 1] as a picture file would.
        held_out: (M, C, *S) in [-1, 1]; n of them are drawn with the config's seed where there are more.
        train: (K, C, *S) in [-1, 1]; n of them, drawn likewise, make the floor. All count for the nearest one.
        train_labels: (K,) int64 or None.
        held_out_labels: (M,) int64 or None.
        sampler: how the samples were made, for the header.
        batch_size: images in the extractor at a time.
        extractor: one that `build` made earlier from the same images; None makes it.

    Raises:
        DataError: fewer than two held-out or training images, or images of different shapes.
        ConfigError: fewer images or samples than n, or an extractor that these images cannot have.
        NumericError: a sample is not finite.
    """
    real = RealImages(train, train_labels, held_out, held_out_labels)
    n = image_count(config, len(train), len(held_out))
    _check(samples, real, n)
    extractor = extractor or build(config, real)
    generator = torch.Generator().manual_seed(config.seed)
    held_out, stand_in = (
        images[torch.randperm(len(images), generator=generator)[:n].to(images.device)] for images in (held_out, train)
    )
    samples = samples[:n].clamp(-1, 1)
    fake, real_features, floor = (extractor.features(images, batch_size) for images in (samples, held_out, stand_in))
    measured, least = (distances(features, real_features, config.seed) for features in (fake, floor))
    rows = {name: Row(measured[name], least[name]) for name in measured}
    near = [nearest_distances(images, train)[0].median().item() for images in (samples, held_out)]
    rows["nearest_training_image"] = Row(*near)
    return Evaluation(rows, extractor.name, n, config.seed, sampler)
