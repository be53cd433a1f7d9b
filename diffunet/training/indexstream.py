"""Every random draw of training comes from a counter, never from carried state.

The order of the data, noise, times, class dropout, flips and crops are functions of (seed, stream, position), where
position counts samples since the start of training; the network's own randomness (dropout) of (seed, step, micro-step,
rank). So a run that is stopped anywhere and goes on later draws what it would have drawn, with any number of workers,
and two ranks draw together what one would. EDM2's training loop seeds itself in this spirit.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from diffunet.data import Images
from diffunet.spec import ObjectiveConfig

STREAMS = {
    "order": 0,
    "noise": 1,
    "time": 2,
    "class": 3,
    "flip": 4,
    "network": 5,
    "init": 6,
    "held_out": 7,
    "label": 8,
    "crop": 9,
    "turn": 10,
    "offset": 11,
    "perturbation": 12,
    "recall": 13,
}


def draw(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """A generator for one place of one stream: Philox keyed by (seed, stream), at up to three counters."""
    words = [0, *counters, *[0] * (3 - len(counters))]
    return np.random.Generator(np.random.Philox(key=[seed, STREAMS[stream]], counter=words))


def torch_seed(seed: int, stream: str, *counters: int) -> int:
    """A seed for torch's global generator at one place of one stream."""
    return int(draw(seed, stream, *counters).integers(2**63))


@lru_cache(maxsize=2)
def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """Permutation of 0..n-1 in which an epoch visits the data."""
    return draw(seed, "order", epoch).permutation(n)


def index_at(seed: int, position: int, n: int) -> int:
    """Which of n items stands at a position of the endless stream of epochs."""
    epoch, place = divmod(position, n)
    return int(order(seed, epoch, n)[place])


def indices_at(seed: int, first: int, count: int, n: int) -> np.ndarray:
    """Which of n items stand at `count` positions of the endless stream of epochs, from `first` on."""
    epochs, places = np.divmod(np.arange(first, first + count), n)
    return np.concatenate([order(seed, int(epoch), n)[places[epochs == epoch]] for epoch in np.unique(epochs)])


class Noises:
    """position -> the noise `eps`, the uniform time draw `u`, and what an objective wants beside them.

    `shown`, only with input_perturbation: the noise that the network's input has. `recall`, only for a network that
    conditions itself: does it see its first estimate?

    Args:
        seed: the run's.
        objective: its section of the config.
        batch_size: samples of a step, over which stratified times are spread: sample i of B at (offset + i / B) mod 1.
        recalls: does the network condition itself?
    """

    def __init__(
        self, seed: int, objective: ObjectiveConfig | None = None, batch_size: int = 1, recalls: bool = False
    ) -> None:
        config = objective or ObjectiveConfig()
        self.seed, self.batch_size, self.stratified = seed, batch_size, config.times.stratified
        self.offset, self.perturbation = config.offset_noise, config.input_perturbation
        self.recall = config.self_conditioning if recalls else None

    def __call__(self, position: int, shape: tuple[int, ...]) -> dict[str, Any]:
        """The draws of one sample of `shape` (C, *S)."""
        eps = draw(self.seed, "noise", position).standard_normal(shape, dtype=np.float32)
        if self.offset:
            channels = (shape[0], *[1] * (len(shape) - 1))
            eps += np.float32(self.offset) * self._normal("offset", position, channels)
        item: dict[str, Any] = {"eps": eps, "u": self._time(position)}
        if self.perturbation:
            item["shown"] = eps + np.float32(self.perturbation) * self._normal("perturbation", position, shape)
        if self.recall is not None:
            item["recall"] = draw(self.seed, "recall", position).random() < self.recall
        return item

    def _normal(self, stream: str, position: int, shape: tuple[int, ...]) -> np.ndarray:
        return draw(self.seed, stream, position).standard_normal(shape, dtype=np.float32)

    def _time(self, position: int) -> float:
        if not self.stratified:
            return draw(self.seed, "time", position).random()
        step, place = divmod(position, self.batch_size)
        return (draw(self.seed, "time", step).random() + place / self.batch_size) % 1.0


class Stream(Dataset[dict[str, Any]]):
    """position -> image (or a part of it, flipped, turned), its noise, its time draw, and its label or the null one."""

    def __init__(
        self,
        images: Images,
        seed: int,
        flip: bool,
        class_dropout: float,
        null_label: int | None,
        rotate: bool = False,
        noises: Noises | None = None,
    ) -> None:
        self.images, self.seed, self.flip, self.rotate = images, seed, flip, rotate
        self.class_dropout, self.null_label = class_dropout, null_label
        self.noises = noises or Noises(seed)

    def _view(self, index: int, position: int) -> np.ndarray:
        """What a position sees of an image."""
        x0 = self.images.view(index, partial(draw, self.seed, "crop", position))
        if self.flip and draw(self.seed, "flip", position).random() < 0.5:
            x0 = x0[..., ::-1]
        if self.rotate:
            x0 = np.rot90(x0, int(draw(self.seed, "turn", position).integers(4)), axes=(-2, -1))
        return np.ascontiguousarray(x0)

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = index_at(self.seed, position, len(self.images))
        x0 = self._view(index, position)
        item = {"x0": x0, "index": index, **self.noises(position, x0.shape)}
        if self.images.labels is not None:
            drop = self.class_dropout > 0 and draw(self.seed, "class", position).random() < self.class_dropout
            item["label"] = self.null_label if drop else int(self.images.labels[index])
        return item


class MicroBatches(Sampler[list[int]]):
    """Positions of each micro-batch of one rank, from step `first` (0-based) to `last`.

    Step s holds positions s B .. (s + 1) B - 1; its micro-step m on rank r takes slice number m * world + r of them.
    """

    def __init__(self, first: int, last: int, batch_size: int, accumulation: int, rank: int, world: int) -> None:
        self.first, self.last, self.batch_size = first, last, batch_size
        self.accumulation, self.rank, self.world = accumulation, rank, world

    def __len__(self) -> int:
        return (self.last - self.first) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        size = self.batch_size // (self.accumulation * self.world)
        for step in range(self.first, self.last):
            for micro in range(self.accumulation):
                begin = step * self.batch_size + (micro * self.world + self.rank) * size
                yield list(range(begin, begin + size))


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Stack items into tensors of B rows."""
    return {key: torch.from_numpy(np.stack([item[key] for item in items])) for key in items[0]}
