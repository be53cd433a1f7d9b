"""Ways to make a process suffer; armed in a child of the zygote, so that nothing has to be put right again.

Each is a function of the table at the foot: `arm(kind="event", at=7, act="kill")`. `where` names functions as
"module:name" or "module:Class.name".
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

CHECKPOINT = "diffunet.training.checkpoint"
SAVE = (f"{CHECKPOINT}:write", f"{CHECKPOINT}:rotate")
LOAD = (f"{CHECKPOINT}:clean", f"{CHECKPOINT}:newest")
AUDITED = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree", "os.chmod", "os.listdir"}
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "ESTALE": errno.ESTALE}


def patch(where: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put `make(function)` in the place of a function."""
    module, _, path = where.partition(":")
    *owners, name = path.split(".")
    owner: Any = import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    right = getattr(owner, name)
    setattr(owner, name, wraps(right)(make(right)))


def suffer(act: str) -> None:
    """Die, or raise the error of the system that `act` names."""
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(ERRORS[act], os.strerror(ERRORS[act]))


class HalfWritten:
    """A file whose writes are events, with what `storage` uses of files."""

    def __init__(self, file: Any, events: Events) -> None:
        self.file, self.events = file, events
        self.flush, self.fileno = file.flush, file.fileno

    def __enter__(self) -> HalfWritten:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        """Half of it reaches the disk where this event is the chosen one."""

        def half() -> None:
            self.file.write(data[: len(data) // 2])
            self.file.flush()

        self.events.event("write", half)
        return self.file.write(data)


class Events:
    """Counts the file-system events inside of some functions and acts at chosen ones.

    What Python audits, and each write and fsync besides; a write that fails or is killed leaves half of its bytes.
    """

    def __init__(self, where: Sequence[str], due: Callable[[int], bool], act: str, note: str | None) -> None:
        self.due, self.act, self.note = due, act, note
        self.depth = self.count = 0
        for name in where:
            patch(name, self._inside)
        patch("os:fsync", self._before)
        storage = import_module("diffunet.storage")
        storage.open = self._open
        storage._PAUSES = (0.0, 0.0, 0.0)  # three more attempts, at once
        sys.addaudithook(self._audit)

    def _inside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.depth += 1
            try:
                return function(*args, **options)
            finally:
                self.depth -= 1

        return call

    def _before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.event("fsync", lambda: None)
            return function(*args)

        return call

    def _audit(self, name: str, args: tuple[Any, ...]) -> None:
        if name not in AUDITED or not self.depth:
            return
        # a call of Python's own cannot fail, and to read or to remove needs no room
        makes = name in ("os.mkdir", "os.rename") or (
            name == "open" and isinstance(args[2], int) and args[2] & os.O_CREAT
        )
        if self.act == "kill" or (name != "shutil.rmtree" and (makes or self.act != "ENOSPC")):
            self.event(name, lambda: None)

    def _open(self, path: Path, mode: str = "r", **options: Any) -> Any:
        file = open(path, mode, **options)  # noqa: SIM115 (the caller closes it)
        return HalfWritten(file, self) if "w" in mode else file

    def event(self, name: str, half: Callable[[], None]) -> None:
        """One more; at a chosen one, leave half of the work and act."""
        if not self.depth:
            return
        self.count += 1
        if self.due(self.count):
            depth, self.depth = self.depth, 0
            half()
            if self.note:
                Path(self.note).write_text(f"{self.count} {name}")
            self.depth = depth
            suffer(self.act)


def event(at: int, act: str, where: Sequence[str] = SAVE, times: int = 1, note: str | None = None) -> None:
    """SIGKILL ("kill"), "ENOSPC" or "EIO" at the `at`-th event inside `where`, and at `times` in all from there on."""
    Events(where, lambda count: at <= count < at + times, act, note)


def slow_disk(seconds: float) -> None:
    """Each fsync takes so long, as on a disk that turns."""

    def slowly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            time.sleep(seconds)
            return function(*args)

        return call

    patch("os:fsync", slowly)


def at_call(where: str, call: int, act: Callable[[], Any]) -> None:
    """Do something on the `call`-th call of a function (from 1), and then call it."""
    count = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def through(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == call:
                act()
            return function(*args, **options)

        return through

    patch(where, counted)


def signalled(where: str, call: int, number: int, note: str | None = None, metrics: str | None = None) -> None:
    """The process gets a signal as it enters a function; the note says when, and after how many lines of metrics."""

    def act() -> None:
        if note:
            lines = Path(metrics).read_bytes().count(b"\n") if metrics and Path(metrics).exists() else 0
            Path(note).write_text(f"{time.time()} {lines}")
        os.kill(os.getpid(), number)

    at_call(where, call, act)


def raised(where: str, call: int, error: str, text: str = "planted") -> None:
    """A function raises `module:Name`."""
    module, name = error.split(":")
    kind = getattr(import_module(module), name)

    def act() -> None:
        raise kind(text)

    at_call(where, call, act)


def slept(where: str, call: int, seconds: float) -> None:
    """A function takes longer, once."""
    at_call(where, call, lambda: time.sleep(seconds))


def worker(position: int, act: str, once: str | None = None) -> None:
    """A data worker is killed, raises or hangs at a sample's position; `once`: a mark that says it has happened."""
    acts: dict[str, Callable[[], Any]] = {
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "raise": lambda: 1 // 0,
        "hang": lambda: time.sleep(600),
    }

    def spoilt(function: Callable[..., Any]) -> Callable[..., Any]:
        def item(self: Any, at: int) -> Any:
            if at == position and multiprocessing.parent_process() and not (once and Path(once).exists()):
                if once:
                    Path(once).touch()
                acts[act]()
            return function(self, at)

        return item

    patch("diffunet.training.indexstream:Stream.__getitem__", spoilt)


def limit(name: str, value: int) -> None:
    """A limit of the system: FSIZE, or AS beyond what is in use now."""
    if name == "AS":
        value += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    which = getattr(resource, f"RLIMIT_{name}")
    resource.setrlimit(which, (value, resource.getrlimit(which)[1]))


def spoil(steps: dict[str, str], rank: int | None = None) -> None:
    """The loss of some steps (from 1) is multiplied, or its gradient: {"3": "nan loss", "5": "inf gradient"}."""

    def wrong(function: Callable[..., Any]) -> Callable[..., Any]:
        def loss(self: Any, *args: Any) -> Any:
            right = function(self, *args)
            value, what = steps.get(str(self.counters.step + 1), "1 loss").split()
            if rank is not None and os.environ.get("RANK") != str(rank):
                return right
            if what == "loss":
                return right * float(value)
            right.register_hook(lambda gradient: gradient * float(value))
            return right

        return loss

    patch("diffunet.training.stepper:Stepper._loss", wrong)


def umask(mask: int) -> None:
    """The mask of new files."""
    os.umask(mask)


def scaler(scale: float) -> None:
    """A loss scaler as fp16 has it, on a CPU, where accelerate makes none."""
    import torch

    def scaled(function: Callable[..., Any]) -> Callable[..., Any]:
        def init(self: Any, *args: Any, **options: Any) -> None:
            function(self, *args, **options)
            self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)

        return init

    patch("accelerate:Accelerator.__init__", scaled)


FAULTS: dict[str, Callable[..., None]] = {
    "event": event,
    "slow_disk": slow_disk,
    "signalled": signalled,
    "raised": raised,
    "slept": slept,
    "worker": worker,
    "limit": limit,
    "spoil": spoil,
    "umask": umask,
    "scaler": scaler,
}


def arm(kind: str, **options: Any) -> None:
    """Arm one fault of this process."""
    FAULTS[kind](**options)
