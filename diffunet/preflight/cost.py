"""What the whole run will take: time, from one real step on this machine, and disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from diffunet.doctor.machine import existing, size
from diffunet.preflight.bench import Bench, Learner, timed_step
from diffunet.preflight.model import Need
from diffunet.preflight.section import Section, duration

WAITING = 0.2  # share of a step that may go by in waiting for data


def disk_bytes(bench: Bench, need: Need) -> int:
    """The most that a run keeps at once: checkpoints and one being written, sampling weights, snapshots of averages."""
    train, ema = bench.config.train, bench.config.ema
    kept = min(train.keep_checkpoints + 1, 1 + -(-train.steps // train.checkpoint_every))
    snapshots = len(ema.sigma_rel) * (1 + train.steps // (ema.snapshot_every or train.steps))
    return kept * need.checkpoint + (1 + snapshots) * 4 * need.parameters


def timing(bench: Bench, learner: Learner) -> Section:
    """One step measured, and the run that follows from it."""
    train = bench.config.train
    seconds, drawn = timed_step(bench, learner)
    whole = train.steps * seconds
    lines = [
        f"one step takes {duration(seconds)} here, {duration(drawn)} of it drawing data in this process; "
        f"{train.batch_size / seconds:.1f} images/s",
        f"{train.steps:,} steps: about {duration(whole)} on one process, without previews and held-out scores",
    ]
    values = {"step_seconds": seconds, "data_seconds": drawn, "run_seconds": whole}
    found = Section("cost", lines, values)
    if train.workers == 0 and drawn > WAITING * seconds:
        found.warnings.append(
            f"{100 * drawn / seconds:.0f} % of a step goes by in drawing data: set train.workers to 2 or more"
        )
    return found


def disk(bench: Bench, need: Need, folder: Path) -> Section:
    """What the run folder will hold, against what is free."""
    wanted, free = disk_bytes(bench, need), shutil.disk_usage(existing(folder)).free
    line = f"up to {size(wanted)} for checkpoints and weights ({size(need.checkpoint)} each); {size(free)} free"
    found = Section("disk", [line], {"bytes": wanted, "checkpoint": need.checkpoint, "free": free})
    if wanted > free:
        found.warnings.append(
            f"checkpoints need {size(wanted)} and {size(free)} are free at {folder}: free some, lower "
            "train.keep_checkpoints, or use --out on another disk"
        )
    return found
