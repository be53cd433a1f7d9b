"""Segmentation as a task of the trainer: crops with classes and pixel weights; a loss on logits; masks as a preview."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from diffunet import losses
from diffunet.data import Pairs, Split
from diffunet.data.augment import coordinates, sample
from diffunet.data.border import balanced, border_weights
from diffunet.errors import DataError
from diffunet.metrics.segmentation import Scores
from diffunet.pictures import beside, overlay, save_png, to_uint8
from diffunet.segmenter import Segmenter
from diffunet.spec import AugmentConfig, BorderConfig, RunConfig, SegmentInfo
from diffunet.tiles import fit
from diffunet.training.indexstream import draw, index_at
from diffunet.training.monitor import at_rest, peak_memory
from diffunet.training.ranks import Alone
from diffunet.training.task import Task

SHOWN = 50  # names of held-out images in a note


def weight_maps(pairs: Pairs, config: BorderConfig, class_weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """The pixel weights (H, W) of each image.

    Raises:
        DataError: `border.background` is no label value.
    """
    value = pairs.values[0] if config.background is None else config.background
    if value not in pairs.values:
        values = ", ".join(map(str, pairs.values))
        raise DataError(f"segment.border.background = {value} is none of the label values {values}")
    background = pairs.values.index(value)
    return tuple(border_weights(label, config, background, class_weights) for label in pairs.labels)


class Crops(Dataset[dict[str, Any]]):
    """position -> a crop of an image, flipped, turned and bent, its classes, and the weights of its pixels.

    Args:
        pairs: the training images.
        weights: of each image, its pixels' weights; empty where all weigh 1.
        side: of the crop that the network sees.
        rim: how much of it on each side the network does not answer for.
        config: the augmentation.
        seed: of the run.
    """

    def __init__(
        self,
        pairs: Pairs,
        weights: tuple[np.ndarray, ...],
        side: int,
        rim: int,
        config: AugmentConfig,
        seed: int,
    ) -> None:
        self.pairs, self.weights, self.side, self.rim = pairs, weights, side, rim
        self.config, self.seed = config, seed

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = index_at(self.seed, position, len(self.pairs))
        image, label = self.pairs.image(index), self.pairs.classes_of(index)
        where = coordinates(draw(self.seed, "crop", position), label.shape, self.side, self.rim, self.config)
        inner = where[:, self.rim : self.side - self.rim, self.rim : self.side - self.rim]
        item = {
            "image": np.stack([sample(channel, where, order=1) for channel in image]),
            "classes": sample(label, inner, order=0).astype(np.int64),
            "index": index,
        }
        if self.weights:
            item["weight"] = sample(self.weights[index], inner, order=1)
        return item


class Segmentation(Task[Segmenter]):
    """Learn the class of each pixel."""

    next_command: ClassVar[str] = "evaluate {run}"

    def __init__(self, config: RunConfig, split: Split[Pairs]) -> None:
        super().__init__(config, split)
        self._loss = losses.make(config.segment.loss)

    def check(self) -> None:
        """Hold channels and classes against the model's.

        Raises:
            DataError: they differ.
        """
        pairs, model = self.split.train, self.config.model
        (channels,) = pairs.shape
        if channels != model.in_channels:
            raise DataError(
                f"the images have {channels} channels but model.in_channels = {model.in_channels}; "
                f"set model.in_channels = {channels}, or data.channels"
            )
        classes = len(pairs.values)
        if model.out_channels != classes and (model.out_channels, classes) != (1, 2):
            one = ", or 1 (a sigmoid)" if classes == 2 else ""
            raise DataError(
                f"the labels have {classes} values but model.out_channels = {model.out_channels}; "
                f"set model.out_channels = {classes}{one}"
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """Which images are held out."""
        if self.split.held_out is None:
            return ()
        names = self.split.held_out.names
        more = f" and {len(names) - SHOWN} more (the weights file names them all)" if len(names) > SHOWN else ""
        return (f"held out by data.seed = {self.config.data.seed}: {', '.join(names[:SHOWN])}{more}",)

    @property
    def facts(self) -> dict[str, Any]:
        """The seed of the split and the names of the held-out images."""
        held_out = self.split.held_out
        return {"split_seed": self.config.data.seed, "held_out": list(held_out.names) if held_out else []}

    @cached_property
    def _class_weights(self) -> np.ndarray:
        border, counts = self.config.segment.border, self.split.train.counts()
        return balanced(counts) if border is not None and border.balance else np.ones(len(counts))

    def _weights(self, pairs: Pairs) -> tuple[np.ndarray, ...]:
        border = self.config.segment.border
        return () if border is None else weight_maps(pairs, border, self._class_weights)

    def stream(self, network: nn.Module) -> Dataset[dict[str, Any]]:
        """Crops of a side that the network takes."""
        config, pairs, fits = self.config.segment, self.split.train, fit(network)
        side, rim = fits.up(config.crop), fits.loss // 2
        return Crops(pairs, self._weights(pairs), side, rim, config.augment, self.config.train.seed)

    def model(self, network: nn.Module) -> Segmenter:
        """The segmenter around a network."""
        pairs, segment = self.split.train, self.config.segment
        info = SegmentInfo(
            channels=pairs.shape[0],
            values=pairs.values,
            classes=pairs.classes,
            value_range=pairs.given_range,
            background=self.config.data.background,
            tile=segment.tile,
            margin=segment.margin,
        )
        return Segmenter(network, info)

    def loss(self, model: Segmenter, batch: dict[str, Tensor]) -> Tensor:
        """The loss of the spec, mean over the batch."""
        return self._loss(model(batch["image"]), batch["classes"], batch.get("weight")).mean()

    def held_out(self, device: torch.device, ranks: Alone) -> Callable[[Segmenter], dict[str, Any]]:
        """Loss, Dice of each class and pixel error on whole held-out and on as many training images."""
        parts = {"held_out": self.split.held_out, "seen": self.split.train}
        known = {name: pairs for name, pairs in parts.items() if pairs is not None}
        most = min(self.config.train.held_out_images, *map(len, known.values()))
        scores = {name: self._score(pairs.subset(np.arange(most))) for name, pairs in known.items()}

        def watch(model: Segmenter) -> dict[str, Any]:
            begun = time.perf_counter()
            with at_rest(model):
                found: dict[str, Any] = {name: score(model) for name, score in scores.items()}
            return found | {"memory": peak_memory(device), "watch_seconds": round(time.perf_counter() - begun, 4)}

        return watch

    def _score(self, pairs: Pairs) -> Callable[[Segmenter], dict[str, Any]]:
        """Loss, Dice of each class and pixel error on whole images."""
        weights, batch_size = self._weights(pairs), self.config.segment.batch_size

        def score(model: Segmenter) -> dict[str, Any]:
            scores, total = Scores(pairs.classes), 0.0
            for i in range(len(pairs)):
                label = torch.from_numpy(pairs.classes_of(i).astype(np.int64))
                logits = model.logits(torch.from_numpy(pairs.image(i)), batch_size=batch_size).cpu()
                weight = torch.from_numpy(weights[i])[None] if weights else None
                total += float(self._loss(logits[None], label[None], weight))
                predicted = losses.two_sided(logits[None])[0].argmax(dim=0)
                scores.add(pairs.names[i], predicted.numpy(), label.numpy())
            dice = {name: row["dice"].mean for name, row in scores.of_classes().items()}
            return {"loss": total / len(pairs), "dice": dice, "pixel_error": scores.pixel_error().mean}

        return score

    def preview(self, model: Segmenter, path: Path, stopped: Callable[[], bool], ranks: Alone) -> dict[str, Any]:
        """Image, right classes and found classes of the first held-out images (of training images where none are)."""
        pairs, segment, begun = self.split.held_out or self.split.train, self.config.segment, time.perf_counter()
        rows = []
        for i in range(min(segment.preview_images, len(pairs))):
            if ranks.any(int(stopped())):
                return {}
            image = torch.from_numpy(pairs.image(i))
            with at_rest(model):
                found = model.classes(image, batch_size=segment.batch_size).cpu().numpy()
            picture = to_uint8(image[None])[0]
            rows.append([picture, overlay(picture, pairs.classes_of(i)), overlay(picture, found)])
        if ranks.main:
            save_png(beside(rows), path)
        return {"preview_seconds": round(time.perf_counter() - begun, 4)}
