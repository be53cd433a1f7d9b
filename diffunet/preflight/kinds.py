"""What a kind of run adds to the preflight: its sample of the data, its look at the process, its picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffunet.preflight import data, process, sheet
from diffunet.preflight.bench import Bench
from diffunet.preflight.data import Sample
from diffunet.preflight.section import Section
from diffunet.table import Table

ROWS = 6  # images in the picture


class Kind(ABC):
    """One kind of run.

    Args:
        bench: the run.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    @abstractmethod
    def sample(self) -> Sample:
        """Some training images."""

    @abstractmethod
    def classes(self) -> tuple[Sequence[str], Sequence[int], str]:
        """Names of the classes, how much there is of each, and what was counted."""

    @abstractmethod
    def sides(self) -> tuple[int, ...]:
        """(*S) of what the network is fed in training."""

    @abstractmethod
    def process(self) -> Section:
        """What the network is asked for."""

    @abstractmethod
    def picture(self) -> np.ndarray:
        """A batch as the network sees it, (H, W, 3) uint8."""


class Diffusing(Kind):
    """Images, noise and times."""

    def sample(self) -> Sample:
        return data.of_images(self.bench.split.train)

    def classes(self) -> tuple[Sequence[str], Sequence[int], str]:
        return data.class_counts(self.bench.split.train)

    def sides(self) -> tuple[int, ...]:
        return tuple(self.bench.stream[0]["x0"].shape[1:])

    def process(self) -> Section:
        batch, task = self.bench.batch(min(64, self.bench.config.train.batch_size)), self.bench.task
        return process.section(task.model(self.bench.skeleton), self.objective, batch["x0"], batch["eps"])

    def picture(self) -> np.ndarray:
        batch, images = self.bench.batch(ROWS), self.bench.split.train
        den = self.bench.task.model(self.bench.skeleton)
        words = sheet.words_of(batch.get("label"), images.classes, ROWS)
        return sheet.at_levels(den, batch["x0"], batch["eps"], process.times(den, self.objective), words)

    @property
    def objective(self) -> Any:
        """Says at which times one trains."""
        return self.bench.task.objective  # type: ignore[attr-defined]


class Segmenting(Kind):
    """Crops and classes."""

    def sample(self) -> Sample:
        return data.of_pairs(self.bench.split.train)

    def classes(self) -> tuple[Sequence[str], Sequence[int], str]:
        return data.pixel_counts(self.bench.split.train)

    def sides(self) -> tuple[int, ...]:
        return tuple(self.bench.stream[0]["image"].shape[1:])

    def process(self) -> Section:
        config, (height, width) = self.bench.config.segment, self.sides()
        return Section(
            "process", [f"crops of {height} x {width} pixels; loss {config.loss.kind}"], {"crop": [height, width]}
        )

    def picture(self) -> np.ndarray:
        batch = self.bench.batch(ROWS)
        return sheet.with_classes(batch["image"], batch["classes"])


KINDS: Table[type[Kind]] = Table("run.task", {"diffusion": Diffusing, "segment": Segmenting})
