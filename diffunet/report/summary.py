"""What a run does now, in numbers: read from its files alone, on any host that sees them."""

from __future__ import annotations

import math
import os
import platform
import shlex
from collections.abc import Mapping
from typing import Any

from diffunet.report.curves import column, recent, running_median
from diffunet.report.overfit import Verdict, judge
from diffunet.report.reading import Record, Run, number, table, whole

WARNINGS = (
    *("failed", "damaged", "skipped", "spike", "rewound", "disk_full", "worker_restarted", "bad_file"),
    *("data_changed", "report"),
)
ALIVE = ("starting", "running")  # states of status.json in which a process is at work
SILENT = 120.0  # seconds without a sign of life after which that is said


def steps_of(run: Run) -> tuple[int, int | None]:
    """Steps done and steps wanted."""
    last = whole(run.records[-1]["step"]) if run.records else None
    done = last if last is not None else whole(run.status.get("step")) or (run.saved or (0, 0.0))[0]
    return done, whole(table(run.config.get("train")).get("steps"))


def is_alive(status: Record) -> bool | None:
    """Whether the process of a run is there; None where that cannot be seen from this host."""
    pid = whole(status.get("pid"))
    if pid is None or not 0 < pid < 2**31 or status.get("host") != platform.node():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to someone else
        return True
    return True


def state_of(run: Run) -> str:
    """starting, running, done, interrupted or failed as status.json says; died where its process is gone; unknown."""
    said = run.status.get("state")
    if not isinstance(said, str):
        steps, wanted = steps_of(run)
        return "done" if wanted is not None and steps >= wanted else "unknown"
    return "died" if said in ALIVE and is_alive(run.status) is False else said


def verdict_of(run: Run) -> Verdict:
    """Does it over-fit? Without `seen` in the metrics, the training loss stands in for it."""
    seen = column(run.records, "seen", "loss")
    if not len(seen):
        seen = running_median(column(run.records, "loss"))
    return judge(column(run.records, "held_out", "loss"), seen)


def speed(run: Run, count: int = 200) -> dict[str, float | None]:
    """Of the newest steps: seconds a step, images a second, share of the time that the loop waited for data."""
    records = run.records[-count:]
    took, waited = column(records, "seconds"), column(records, "data_seconds")
    typical = recent(took, count)
    batch = number(table(run.config.get("train")).get("batch_size"))
    total = float(took.value.sum())
    return {
        "seconds_per_step": typical,
        "images_per_second": batch / typical if typical and math.isfinite(batch) else None,
        "loader_share": min(1.0, float(waited.value.sum()) / total) if total > 0 and len(waited) else None,
    }


def warnings_of(run: Run) -> dict[str, int]:
    """How often each kind of trouble came up, of those that did."""
    kinds = [event.get("kind") for event in run.events]
    found = {kind: kinds.count(kind) for kind in WARNINGS if kind in kinds}
    skipped = sum(record.get("skipped") is True for record in run.records)
    return found | ({"skipped": skipped} if skipped > found.get("skipped", 0) else {})


def newest_copies(run: Run) -> Record:
    """The newest `copies` of the metrics, with the step they are of; empty where there are none."""
    for record in reversed(run.records):
        if isinstance(record.get("copies"), dict):
            return {"step": record["step"], **record["copies"]}
    return {}


def suspicious(copies: Record) -> list[str]:
    """The spaces (pixels, features) in which samples lie too near to training images."""
    return [space for space in ("pixels", "features") if table(copies.get(space)).get("flag") is True]


def next_command(run: Run, state: str) -> str | None:
    """What to run next; None while it is at work."""
    task = table(run.config.get("run")).get("task")
    if state in ALIVE:
        return None
    folder, config = shlex.quote(str(run.path)), shlex.quote(str(run.path / "config.json"))
    if state == "done":
        return f"diffunet {'evaluate' if task == 'segment' else 'sample'} {folder}"
    return f"diffunet train {config} --out {folder}"


def summarize(run: Run, now: float) -> dict[str, Any]:
    """All that `diffunet watch --json` prints: JSON values, None where the run's files do not say.

    Args:
        run: as read.
        now: seconds since 1970.
    """
    records, (step, steps) = run.records, steps_of(run)
    state, rate = state_of(run), speed(run)
    typical = rate["seconds_per_step"]
    working = state in ALIVE and steps is not None and typical is not None
    held_out, seen = (column(records, name, "loss").last for name in ("held_out", "seen"))
    silent = max(0.0, now - run.touched) if run.touched is not None else None
    patient = max(SILENT, 20 * (typical or 0.0))
    return {
        "run": str(run.path),
        "name": _words(table(run.config.get("run")).get("name")),
        "state": state,
        "alive": is_alive(run.status) if state in (*ALIVE, "died") else None,
        "silent_seconds": silent,
        "silent": state in ALIVE and silent is not None and silent > patient,
        "pid": whole(run.status.get("pid")),
        **{key: _words(run.status.get(key)) for key in ("host", "started", "message")},
        "step": step,
        "steps": steps,
        "seconds_left": max(0, steps - step) * typical if working and steps is not None and typical else None,
        "loss": recent(column(records[-100:], "loss")),
        "held_out": held_out,
        "seen": seen,
        "gap": held_out - seen if held_out is not None and seen is not None else None,
        "lr": column(records[-1:], "lr").last,
        "grad_norm": recent(column(records[-100:], "grad_norm")),
        **rate,
        "memory": column(records, "memory").last,
        "noise_scale": column(records, "noise_scale").last,
        "checkpoint": None
        if run.saved is None
        else {"step": run.saved[0], "seconds_ago": max(0.0, now - run.saved[1])},
        "overfit": verdict_of(run).to_json(),
        "copies": _short(newest_copies(run)),
        "warnings": warnings_of(run),
        "events": [_event(event) for event in run.events[-5:]],
        "remarks": list(run.remarks),
        "next": next_command(run, state),
    }


def _words(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _event(event: Record) -> dict[str, Any]:
    """The four fields that every event has."""
    return {"step": whole(event.get("step"))} | {key: _words(event.get(key)) for key in ("time", "kind", "message")}


def _short(copies: Mapping[str, Any]) -> dict[str, Any] | None:
    """Copies without the list of the nearest ones."""
    return {key: value for key, value in copies.items() if key != "nearest"} or None
