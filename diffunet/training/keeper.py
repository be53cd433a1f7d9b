"""What a run leaves on the disk: checkpoints to go on from, weights to use, snapshots of averages, its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from diffunet import report, weights
from diffunet.errors import StorageError
from diffunet.spec import RunConfig
from diffunet.training import checkpoint as checkpoints
from diffunet.training import state
from diffunet.training.averages import WARM_UP, Averages
from diffunet.training.log import Log
from diffunet.training.parallel import Replicated, whole
from diffunet.training.ranks import Alone
from diffunet.training.runfolder import RunFolder
from diffunet.training.state import Counters
from diffunet.training.task import Task

Say = Callable[[str], None]


def draw_report(folder: RunFolder, draw: Callable[[], Any], step: int) -> None:
    """Make report.html anew; whatever goes wrong there must not stop a run, nor hide how one ended, and is noted."""
    try:
        draw()
    except Exception as error:
        with suppress(StorageError):
            folder.note("report", step, f"report.html was not written: {type(error).__name__}: {error}")


class Keeper:
    """Saves a run. Every process calls its methods; only the main one writes what all have alike.

    Args:
        config: the resolved run.
        folder: where it lives.
        ranks: the processes.
        layout: how they share the network.
        task: what it learns.
        facts: JSON values for every manifest.
        say: prints a line on the main process.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        ranks: Alone,
        layout: Replicated,
        task: Task[Any],
        facts: Mapping[str, Any],
        say: Say,
    ) -> None:
        self.config, self.folder, self.ranks, self.layout = config, folder, ranks, layout
        self.task, self.facts, self.say = task, facts, say
        self.reports = report.Writer(folder.path)
        self.saved: int | None = None  # the step of the newest checkpoint
        self.pinned: int | None = None  # a checkpoint that rotation leaves alone

    def save(
        self,
        network: nn.Module,
        averages: Averages,
        optimizer: torch.optim.Optimizer,
        numbers: Mapping[str, Any],
        counters: Counters,
        log: Log,
    ) -> None:
        """A checkpoint and the sampling weights, durable when this returns; then old checkpoints go.

        Raises:
            StorageError: it does not fit, or cannot be written; older checkpoints are untouched.
        """
        if self.saved != counters.step:
            numbers = {"counters": asdict(counters), **numbers} if self.ranks.main else {}
            parts = state.parts_of(network, averages, optimizer, self.task.state())
            files = state.to_files(parts, numbers, self.layout.suffix)
            self.ranks.agree(log.sync)
            checkpoints.write(self.folder.checkpoints, counters.step, files, self.facts, self.ranks)
        # also where the checkpoint is there already: a kill may have come between the two
        self.weights(network, averages, WARM_UP, self.folder.weights, counters, weights="ema")
        self.ranks.agree(lambda: self._tidy(counters.step) if self.ranks.main else None)
        self.saved = counters.step
        if self.ranks.main and self.config.train.report:
            draw_report(self.folder, self.reports, counters.step)

    def _tidy(self, step: int) -> None:
        # checkpoints that a signal made come and go; a rewind leads to one that every run of this config has
        pinned = (self.pinned, self.regular(step))
        checkpoints.rotate(self.folder.checkpoints, self.config.train.keep_checkpoints, pinned)
        self.folder.write_status("running", step)

    def regular(self, step: int) -> int:
        """The last step up to this one at which a checkpoint was due."""
        every = self.config.train.checkpoint_every
        return step // every * every

    def has(self, step: int) -> bool:
        """Is there a checkpoint of that step? All processes must ask."""
        return self.ranks.tell(step in checkpoints.steps(self.folder.checkpoints))

    def save_or_go_on(self, save: Callable[[], None], step: int) -> None:
        """Save; where the disk is full and the run shall go on, note that and try again at the next time."""
        try:
            save()
        except StorageError as error:
            if self.config.train.on_full_disk == "stop":
                raise
            self.say(f"step {step} is not saved: {error}; the run goes on (train.on_full_disk = 'continue')")
            self.note("disk_full", step, str(error))

    def weights(
        self, network: nn.Module, averages: Averages, average: str, path: Any, counters: Counters, **facts: Any
    ) -> None:
        """One self-describing weights file of an average."""
        tensors = averages.state(average) | {name: whole(value) for name, value in state.buffers_of(network).items()}
        facts = {"step": counters.step, **facts, **self.task.facts}
        ordered: dict[str, Tensor] = {name: tensors[name] for name in network.state_dict()}

        def write() -> None:
            if self.ranks.main:
                weights.save(self.task.model(network), path, ordered, **facts)

        self.ranks.agree(write)

    def snapshots(self, network: nn.Module, averages: Averages, counters: Counters) -> None:
        """A file of every power-function average as it is now; `diffunet ema` makes averages of any length of them.

        Raises:
            StorageError: one cannot be written.
        """
        for length, average in zip(self.config.ema.sigma_rel, averages.gammas, strict=True):
            path = self.folder.path / "ema" / f"step-{counters.step:08d}-{length:.3f}.safetensors"
            self.weights(network, averages, average, path, counters, updates=counters.updates, sigma_rel=length)

    def note(self, kind: str, step: int, message: str, **facts: Any) -> None:
        """A line in events.jsonl; left out where the disk has no room even for that."""
        if self.ranks.main:
            try:
                self.folder.note(kind, step, message, **facts)
            except StorageError as error:
                self.say(str(error))
