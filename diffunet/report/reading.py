"""Reading a run folder, whatever state it is in: being written, killed in the middle of a line, old, or damaged.

Nothing here raises over what a file holds. What could not be read is left out and named in `Run.remarks`. Nothing here
imports torch, so that `diffunet watch` answers at once.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
PREVIEW, NEIGHBOURS = re.compile(r"step-(\d{8,12})\.png"), re.compile(r"step-(\d{8,12})-neighbours\.png")
CHECKPOINT = re.compile(r"step-(\d{8,12})")
MARKS = (b'"held_out"', b'"seen"', b'"copies"', b'"skipped"')  # lines that are never left out
MOST = 120_000  # lines that are parsed in full; of a longer file every n-th one and all that bear a mark
LARGEST = 3.5e38  # so that sums and squares of what is read stay finite
BLOCK = 10_000  # lines given to the JSON reader at once, which is three times as fast as one by one


@dataclass(frozen=True)
class Run:
    """What the files of a run folder say.

    Attributes:
        path: the folder.
        config, status, environment, evaluation, bits_per_dim: the JSON objects of these files; empty where one is
            missing or broken.
        manifest, counters: of the newest checkpoint.
        records: the lines of metrics.jsonl, by rising step (of a very long file, some of them).
        events: the lines of events.jsonl, oldest first.
        previews, neighbours: (step, file) of the pictures in samples/, by rising step.
        saved: step of the newest checkpoint and when it was written (seconds since 1970), or None.
        touched: when a file of the run last changed, or None.
        remarks: what could not be read, one line each.
    """

    path: Path
    config: Record = field(default_factory=dict)
    status: Record = field(default_factory=dict)
    environment: Record = field(default_factory=dict)
    evaluation: Record = field(default_factory=dict)
    bits_per_dim: Record = field(default_factory=dict)
    manifest: Record = field(default_factory=dict)
    counters: Record = field(default_factory=dict)
    records: tuple[Record, ...] = ()
    events: tuple[Record, ...] = ()
    previews: tuple[tuple[int, Path], ...] = ()
    neighbours: tuple[tuple[int, Path], ...] = ()
    saved: tuple[int, float] | None = None
    touched: float | None = None
    remarks: tuple[str, ...] = ()


def number(value: Any) -> float:
    """A JSON value as a float; NaN where it is no number, or beyond what float32 can hold."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST
    return float(value) if known else math.nan


