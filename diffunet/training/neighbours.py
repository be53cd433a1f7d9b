"""Previews beside the training images nearest to them: is the model copying?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffunet.data import Images, Split
from diffunet.metrics.extractors import RandomConv, RealImages
from diffunet.metrics.memorisation import Neighbours, nearness, neighbours
from diffunet.pictures import grid, save_png
from diffunet.spec import RunConfig
from diffunet.training.indexstream import draw

NUMBERS = 2**26  # of all images that are kept in memory for this, whatever the config asks for: 256 MiB
HELD_OUT = 512  # held-out images at most
SHOWN = 8  # samples in the picture and in the record
BATCH = 256


class StoppedError(Exception):
    """A signal came while this was at work."""


def _chosen(images: Images, most: int, seed: int, stream: int) -> np.ndarray:
    """At most so many numbers of images, drawn once, in order."""
    n, most = len(images), min(most, max(1, NUMBERS // max(1, int(np.prod(images.shape)))))
    if n <= most:
        return np.arange(n)
    return np.sort(draw(seed, "held_out", stream).choice(n, most, replace=False))


def _load(images: Images, chosen: np.ndarray, stopped: Callable[[], bool]) -> Tensor:
    kept = np.empty((len(chosen), *images.shape), dtype=np.float32)
    for place, i in enumerate(chosen):
        if place % 64 == 0 and stopped():
            raise StoppedError
        kept[place] = images[int(i)]
    return torch.from_numpy(kept)


@dataclass(frozen=True, eq=False)
class _Known:
    """The training images of one run, and how near to them the held-out ones lie, in pixels and in features."""

    images: Tensor
    chosen: np.ndarray
    extractor: RandomConv
    spaces: dict[str, Tensor]
    floors: dict[str, Neighbours | None]


class Copies:
    """Looks for the training images nearest to samples, among at most `sample.preview_neighbours` of them.

    Training and held-out images are read at the first call and kept; of those that data.crop takes parts of, the
    middle. Where training mirrors its images, so does the search. Nothing is drawn from a global generator.

    Args:
        config: the resolved run.
        split: its images.
    """

    def __init__(self, config: RunConfig, split: Split[Images]) -> None:
        self.config, self.split = config, split
        self._known: _Known | None = None

    def __call__(self, samples: Tensor, path: Path, stopped: Callable[[], bool]) -> dict[str, Any]:
        """Facts for the step's record, and a picture of the nearest pairs beside `path` (`...-neighbours.png`).

        Args:
            samples: (N, C, *S) in [-1, 1], sample i of seed `train.seed + i`.
            path: the preview's file.
            stopped: says whether to give up.

        Raises:
            StoppedError: `stopped` said so.
            DataError: a training image cannot be read.
            StorageError: the picture cannot be written.
        """
        known = self._known = self._known or self._read(stopped)
        samples = samples.float().cpu().clamp(-1, 1)
        found = {name: self._nearest(samples, name, known) for name in known.spaces}
        closest = found["pixels"].distance.argsort(stable=True)[:SHOWN].tolist()
        pairs = [samples[closest], *(known.images[f.index[closest]] for f in found.values())]
        save_png(
            grid(torch.stack(pairs, dim=1).flatten(0, 1), columns=len(pairs)),
            path.with_name(f"{path.stem}-neighbours.png"),
        )
        return {
            "samples": len(samples),
            "looked_at": len(known.images),
            "train": len(self.split.train),
            "extractor": known.extractor.name,
            **{name: nearness(f, known.floors[name]).to_json() for name, f in found.items()},
            "nearest": [
                {"seed": self.config.train.seed + i, **{name: self._row(f, i, known) for name, f in found.items()}}
                for i in closest
            ],
        }

    def _read(self, stopped: Callable[[], bool]) -> _Known:
        train, held_out, seed = self.split.train, self.split.held_out, self.config.train.seed
        chosen = _chosen(train, self.config.sample.preview_neighbours, seed, 2)
        images = _load(train, chosen, stopped)
        extractor = RandomConv(RealImages(images, None, images[:0], None), self.config.evaluate.seed)
        spaces = {"pixels": images, "features": extractor.features(images, BATCH)}
        known = _Known(images, chosen, extractor, spaces, dict.fromkeys(spaces))
        if held_out is not None and len(held_out):
            new = _load(held_out, _chosen(held_out, HELD_OUT, seed, 3), stopped)
            known.floors.update({name: self._nearest(new, name, known) for name in spaces})
        return known

    def _nearest(self, images: Tensor, space: str, known: _Known) -> Neighbours:
        """The nearest training images of whichever view is nearest."""
        to_space: Callable[[Tensor], Tensor] = {
            "pixels": lambda view: view,
            "features": lambda view: known.extractor.features(view, BATCH),
        }[space]
        views = [images, images.flip(-1)] if self.config.data.flip else [images]
        return reduce(_nearer, (neighbours(to_space(view), known.spaces[space]) for view in views))

    def _row(self, found: Neighbours, i: int, known: _Known) -> dict[str, Any]:
        index = int(known.chosen[int(found.index[i])])
        return {
            "train": index,
            "name": str(self.split.train.name_of(index))[-200:],
            "distance": round(float(found.distance[i]), 6),
        }


def _nearer(one: Neighbours, other: Neighbours) -> Neighbours:
    """Of each image whichever is nearer."""
    kept = one.distance <= other.distance
    return Neighbours(*(torch.where(kept, getattr(one, n), getattr(other, n)) for n in ("distance", "second", "index")))
