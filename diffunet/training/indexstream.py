"""Every random draw of training comes from a counter, never from carried state.

The order of the data, noise, times, class dropout, flips and crops are functions of (seed, stream, position), where
position counts samples since the start of training; the network's own randomness (dropout) of (seed, step, micro-step,
rank). So a run that is stopped anywhere and goes on later draws what it would have drawn, with any number of workers,
and two ranks draw together what one would. EDM2's training loop seeds itself in this spirit.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from diffunet.data import Images

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


class Stream(Dataset[dict[str, Any]]):
    """position -> image (flipped or not), its noise, its uniform time draw, and its label (or the null label)."""

    def __init__(self, images: Images, seed: int, flip: bool, class_dropout: float, null_label: int | None) -> None:
        self.images, self.seed, self.flip = images, seed, flip
        self.class_dropout, self.null_label = class_dropout, null_label

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = index_at(self.seed, position, len(self.images))
        x0 = self.images[index]
        if self.flip and draw(self.seed, "flip", position).random() < 0.5:
            x0 = np.ascontiguousarray(x0[..., ::-1])
        item = {
            "x0": x0,
            "eps": draw(self.seed, "noise", position).standard_normal(x0.shape, dtype=np.float32),
            "u": draw(self.seed, "time", position).random(),
            "index": index,
        }
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
