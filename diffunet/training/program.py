"""`train()`: from a resolved config to a finished run folder, going on where an earlier process stopped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

from diffunet import data
from diffunet.errors import CheckpointError, ConfigError, Interrupted, MemoryLimitError, StorageError, UserError
from diffunet.spec import RunConfig
from diffunet.training import checkpoint as checkpoints
from diffunet.training import state
from diffunet.training.log import Log
from diffunet.training.runfolder import RunFolder
from diffunet.training.signals import StopSignals
from diffunet.training.tasks import TASKS
from diffunet.training.trainer import Trainer, resolve_precision

Say = Callable[[str], None]


def train(config: RunConfig, path: Path, say: Say = print) -> Path:
    """Train, or go on with, the run in `path`; gives the path of its weights.

    Args:
        config: the resolved run.
        path: run folder, made where it is missing.
        say: gets one line at a time, on the main process.

    Raises:
        UserError: see `diffunet.errors`; status.json in the folder says the same.
    """
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when CUDA starts
    processes = PartialState(cpu=_on_cpu())
    folder = RunFolder(path)
    say = say if processes.is_main_process else _silent
    try:
        if processes.is_main_process:
            folder.claim()
            folder.adopt(config)
            folder.write_status("starting", folder.read_status().get("step", 0))
        with StopSignals() as signals:
            return _watched(config, folder, processes, signals, say)
    finally:
        folder.release()


def _watched(config: RunConfig, folder: RunFolder, processes: PartialState, signals: StopSignals, say: Say) -> Path:
    """Train, and leave in status.json how it ended."""
    try:
        return _train(config, folder, processes, signals, say)
    except UserError as error:
        _note_end(folder, "interrupted" if isinstance(error, Interrupted) else "failed", error)
        raise
    except KeyboardInterrupt:
        _note_end(
            folder, "interrupted", Interrupted("stopped at once; the steps since the last checkpoint repeat", 130)
        )
        raise
    except (MemoryError, RuntimeError) as error:
        reason = (str(error) or "no memory left").splitlines()[0]
        # torch's CPU allocator reports by a plain RuntimeError
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in reason:
            raise
        full = MemoryLimitError(
            f"out of memory with train.batch_size = {config.train.batch_size}: {reason[:200]}; "
            "raise train.accumulation, set model.checkpoint_levels, or use train.precision = 'bf16'"
        )
        _note_end(folder, "failed", full)
        raise full from None


def _on_cpu() -> bool:
    # accelerate joins CPU ranks into one gloo group only where it is told that the CPU is meant
    return not torch.accelerator.is_available()


def _silent(line: str) -> None:
    pass


def _note_end(folder: RunFolder, status: str, error: UserError) -> None:
    with suppress(StorageError):  # a full disk must not hide the error that is being noted
        if not folder.claimed:
            return
        step = folder.read_status().get("step", 0)
        folder.write_status(status, step, exit_code=error.exit_code, code=error.code, message=str(error))


def _resume_point(folder: RunFolder, processes: PartialState, say: Say) -> checkpoints.Checkpoint | None:
    """The newest whole checkpoint; the main process verifies, all ranks take the same step."""
    found: checkpoints.Checkpoint | None = None
    if processes.is_main_process:
        checkpoints.clean(folder.checkpoints)
        found, reasons = checkpoints.newest(folder.checkpoints)
        for reason in reasons:
            say(reason)
        if found is None and folder.weights.exists():  # they are written after the first checkpoint
            raise CheckpointError(
                f"{folder.path} holds weights but no checkpoint to go on from; put one back into "
                f"{folder.checkpoints}, or use --out for a new run"
            )
        if found is None and folder.metrics.exists() and folder.metrics.stat().st_size:
            say("no checkpoint yet: starting again from step 0")
        folder.cut_metrics(found.step if found else 0)
    step: list[int | None] = [found.step if found else None]
    if processes.num_processes > 1:
        broadcast_object_list(step)
    if step[0] is None or processes.is_main_process:
        return found
    return checkpoints.read(folder.checkpoints, step[0])


def _train(config: RunConfig, folder: RunFolder, processes: PartialState, signals: StopSignals, say: Say) -> Path:
    resume = _resume_point(folder, processes, say)
    split = data.load(config.data)
    for note in (*split.notes, *(f"left out {bad.path}: {bad.reason}" for bad in split.skipped[:5])):
        say(note)
    task = TASKS[config.run.task](config, split)
    for note in task.notes:
        say(note)
    if resume is not None and resume.manifest.get("data") != split.train.fingerprint:
        raise CheckpointError(
            f"the data changed since {resume.path} was written (its fingerprint differs); put the old data back to go "
            "on exactly, or use --out for a new run"
        )
    counters = _counters(config, resume, processes)
    torch.set_num_threads(counters.threads)
    if config.train.deterministic and processes.device.type == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
    say(_headline(config, split, counters, processes))
    accelerator = _accelerator(config, folder, counters.precision)
    trainer = Trainer(config, folder, task, accelerator, counters, resume, say)
    if processes.is_main_process:
        folder.write_status("running", counters.step)
    with Log(config, folder, accelerator, counters.step) as log:
        trainer.run(signals, log)
        trainer.save(log)
    accelerator.end_training()
    if processes.is_main_process:
        folder.write_status("done", counters.step, exit_code=0)
    return folder.weights


def _counters(config: RunConfig, resume: checkpoints.Checkpoint | None, processes: PartialState) -> state.Counters:
    """Where the run stands; a new one settles precision and threads, an old one keeps its own."""
    if resume is not None:
        counters = state.counters_of(resume)
        resolve_precision(counters.precision, processes.device)
        counters.world = processes.num_processes
        return counters
    precision = resolve_precision(config.train.precision, processes.device)
    threads = config.train.threads or torch.get_num_threads()
    return state.Counters(precision=precision, threads=threads, world=processes.num_processes)


def _headline(config: RunConfig, split: data.Split[Any], counters: state.Counters, processes: PartialState) -> str:
    held_out = len(split.held_out) if split.held_out else 0
    where = f"resuming at step {counters.step} (sha ok)" if counters.step else "starting"
    chosen = " (auto)" if config.train.precision == "auto" else ""
    return (
        f"{where}: {len(split.train)} training and {held_out} held-out images of {split.train.about}, "
        f"{processes.num_processes} process(es) on {processes.device.type}, {counters.threads} threads, "
        f"precision {counters.precision}{chosen}"
    )


def _accelerator(config: RunConfig, folder: RunFolder, precision: str) -> Accelerator:
    """accelerate with the run's precision and trackers.

    Raises:
        ConfigError: a tracker that is unknown or not installed.
    """
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    trackers = list(config.train.trackers)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*no supported trackers")  # said below, as an error
            accelerator = Accelerator(
                cpu=_on_cpu(), mixed_precision=precision, log_with=trackers or None, project_dir=str(folder.path)
            )
        if trackers:
            if len(accelerator.log_with) != len(trackers):
                raise ValueError("not installed")
            accelerator.init_trackers("diffunet")
    except (ValueError, ImportError) as error:
        raise ConfigError(f"train.trackers = {trackers}: {error}; install it, or leave the list empty") from None
    return accelerator
