"""The training loop: one process or many through accelerate, stopped at any step and gone on with bit for bit."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from diffunet.errors import Interrupted, NumericError
from diffunet.nn import NETWORKS
from diffunet.spec import RunConfig
from diffunet.training import checkpoint as checkpoints
from diffunet.training import state
from diffunet.training.averages import WARM_UP, Averages
from diffunet.training.indexstream import torch_seed
from diffunet.training.keeper import Keeper, Say
from diffunet.training.loader import Loader
from diffunet.training.log import Log
from diffunet.training.parallel import PARALLELS
from diffunet.training.ranks import Alone
from diffunet.training.runfolder import RunFolder
from diffunet.training.signals import StopSignals
from diffunet.training.stepper import Outcome, Stepper, learning_rate, optimizer_of
from diffunet.training.task import Task

ODD = {"nonfinite": "loss or gradient was not finite", "spike": "the loss was far above the usual one"}


class Trainer:
    """Everything between the first step and the last. Made on every rank; only the main one writes.

    Args:
        config: the resolved run.
        folder: where it lives.
        task: what it learns, with its data.
        accelerator: made with the run's precision.
        ranks: the processes.
        counters: where it stands.
        say: prints a line on the main process.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        task: Task[Any],
        accelerator: Accelerator,
        ranks: Alone,
        counters: state.Counters,
        say: Say,
    ) -> None:
        self.config, self.folder, self.task, self.say = config, folder, task, say
        self.accelerator, self.ranks, self.counters = accelerator, ranks, counters
        train = config.train
        torch.manual_seed(torch_seed(train.seed, "init"))
        self.network = NETWORKS.build(config.model).to(accelerator.device)
        # one process has all of the network anyway
        layout = PARALLELS[train.parallel if ranks.count > 1 else "ddp"](accelerator, ranks)
        layout.cut(self.network)
        self.averages = Averages(config.ema, self.network)
        self.optimizer = optimizer_of(train, self.network.parameters(), accelerator.device)
        if train.compile:
            self.network.compile(fullgraph=True)
        self.step = Stepper(
            config, self.network, self.optimizer, self.averages, task, accelerator, ranks, layout, counters
        )
        self.model = task.model(self.network)
        self.keeper = Keeper(config, folder, ranks, layout, task, self._facts(), say)
        self.loader = Loader(train, task.stream(self.network), accelerator, self._note)
        self.watch = task.held_out(accelerator.device, ranks)

    def _facts(self) -> dict[str, Any]:
        """What every manifest says of the run."""
        settings = checkpoints.canonical(self.config.model_dump(mode="json"))
        return {
            "config": hashlib.sha256(settings.encode()).hexdigest(),
            "data": self.task.split.train.fingerprint,
            "torch": torch.__version__,
            "world": self.ranks.count,
        }

    def load(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Put everything but the counters where it was when a checkpoint was written.

        Raises:
            CheckpointError: it belongs to another network or task.
        """
        state.from_checkpoint(checkpoint, self.network, self.averages, self.optimizer)
        self.task.restore(state.task_of(checkpoint, self.task.state()))
        self.step.restore(state.numbers_of(checkpoint))
        self.keeper.saved = checkpoint.step

    def run(self, signals: StopSignals, log: Log) -> None:
        """Train to the last step.

        Raises:
            Interrupted: a signal came; the state is saved.
            NumericError: too many steps in a row were left out, or too many rewinds.
            WorkerError: a data worker died, twice at the same step.
            StorageError: a checkpoint cannot be written.
        """
        self.step.parallel.train()
        while self.counters.step < self.config.train.steps:
            place, left = self.counters.place, self.config.train.steps - self.counters.step
            for batches, waited in self.loader.steps(place, place + left):
                if self._pass(batches, waited, signals, log):
                    break

    def _pass(self, batches: list[dict[str, Tensor]], waited: float, signals: StopSignals, log: Log) -> bool:
        """One step and what is due after it; True where the run went back to an earlier one."""
        train, counters, begun = self.config.train, self.counters, time.perf_counter()
        self.ranks.step = counters.step + 1
        outcome = self.step(batches, signals.code)
        record, seconds = outcome.record, waited + time.perf_counter() - begun
        record |= {"seconds": round(seconds, 4), "data_seconds": round(waited, 4)}
        if self._due(train.held_out_every):
            with self.averages.lent(self.network, WARM_UP):
                record |= self.watch(self.model)
        if self._due(train.preview_every) and not outcome.stop:
            record |= self.preview(lambda: signals.code != 0)
        log.write(record)
        self._note_odd(outcome)
        self._stop_if_diverging(outcome)
        if outcome.verdict == "spike" and train.spike.policy == "rewind" and self._rewind(log):
            return True
        self._snapshot_if_due()
        if outcome.stop:
            self.save(log)
            done = f"stopped by a signal; step {counters.step} is saved in {self.folder.path}"
            raise Interrupted(f"{done}; the same command again goes on from there", outcome.stop)
        if counters.step % train.checkpoint_every == 0 and counters.step < train.steps:
            self.keeper.save_or_go_on(lambda: self.save(log), counters.step)
        return False

    def _due(self, every: int) -> bool:
        return self.counters.step % every == 0 or self.counters.step == self.config.train.steps

    def _snapshot_if_due(self) -> None:
        ema = self.config.ema
        if ema.sigma_rel and self._due(ema.snapshot_every or self.config.train.steps):
            self.keeper.snapshots(self.network, self.averages, self.counters)

    def _note(self, kind: str, message: str, **facts: Any) -> None:
        self.keeper.note(kind, self.counters.step, message, **facts)

    def _note_odd(self, outcome: Outcome) -> None:
        """Note a step that was not as others are, and keep the checkpoint before it."""
        guard, policy = self.step.guard, self.config.train.spike.policy
        facts = {"indices": outcome.indices, "loss": outcome.record["loss"], "lr": outcome.record["lr"]}
        if outcome.verdict == "nonfinite":
            self._note("skipped", f"{ODD['nonfinite']}; the step left the weights alone", **facts)
        elif outcome.verdict == "spike":
            before = self.keeper.regular(self.counters.step - 1)
            guard.pin(before if self.keeper.has(before) else None)
            message = f"loss {facts['loss']:.4g} where {guard.typical:.4g} is usual; train.spike = '{policy}'"
            self._note("spike", message, typical=guard.typical, policy=policy, **facts)
        self.keeper.pinned = guard.pinned

    def _stop_if_diverging(self, outcome: Outcome) -> None:
        row, train, scaler = self.counters.skipped_in_a_row, self.config.train, self.accelerator.scaler
        if row >= train.nonfinite_limit:
            reason = f"{ODD[outcome.verdict]} in {row} steps in a row"
        elif row and scaler is not None and scaler.get_scale() < train.scaler_floor:
            reason = f"the loss scale of fp16 fell to {scaler.get_scale():.3g}, below train.scaler_floor"
        else:
            return
        rate = learning_rate(self.config, self.counters.updates)
        raise NumericError(
            f"{reason}, last in step {self.counters.step} (lr {rate:.3g}, training images {outcome.indices[:8]}); "
            "the last checkpoint is good; lower train.learning_rate or use train.precision = 'bf16' or 'no'"
        )

    def _rewind(self, log: Log) -> bool:
        """Go back to the last good checkpoint, and on with the data after this step; False where there is none.

        Raises:
            NumericError: it was done too often.
        """
        counters, limit = self.counters, self.config.train.spike.rewinds
        if self.keeper.pinned is None:
            return False
        if counters.rewinds >= limit:
            raise NumericError(
                f"the loss rose suddenly at step {counters.step}, after {limit} rewinds (train.spike.rewinds); the "
                f"checkpoint of step {self.keeper.pinned} is good; lower train.learning_rate or look at the training "
                "images that events.jsonl names"
            )
        place, rewinds, left = counters.place, counters.rewinds + 1, counters.step
        checkpoint = checkpoints.read(self.folder.checkpoints, self.keeper.pinned)
        self.load(checkpoint)
        before = state.counters_of(checkpoint)
        before.shift, before.rewinds, before.world = place - before.step, rewinds, counters.world
        for field in fields(before):  # the stepper and the program hold the same object
            setattr(counters, field.name, getattr(before, field.name))
        if self.ranks.main:
            self.folder.cut_metrics(counters.step)
        log.rewind(counters.step)
        self.step.guard.pin(counters.step)
        self._note("rewound", f"from step {left} to step {counters.step}; the data goes on after it", left=left)
        return True

    def save(self, log: Log) -> None:
        """Write a checkpoint and the sampling weights, then let go of old checkpoints."""
        self.keeper.save(self.network, self.averages, self.optimizer, self.step.numbers(), self.counters, log)

    def preview(self, stopped: Callable[[], bool]) -> dict[str, Any]:
        """Draw what the averaged network makes of fixed seeds or held-out images; facts for the step's record."""
        path = self.folder.samples / f"step-{self.counters.step:08d}.png"
        try:
            with self.averages.lent(self.network, WARM_UP):
                return self.task.preview(self.model, path, stopped, self.ranks)
        except NumericError as error:
            self.say(f"preview at step {self.counters.step} left out: {error}")
            return {}