def whole(value: Any) -> int | None:
    """A JSON value as an integer of at least 0; None where it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def table(value: Any) -> Record:
    """A JSON value as an object; an empty one where it is none."""
    return value if isinstance(value, dict) else {}


def _objects(lines: list[bytes]) -> list[Record]:
    """The JSON objects among some lines."""
    found: list[Any] = []
    for start in range(0, len(lines), BLOCK):
        block = lines[start : start + BLOCK]
        try:
            parsed = json.loads(b"[" + b",".join(block) + b"]")
            # as many values as lines, or a line held two of them
            found += parsed if len(parsed) == len(block) else [_one(line) for line in block]
        except (ValueError, RecursionError):
            found += [_one(line) for line in block]
    return [item for item in found if isinstance(item, dict)]


def _one(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def rising(records: Iterable[Record]) -> tuple[Record, ...]:
    """The records with a step, each step once (the last that was written), by rising step."""
    by_step = {step: record for record in records if (step := whole(record.get("step"))) is not None}
    return tuple(by_step[step] for step in sorted(by_step))


def read_lines(path: Path, thin: bool = False) -> tuple[list[Record], str | None]:
    """The JSON objects of a file of lines, and what is wrong with it (None where nothing is).

    A last line without its end is being written, or a kill cut it off; it is not counted as wrong.

    Args:
        path: the file; a missing one is empty.
        thin: leave out lines of a file of more than `MOST`.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return [], None
    except OSError as error:
        return [], f"{path.name} cannot be read ({error.strerror})"
    stride = -(-len(lines) // MOST) if thin else 1
    if stride > 1:
        last = len(lines) - 1
        lines = [
            line for i, line in enumerate(lines) if i % stride == 0 or i == last or any(mark in line for mark in MARKS)
        ]
    found = _objects(lines)
    lost = len(lines) - len(found)
    return found, f"{path.name}: {lost:,} lines are no JSON objects and were left out" if lost else None


def read_object(path: Path) -> tuple[Record, str | None]:
    """The JSON object of a file, and what is wrong with it; a missing file is an empty object."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, None
    except OSError as error:
        return {}, f"{path.name} cannot be read ({error.strerror})"
    except (ValueError, RecursionError):
        return {}, f"{path.name} is broken"
    return (value, None) if isinstance(value, dict) else ({}, f"{path.name} is broken")


def _files(folder: Path, pattern: re.Pattern[str]) -> tuple[tuple[int, Path], ...]:
    """(step, path) of what a folder holds under such names, by step."""
    try:
        names = os.listdir(folder)
    except OSError:
        return ()
    return tuple(sorted((int(match[1]), folder / name) for name in names if (match := pattern.fullmatch(name))))


def _time(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def read_run(path: Path, records: tuple[Record, ...] | None = None) -> Run:
    """Read a run folder.

    Args:
        path: the folder.
        records: the metrics, where they were read already (see `Follow`).
    """
    files = ("config", "status", "environment", "evaluation", "bits_per_dim")
    objects = {name: read_object(path / f"{name}.json") for name in files}
    events, wrong = read_lines(path / "events.jsonl")
    remarks = [remark for _, remark in objects.values()] + [wrong]
    if records is None:
        read, wrong = read_lines(path / "metrics.jsonl", thin=True)
        records = rising(read)
        remarks.append(wrong)
    checkpoints = [(step, folder) for step, folder in _files(path / "checkpoints", CHECKPOINT) if folder.is_dir()]
    manifest, counters, saved = {}, {}, None  # type: Record, Record, tuple[int, float] | None
    if checkpoints:
        step, folder = checkpoints[-1]
        manifest, wrong = read_object(folder / "manifest.json")
        counters = table(read_object(folder / "state.json")[0].get("counters"))
        saved = (step, _time(folder / "manifest.json") or _time(folder) or 0.0)
        remarks.append(f"checkpoint {folder.name}: {wrong}" if wrong else None)
    times = [_time(path / name) for name in ("metrics.jsonl", "status.json", "events.jsonl")]
    return Run(
        path,
        **{name: found for name, (found, _) in objects.items()},
        manifest=manifest,
        counters=counters,
        records=records,
        events=tuple(events),
        previews=_files(path / "samples", PREVIEW),
        neighbours=_files(path / "samples", NEIGHBOURS),
        saved=saved,
        touched=max((t for t in times if t is not None), default=None),
        remarks=tuple(remark for remark in remarks if remark),
    )


class Follow:
    """metrics.jsonl of a run that goes on: each call reads only what is new.

    A resumed run cuts the file back to its checkpoint; then, and whenever what is new does not follow, all is read
    again.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.end, self.records = path, 0, ()  # type: Path, int, tuple[Record, ...]

    def __call__(self) -> tuple[Record, ...]:
        """The records so far, by rising step; none where there is no file yet."""
        size = self._size()
        if size != self.end:
            new = self._new(size) if 0 < self.end < size else None
            self.records = self._all() if new is None else self.records + new
        return self.records

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def _new(self, size: int) -> tuple[Record, ...] | None:
        """What was appended; None where it does not follow what is known."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.end)
                data = file.read(size - self.end)
        except OSError:
            return None
        data = data[: data.rfind(b"\n") + 1]
        lines = data.split(b"\n")[:-1]
        found = _objects(lines)
        steps = [number(record.get("step")) for record in (*self.records[-1:], *found)]
        if len(found) < len(lines) or not all(a < b for a, b in pairwise(steps)):
            return None
        self.end += len(data)
        return tuple(found)

    def _all(self) -> tuple[Record, ...]:
        try:
            data = self.path.read_bytes()
        except OSError:
            data = b""
        self.end = data.rfind(b"\n") + 1
        found, _ = read_lines(self.path, thin=True)
        return rising(found)
