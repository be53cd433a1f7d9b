"""The exactness contract, proven where it is to be relied on: two runs are one run, and a killed run is that run too.

A shortened copy of a config is trained in a folder of its own by real processes. The first two run through; the third
is killed at a step, killed inside a save, stopped by a signal and gone on with by another number of data workers.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffunet import config as configs
from diffunet.doctor.children import Child, ChildError, lines
from diffunet.spec import RunConfig
from diffunet.training.checkpoint import steps as saved
from diffunet.training.compare import difference

FEWEST, MOST = 18, 48  # steps of the shortened run
SECONDS = 8.0  # that its steps should take, of which about twenty times FEWEST / MOST are made in all
SAVES = 6  # checkpoints of the shortened run
TRIES = 5  # a quick run may be over before it is killed
Row = tuple[str, str, dict[str, Any]]  # name, result, facts of a check


@dataclass(frozen=True)
class Check:
    """One row of the table.

    Args:
        name: what was tried.
        result: `ok`, `DIFFERS at step ...`, or `FAILED: ...`.
        seconds: that it took.
        facts: what proves that it was tried: exit codes and steps.
    """

    name: str
    result: str
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Did it hold?"""
        return self.result == "ok"


def shortened(config: RunConfig, step_seconds: float) -> RunConfig:
    """The run to be tried: few steps, and where even those would take long a smaller batch; all else as it is.

    Args:
        config: of the user's run.
        step_seconds: what one of its steps takes.
    """
    batch, accumulation = config.train.batch_size, config.train.accumulation
    share = 1.0
    while FEWEST * step_seconds * share > SECONDS and batch % (2 * accumulation) == 0:
        batch, share = batch // 2, share / 2
    steps = int(min(MOST, max(FEWEST, SECONDS / max(1e-6, step_seconds * share))))
    steps -= steps % SAVES
    table = config.model_dump(mode="json")
    table["train"] |= {
        "steps": steps,
        "batch_size": batch,
        "warmup_steps": min(config.train.warmup_steps, steps // 3),
        "checkpoint_every": steps // SAVES,
        "keep_checkpoints": 2 * SAVES,
        "preview_every": steps // 3,
        "held_out_every": steps // 3,
        "held_out_images": min(config.train.held_out_images, 32),
        "trackers": [],
    }
    if "sample" in table:
        table["sample"] |= {"steps": min(config.sample.steps, 2), "preview_images": 2}
    if table["ema"].get("snapshot_every"):
        table["ema"]["snapshot_every"] = steps // 3
    return configs.resolve(table, "the shortened config")


class NotProvenError(Exception):
    """A process ended before, or otherwise than, it should; the message says how."""


class ResumeTest:
    """The runs and what they show.

    Args:
        config: shortened.
        folder: an empty one, on the file system that is to be tried.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.folder, self.steps, self.every = folder, config.train.steps, config.train.checkpoint_every
        self.workers = config.train.workers
        self.golden, self.broken = folder / "uninterrupted", folder / "interrupted"
        self.config = folder / "config.json"
        self.config.write_text(json.dumps(config.model_dump(mode="json")))
        # other steps each time, so that many tests try many; what they were is in the table
        self.chance = random.Random()

    def checks(self) -> Iterator[Check]:
        """The rows, each as soon as it is known; after one that does not hold there are no more.

        Raises:
            ChildError: the very first run failed: there is nothing to be compared with.
        """
        rows = self._rows()
        while True:
            begun = time.perf_counter()
            if (row := next(rows, None)) is None:
                return
            name, result, facts = row
            yield Check(name, result, round(time.perf_counter() - begun, 1), facts)
            if result != "ok":
                return

    def _rows(self) -> Iterator[Row]:
        yield self._repeated()
        try:
            killed, facts = self._killed()
        except NotProvenError as error:
            yield "SIGKILL between two steps", f"FAILED: {error}", {}
            return
        name = f"SIGKILL after step {killed} of {self.steps}, gone on with from step {facts['resumed_from_step']}"
        try:
            step, more = self._killed_in_save(after=killed)
            yield name, self._compared(self.broken, last=step), facts
        except NotProvenError as error:
            yield name, f"FAILED: {error}", facts
            return
        name, facts = (
            f"SIGKILL inside the save of step {step}, gone on with from step {more['resumed_from_step']}",
            more,
        )
        try:
            stopped, more = self._stopped(after=step)
            yield name, self._compared(self.broken, last=stopped), facts
        except NotProvenError as error:
            yield name, f"FAILED: {error}", facts
            return
        yield self._finished(stopped, more)

    def _child(self, run: Path, *flags: str) -> Child:
        return Child(self.config, run, self.folder / f"{run.name}.log", flags)

    def _compared(self, run: Path, last: int | None = None) -> str:
        differs = difference(self.golden, run, last)
        return "ok" if differs is None else f"DIFFERS {differs}"

    def _newest(self) -> int:
        return (saved(self.broken / "checkpoints") or [0])[-1]

    def _repeated(self) -> Row:
        with self._child(self.golden) as child:
            if code := child.wait():
                raise ChildError(f"the run itself fails: {child.failure(code)}", max(1, code))
        with self._child(self.folder / "again") as child:
            code = child.wait()
            result = f"FAILED: {child.failure(code)}" if code else self._compared(child.run)
        return f"two uninterrupted runs of {self.steps} steps", result, {"exit_codes": [0, code]}

    def _killed(self) -> tuple[int, dict[str, Any]]:
        """Kill the process at a random step of the first half; the last step that it noted, and the proof."""
        for _ in range(TRIES):
            wanted = self.chance.randint(self.every + 1, self.steps // 2)
            with self._child(self.broken) as child:
                child.until_step(wanted)
                child.halt()
                step = lines(self.broken)
                code = child.kill()
                if code not in (0, -signal.SIGKILL):
                    raise NotProvenError(child.failure(code))
            if code == -signal.SIGKILL and step < self.steps - self.every:
                return step, {"exit_code": code, "killed_after_step": step, "resumed_from_step": self._newest()}
            shutil.rmtree(self.broken)
        raise NotProvenError("the run was over before it could be killed; use a larger batch")

    def _killed_in_save(self, after: int) -> tuple[int, dict[str, Any]]:
        """Go on, and kill the process while it writes a checkpoint later than a step; that step, and the proof."""
        with self._child(self.broken) as child:
            step = child.halt_in_save(after)
            code = child.kill()
            if code != -signal.SIGKILL:
                raise NotProvenError(child.failure(code) if code else "no save could be caught; try again")
        assert step is not None, "what was killed by us was first halted in a save"
        return step, {"exit_code": code, "killed_in_save_of_step": step, "resumed_from_step": self._newest()}

    def _stopped(self, after: int) -> tuple[int, dict[str, Any]]:
        """Go on, and stop the process by SIGTERM later than a step; the step that it saved, and the proof."""
        wanted = self.chance.randint(min(after + 1, self.steps - 1), self.steps - 1)
        with self._child(self.broken) as child:
            # the lines after the checkpoint are dropped when the run goes on: wait for new ones
            child.until(lambda: child.running() and lines(self.broken) >= wanted)
            child.send(signal.SIGTERM)
            code = child.wait()
            if code not in (0, 128 + signal.SIGTERM):
                raise NotProvenError(child.failure(code))
        step = self._newest()
        return step, {"exit_code": code, "stopped_at_step": step}

    def _finished(self, stopped: int, facts: dict[str, Any]) -> Row:
        """Go on to the end with another number of workers."""
        workers = 0 if self.workers else 2
        with self._child(self.broken, "--train.workers", str(workers)) as child:
            code = child.wait()
            result = f"FAILED: {child.failure(code)}" if code else self._compared(self.broken)
        if result == "ok" and stopped == self.steps:
            result = "FAILED: the run was over before SIGTERM reached it; try again"
        name = f"SIGTERM at step {stopped}, gone on with by {workers} data workers in place of {self.workers}"
        return name, result, facts
