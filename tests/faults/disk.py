"""Disks that fill up or fail, and a disk that remembers the order of what it was asked, to lose what was not synced."""

from __future__ import annotations

import builtins
import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from diffunet import storage


class Disk:
    """Under `storage`: takes `room` bytes, then fails with `error`, for ever or so many times; counts in `failed`."""

    def __init__(self, patch: pytest.MonkeyPatch, room: int, error: int = errno.ENOSPC, times: int = 10**9) -> None:
        self.room, self.error, self.times, self.failed = room, error, times, 0
        patch.setattr(storage, "open", self._open, raising=False)

    def _open(self, path: Path, mode: str = "r", **options: Any) -> Any:
        return _Writing(builtins.open(path, mode, **options), self)


class _Writing:
    """A file on such a disk."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self.file, self.disk, self.flush, self.fileno = file, disk, file.flush, file.fileno

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        disk = self.disk
        if len(data) > disk.room and disk.failed < disk.times:
            disk.failed += 1
            self.file.write(data[: disk.room])
            disk.room = 0
            raise OSError(disk.error, os.strerror(disk.error))
        disk.room = max(0, disk.room - len(data))
        return self.file.write(data)


class Recorder:
    """The order of what is asked of the files below a folder: (what, path, other path or bytes)."""

    def __init__(self, root: Path) -> None:
        self.root, self.log = root, []
        self.begun = root.with_name("begun")
        shutil.copytree(root, self.begun)

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Record from now on."""
        rename, fsync, mkdir, unlink, rmdir = os.rename, os.fsync, os.mkdir, os.unlink, os.rmdir
        opened = builtins.open

        def name(path: Any, dir_fd: int | None = None) -> str:
            place = Path(os.readlink(f"/proc/self/fd/{dir_fd}")) if dir_fd is not None else Path()
            return os.path.relpath(place / os.fspath(path), self.root)

        def synced(handle: int) -> None:
            fsync(handle)
            path = Path(os.readlink(f"/proc/self/fd/{handle}"))
            self.log.append(("fsync", name(path), b"" if path.is_dir() else path.read_bytes()))

        def moved(old: Any, new: Any, **options: Any) -> None:
            rename(old, new, **options)
            self.log.append(("rename", name(old), name(new)))

        def made(path: Any, *args: Any, **options: Any) -> None:
            mkdir(path, *args, **options)
            self.log.append(("mkdir", name(path), b""))

        def removed(path: Any, *, dir_fd: int | None = None) -> None:
            self.log.append(("remove", name(path, dir_fd), b""))
            unlink(path, dir_fd=dir_fd)

        def emptied(path: Any, *, dir_fd: int | None = None) -> None:
            self.log.append(("remove", name(path, dir_fd), b""))
            rmdir(path, dir_fd=dir_fd)

        def written(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if "w" in mode:
                self.log.append(("create", name(path), b""))
            return opened(path, mode, *args, **options)

        for function, what in ((synced, "fsync"), (moved, "rename"), (made, "mkdir"), (removed, "unlink")):
            patch.setattr(os, what, function)
        patch.setattr(os, "rmdir", emptied)
        patch.setattr(builtins, "open", written)
        patch.setattr(Path, "write_bytes", lambda path, data: _plain(written, path, data))


def _plain(opener: Any, path: Path, data: bytes) -> int:
    """A write without fsync, for the mutation checks."""
    with opener(path, "wb") as file:
        return file.write(data)


def after_power_cut(recorder: Recorder, length: int, seed: int, place: Path) -> None:
    """What the disk holds after the first `length` requests and a power cut.

    A change of a name is safe once its folder was synced after it; bytes are safe once their file was. Of the rest each
    may have reached the disk or not, whatever the order: seed 0 has all of it there, 1 nothing, others draw lots.
    """
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(recorder.begun, place)
    log, chance = recorder.log[:length], random.Random(seed)
    synced = {path: data for what, path, data in log if what == "fsync"}
    lost: dict[str, str] = {}  # a new name that was lost: the old one
    for at, (what, path, other) in enumerate(log):
        folder = os.path.dirname(path) or "."
        safe = any(what == "fsync" and later == folder for what, later, _ in log[at:])
        kept = safe or (chance.random() < 0.5 if seed > 1 else seed == 0)
        first, _, rest = path.partition("/")
        target = place / lost.get(first, first) / rest
        if what == "rename" and not kept:
            lost[str(other)] = path
        elif kept:
            _redo(what, target, place / str(other), synced.get(path) or (_final(recorder, path) if seed == 0 else b""))


def _redo(what: str, target: Path, other: Path, data: bytes) -> None:
    """One request again, where what it needs is there."""
    if what == "mkdir":
        target.mkdir(parents=True, exist_ok=True)
    elif what == "create" and target.parent.is_dir():
        target.write_bytes(data)
    elif what == "rename" and target.exists():
        target.rename(other)
    elif what == "remove" and target.exists():
        shutil.rmtree(target) if target.is_dir() else target.unlink()


def _final(recorder: Recorder, path: str) -> bytes:
    """What was written to a file in the end, wherever it was moved."""
    for what, old, new in recorder.log:
        if what == "rename" and isinstance(new, str) and path.startswith(old + "/"):
            path = new + path[len(old) :]
    found = recorder.root / path
    return found.read_bytes() if found.is_file() else b""


def use_a_file_that_shrinks(args: list[str]) -> int:
    """Open weights, cut their file to nothing, and use them; for a process that may die of it."""
    import safetensors.torch

    from diffunet import load

    path = Path(args[0])
    read = (
        (lambda: load(path).network.state_dict()) if args[1] == "ours" else (lambda: safetensors.torch.load_file(path))
    )
    tensors = read()
    os.truncate(path, 0)
    return 0 if all(bool(value.double().sum().isfinite()) for value in tensors.values()) else 1
