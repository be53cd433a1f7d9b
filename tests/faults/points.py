"""T2 on a tiny checkpoint: every event of clean-up, load, save and rotation, by fork, without a network.

Run in a child of the zygote: `call="tests.faults.points:main"` with a folder and a file for the results.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

from diffunet.errors import UserError
from diffunet.training import checkpoint
from tests.faults import injections

FILES = {"network.safetensors": b"weights" * 50, "state.json": b'{"step": 1}', "ema.safetensors": b"average" * 40}
WHERE = (*injections.LOAD, *injections.SAVE)
# what the process does at the event, and for how many events in a row
ACTS = (("kill", 1), ("ENOSPC", 10_000), ("EIO", 1), ("EIO", 10_000))
BUG, FAILED = 1, 5


def prepare(root: Path) -> None:
    """Two checkpoints, and what a killed process left; made once and then copied."""
    shutil.rmtree(root, ignore_errors=True)
    if (once := root.with_name("once")).exists():
        shutil.copytree(once, root)
        return
    for step in (1, 2):
        checkpoint.write(root, step, files(step), {})
    for name in (".tmp-00000003-4711", ".trash-00000000-4711"):
        shutil.copytree(root / "step-00000001", root / name)
    shutil.copytree(root, once)


def files(step: int) -> dict[str, bytes]:
    return {name: data + bytes([step]) for name, data in FILES.items()}


def work(root: Path) -> None:
    """What a resumed run does to its checkpoints, up to its next save."""
    checkpoint.clean(root)
    found, _ = checkpoint.newest(root)
    assert found is not None
    checkpoint.write(root, 3, files(3), {})
    checkpoint.rotate(root, 2)


def suffer(root: Path, events: injections.Events, note: Path) -> int:
    """`work` with the fault that `events` waits for: its exit code."""
    try:
        work(root)
    except UserError:
        return FAILED
    except Exception as error:
        note.write_text(f"{note.read_text()} {error!r}")
        return BUG
    return 0


def die(root: Path, events: injections.Events, note: Path) -> int:
    """The same in a fork, which is killed."""
    pid = os.fork()
    if pid == 0:
        os._exit(suffer(root, events, note))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def judge(root: Path) -> tuple[int, bool, int]:
    """The newest step, whether all that is visible is whole, and how many there are; without any fault."""
    found, reasons = checkpoint.newest(root)
    right = found is not None and dict(found.files) == files(found.step) and not reasons
    return found.step if found else 0, right, len(checkpoint.steps(root))


def main(args: list[str]) -> int:
    """Every act at every event until one never comes; a line of JSON each."""
    folder, results = Path(args[0]), Path(args[1])
    root, note = folder / "root", folder / "note"
    lines: list[dict[str, Any]] = []
    events = injections.Events(WHERE, lambda count: False, "kill", str(note))
    for act, times in ACTS:
        for at in range(1, 500):
            events.due = lambda count: False
            prepare(root)
            note.unlink(missing_ok=True)
            events.count, events.act = 0, act
            events.due = lambda count, at=at, times=times: at <= count < at + times
            code = (die if act == "kill" else suffer)(root, events, note)
            events.due = lambda count: False
            if not note.exists():
                break
            newest, right, count = judge(root)
            landed = code == -signal.SIGKILL if act == "kill" else True
            said = note.read_text().split(" ", 2)
            lines.append({"act": act, "times": times, "at": at, "event": said[1], "said": said[2:], "code": code})
            lines[-1] |= {"newest": newest, "right": right, "count": count, "landed": landed}
    results.write_text("\n".join(map(json.dumps, lines)))
    return 0
