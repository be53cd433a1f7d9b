"""`train()`: from a resolved config to a finished run folder, going on where an earlier process stopped."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from diffunet import data, report
from diffunet.data.catalogue import catalogue, difference
from diffunet.errors import CheckpointError, ConfigError, Interrupted, MemoryLimitError, StorageError, UserError
from diffunet.spec import RunConfig
from diffunet.storage import write_file
from diffunet.training import checkpoint as checkpoints
from diffunet.training import state
from diffunet.training.environment import environment
from diffunet.training.keeper import draw_report
from diffunet.training.log import Log
from diffunet.training.ranks import Alone, join, on_cpu
from diffunet.training.runfolder import RunFolder
from diffunet.training.signals import StopSignals
from diffunet.training.tasks import TASKS
from diffunet.training.trainer import Trainer

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
    ranks, folder = join(config.train.rank_timeout), RunFolder(path)
    say = say if ranks.main else _silent
    try:
        if ranks.main:
            folder.claim()
            folder.adopt(config)
            folder.write_status("starting", folder.read_status().get("step", 0))
        with StopSignals() as signals:
            return _watched(config, folder, ranks, signals, say)
    finally:
        folder.release()


def _watched(config: RunConfig, folder: RunFolder, ranks: Alone, signals: StopSignals, say: Say) -> Path:
    """Train, and leave in status.json how it ended."""
    try:
        return _train(config, folder, ranks, signals, say)
    except UserError as error:
        _note_end(config, folder, "interrupted" if isinstance(error, Interrupted) else "failed", error)
        raise
    except KeyboardInterrupt:
        at_once = Interrupted("stopped at once; the steps since the last checkpoint repeat", 130)
        _note_end(config, folder, "interrupted", at_once)
        raise
    except (MemoryError, RuntimeError) as error:
        meant = _out_of_memory(config, error) or ranks.loss_of(error, config.train.rank_timeout)
        if meant is None:
            raise
        _note_end(config, folder, "failed", meant, orphaned=ranks.orphaned)
        raise meant from None


def _out_of_memory(config: RunConfig, error: Exception) -> MemoryLimitError | None:
    reason = (str(error) or "no memory left").splitlines()[0]
    # torch's CPU allocator reports by a plain RuntimeError
    if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in reason:
        return None
    return MemoryLimitError(
        f"out of memory with train.batch_size = {config.train.batch_size}: {reason[:200]}; "
        "raise train.accumulation, set model.checkpoint_levels, or use train.precision = 'bf16'"
    )


def _silent(line: str) -> None:
    pass


def _note_end(config: RunConfig, folder: RunFolder, status: str, error: UserError, orphaned: bool = False) -> None:
    """Write how the run ended; `orphaned` means that the process that would is gone."""
    with suppress(StorageError):  # a full disk must not hide the error that is being noted
        if not folder.claimed and not orphaned:
            return
        step = folder.read_status().get("step", 0)
        folder.write_status(status, step, exit_code=error.exit_code, code=error.code, message=str(error))
        kind = "stopped" if status == "interrupted" else "failed"
        folder.note(kind, step, str(error), exit_code=error.exit_code)
        _last_report(config, folder, step)


def _last_report(config: RunConfig, folder: RunFolder, step: int) -> None:
    if config.train.report:
        draw_report(folder, partial(report.write, folder.path), step)


def _resume_point(folder: RunFolder, ranks: Alone, say: Say) -> checkpoints.Checkpoint | None:
    """The newest whole checkpoint; the main process verifies, all ranks take the same step."""
    found = ranks.agree(lambda: _verified(folder, say) if ranks.main else None)[0]
    step = ranks.tell(found.step if found else None)
    return found if step is None or ranks.main else checkpoints.read(folder.checkpoints, step)


def _verified(folder: RunFolder, say: Say) -> checkpoints.Checkpoint | None:
    """What to go on from, with the metrics cut back to it.

    Raises:
        CheckpointError: there is something to go on from, and none of it is whole.
    """
    checkpoints.clean(folder.checkpoints)
    found, reasons = checkpoints.newest(folder.checkpoints)
    for reason in reasons:
        say(reason)
        folder.note("damaged", found.step if found else 0, reason)
    if found is None and folder.weights.exists():  # they are written after the first checkpoint
        raise CheckpointError(
            f"{folder.path} holds weights but no checkpoint to go on from; put one back into "
            f"{folder.checkpoints}, or use --out for a new run"
        )
    if found is None and folder.metrics.exists() and folder.metrics.stat().st_size:
        say("no checkpoint yet: starting again from step 0")
    folder.cut_metrics(found.step if found else 0)
    return found


def _data(
    config: RunConfig, folder: RunFolder, resume: checkpoints.Checkpoint | None, ranks: Alone, say: Say
) -> data.Split[Any]:
    """The data, which must be what the checkpoint was trained on, unless the config allows a change.

    Raises:
        CheckpointError: it changed.
    """
    split = data.load(config.data)
    for note in (*split.notes, *(f"left out {bad.path}: {bad.reason}" for bad in split.skipped[:5])):
        say(note)
    items = catalogue(split.train, split.held_out)
    if resume is not None and resume.manifest.get("data") != split.train.fingerprint:
        before = folder.read_items()
        changes = "its fingerprint differs"
        if before is not None and items is not None:
            changes = difference(before, items).removeprefix("data changed: ")
        if not config.data.allow_change:
            raise CheckpointError(
                f"the data changed since {resume.path} was written ({changes}); put the "
                "old data back to go on exactly, set data.allow_change = true to go on with this, or use --out for a "
                "new run"
            )
        say(f"the data changed ({changes}); going on as data.allow_change says")
        if ranks.main:
            folder.note("data_changed", resume.step, changes)
    if ranks.main:
        folder.write_data(items, [(bad.path, bad.reason) for bad in split.skipped])
    return split


def _train(config: RunConfig, folder: RunFolder, ranks: Alone, signals: StopSignals, say: Say) -> Path:
    resume = _resume_point(folder, ranks, say)
    split = _data(config, folder, resume, ranks, say)
    task = TASKS[config.run.task](config, split)
    for note in task.notes:
        say(note)
    device = PartialState().device
    counters = _counters(config, resume, ranks, device)
    torch.set_num_threads(counters.threads)
    if config.train.deterministic and device.type == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
    headline = _headline(config, split, counters, ranks, device)
    say(headline)
    accelerator = _accelerator(config, folder, counters.precision)
    trainer = Trainer(config, folder, task, accelerator, ranks, counters, say)
    if resume is not None:
        trainer.load(resume)
    if ranks.main:
        about = environment(device, counters.precision, counters.world, counters.threads)
        write_file(folder.path / "environment.json", (json.dumps(about, indent=2) + "\n").encode())
        folder.write_status("running", counters.step)
        folder.note("resumed" if resume else "started", counters.step, headline)
    with Log(config, folder, accelerator, counters.step) as log:
        trainer.run(signals, log)
        trainer.save(log)
    accelerator.end_training()
    if ranks.main:
        folder.write_status("done", counters.step, exit_code=0)
        folder.note("finished", counters.step, f"weights: {folder.weights}")
        _last_report(config, folder, counters.step)
    return folder.weights


def _counters(
    config: RunConfig, resume: checkpoints.Checkpoint | None, ranks: Alone, device: torch.device
) -> state.Counters:
    """Where the run stands; a new one settles precision and threads, an old one keeps its own."""
    if resume is not None:
        counters = state.counters_of(resume)
        resolve_precision(counters.precision, device)
        counters.world = ranks.count
        return counters
    threads = config.train.threads or torch.get_num_threads()
    return state.Counters(
        precision=resolve_precision(config.train.precision, device), threads=threads, world=ranks.count
    )


def _headline(
    config: RunConfig, split: data.Split[Any], counters: state.Counters, ranks: Alone, device: torch.device
) -> str:
    held_out = len(split.held_out) if split.held_out else 0
    where = f"resuming at step {counters.step} (sha ok)" if counters.step else "starting"
    chosen = " (auto)" if config.train.precision == "auto" else ""
    return (
        f"{where}: {len(split.train)} training and {held_out} held-out images of {split.train.about}, "
        f"{ranks.count} process(es) on {device.type}, {counters.threads} threads, "
        f"precision {counters.precision}{chosen}"
    )


def resolve_precision(wanted: str, device: torch.device) -> str:
    """auto becomes bf16 where the device computes in it, else no.

    Raises:
        ConfigError: fp16 without a GPU.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise ConfigError("train.precision = 'fp16' needs a GPU; use 'bf16' or 'no' here")
    if wanted != "auto":
        return wanted
    has = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "cpu": lambda: torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
    }
    return "bf16" if has.get(device.type, lambda: False)() else "no"


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
                cpu=on_cpu(), mixed_precision=precision, log_with=trackers or None, project_dir=str(folder.path)
            )
        if trackers:
            if len(accelerator.log_with) != len(trackers):
                raise ValueError("not installed")
            accelerator.init_trackers("diffunet")
    except (ValueError, ImportError) as error:
        raise ConfigError(f"train.trackers = {trackers}: {error}; install it, or leave the list empty") from None
    return accelerator
