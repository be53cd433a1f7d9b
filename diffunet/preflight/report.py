"""The whole preflight, in the order in which its parts can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffunet import config as configs
from diffunet.doctor.machine import free_on, size
from diffunet.pictures import save_png
from diffunet.preflight import cost, data, learning, model
from diffunet.preflight.bench import Bench, undisturbed
from diffunet.preflight.kinds import KINDS
from diffunet.preflight.section import Section
from diffunet.spec import RunConfig

PICTURE = "dry-run.png"
Say = Callable[[str], None]


@dataclass
class Preflight:
    """What was found.

    Args:
        config: the resolved run.
        folder: where it would live.
        bench: its data and task.
        parameters: of the network.
        sections: in order.
    """

    config: RunConfig
    folder: Path
    bench: Bench
    parameters: int
    sections: list[Section]

    @property
    def warnings(self) -> list[str]:
        """Those of all sections."""
        return [f"{section.title}: {line}" for section in self.sections for line in section.warnings]

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        split = self.bench.split
        sections: dict[str, Any] = {}
        for section in self.sections:
            sections.setdefault(section.title, {}).update(section.values)
        return {
            "run": str(self.folder),
            "parameters": self.parameters,
            "train_images": len(split.train),
            "held_out_images": len(split.held_out) if split.held_out else 0,
            "shape": list(split.train.shape),
            "precision": self.bench.precision,
            **sections,
            "warnings": self.warnings,
            "config": configs.flatten(self.config),
        }


def preflight(config: RunConfig, folder: Path, say: Say) -> Preflight:
    """Look at everything that a run needs; nothing is left behind but RUN/dry-run.png.

    Args:
        config: the resolved run.
        folder: where the run would live.
        say: gets the report, piece by piece.

    Raises:
        DataError: the data cannot be read or do not fit the model.
        ConfigError: fp16 without a GPU.
        StorageError: the run folder cannot be written.
    """
    with undisturbed(config):
        bench = Bench(config)
        kind = KINDS[config.run.task](bench)
        split, device = bench.split, bench.device
        held_out = len(split.held_out) if split.held_out else 0
        sides = kind.sides()
        need = model.need_of(config, bench.micro_batch, sides, device, bench.precision)
        say(f"run folder: {folder}")
        say(f"data: {len(split.train)} training and {held_out} held-out images of {split.train.about}")
        say(f"model: {need.parameters:,} parameters; precision {bench.precision}")
        found = Preflight(config, folder, bench, need.parameters, [])

        def add(section: Section) -> None:
            found.sections.append(section)
            say(section.text)

        add(data.section(config, split, kind.sample(), kind.classes()))
        add(model.section(bench.skeleton, need, bench.micro_batch, device, bench.precision))
        add(kind.process())
        path = folder / PICTURE
        save_png(kind.picture(), path)
        add(Section("picture", [f"{path}: a batch as the network sees it"], {"path": str(path)}))
        _try(bench, sides, need, add)
        add(cost.disk(bench, need, folder))
        say("\n".join(_end(found)))
        return found


def _try(bench: Bench, sides: tuple[int, ...], need: model.Need, add: Callable[[Section], None]) -> None:
    """Take real steps, as far as they fit into the memory."""
    few = min(learning.IMAGES, bench.config.train.batch_size)
    free = free_on(bench.device)
    small = model.need_of(bench.config, few, sides, bench.device, bench.precision)
    if free is not None and small.total > free:
        line = f"left out: even {few} images need about {size(small.total)} and {size(free)} are free"
        add(Section("learning", [line]))
        return
    learner = bench.learner()
    add(learning.section(bench, learner))
    if free is None or need.total <= free:
        add(cost.timing(bench, learner))
    else:
        add(Section("cost", ["a whole step is not measured: it would not fit into the free memory"]))


def _end(found: Preflight) -> list[str]:
    count = len(found.warnings)
    verdict = "no warnings" if not count else f"{count} warning(s), marked above"
    return [f"{verdict}", "dry run: nothing was trained"]
