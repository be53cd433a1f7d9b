"""The order of a save: a crash anywhere leaves whole checkpoints, and durable ones.

Each promise is a check that fails when the step of the protocol that keeps it is taken out.
"""

from __future__ import annotations

import builtins
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffunet import storage
from diffunet.training import checkpoint
from diffunet.training.checkpoint import DamagedError, newest, read, rotate, steps, write
from tests.training.test_checkpoint import FILES, save

# --- crashes ----------------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The machine stops here."""


class Machine:
    """Counts what a program asks of the file system, and stops for ever at a chosen event, as SIGKILL would."""

    def __init__(self, patch: pytest.MonkeyPatch, stop_at: int | None = None) -> None:
        self.events: list[tuple[str, str]] = []
        self.stop_at = stop_at
        for module, name in ((os, "rename"), (os, "mkdir"), (os, "fsync"), (os, "rmdir"), (os, "unlink")):
            patch.setattr(module, name, self._watched(name, getattr(module, name)))
        patch.setattr(builtins, "open", self._watched("open", builtins.open))
        patch.setattr(shutil, "rmtree", self._watched("rmtree", shutil.rmtree))

    def _watched(self, name: str, function: Any) -> Any:
        def call(target: Any, *args: Any, **options: Any) -> Any:
            if self.stop_at is not None and len(self.events) >= self.stop_at:
                raise Crash
            path = os.readlink(f"/proc/self/fd/{target}") if name == "fsync" else str(target)
            self.events.append((name, path))
            return function(target, *args, **options)

        return call


def crashes(root: Path, keep: int = 2) -> Iterator[int]:
    """Save step 3 after 1 and 2, once for each event of it, and stop at that event; gives the event's number."""
    event = 0
    while True:
        shutil.rmtree(root, ignore_errors=True)
        for step in (1, 2):
            save(root, step, keep)
        with pytest.MonkeyPatch.context() as patch:
            Machine(patch, event)
            try:
                save(root, 3, keep)
                return
            except Crash:
                pass
        yield event
        event += 1


def check_a_crash_anywhere_leaves_a_checkpoint(root: Path, keep: int = 2) -> None:
    landed = 0
    for event in crashes(root, keep):
        found, reasons = newest(root)
        assert found is not None, f"nothing is left after event {event}"
        assert found.step in (2, 3)
        assert not reasons
        landed += 1
    assert landed >= 14, "too few events: the check proves nothing"


def check_what_is_visible_is_whole(root: Path) -> None:
    for _ in crashes(root):
        for step in steps(root):
            assert read(root, step).files["state.json"] == FILES["state.json"] + bytes([step])


def check_files_are_durable_before_their_name(root: Path) -> None:
    """fsync of every file, the manifest last, then of their folder; then one rename; then fsync of the parent."""
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine(patch)
        save(root, 1)
    done = [(name, Path(path).name) for name, path in machine.events if name in ("fsync", "rename")]
    temporary = f".tmp-00000001-{os.getpid()}"
    files = [("fsync", name) for name in (*FILES, "manifest.json")]
    assert done == [*files, ("fsync", temporary), ("rename", temporary), ("fsync", root.name)]


def check_every_flipped_bit_is_found(folder: Path) -> None:
    """300 random bits, one at a time, shared evenly by all files: reported with the file's name, the rest unharmed."""
    root, step, chance = folder.parent, int(folder.name[5:]), random.Random(0)
    paths = sorted(folder.iterdir())
    for i in range(300):
        path = paths[i % len(paths)]
        data = bytearray(path.read_bytes())
        place = chance.randrange(8 * len(data))
        data[place // 8] ^= 1 << place % 8
        with open(path, "r+b") as file:
            file.write(data)
        with pytest.raises(DamagedError, match=f"{re.escape(path.name)} does not match its SHA-256"):
            read(root, step)
        data[place // 8] ^= 1 << place % 8
        with open(path, "r+b") as file:
            file.write(data)
    assert read(root, step).step == step


def test_a_crash_anywhere_leaves_a_checkpoint(tmp_path: Path) -> None:
    check_a_crash_anywhere_leaves_a_checkpoint(tmp_path / "root")
    check_a_crash_anywhere_leaves_a_checkpoint(tmp_path / "root", keep=1)


def test_what_is_visible_is_whole(tmp_path: Path) -> None:
    check_what_is_visible_is_whole(tmp_path / "root")


def test_files_are_durable_before_their_name(tmp_path: Path) -> None:
    check_files_are_durable_before_their_name(tmp_path)


def test_every_flipped_bit_of_a_real_checkpoint_is_found(golden: Path, tmp_path: Path) -> None:
    """One more than the manifest's last byte would be a bit outside of JSON; so would be one in any other file."""
    folder = Path(shutil.copytree(golden / "checkpoints" / "step-00000024", tmp_path / "step-00000024"))
    check_every_flipped_bit_is_found(folder)


# --- without one step of the protocol, a check fails ------------------------------------------------------------------


def test_mutation_rotating_first_loses_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rotated_first(root: Path, *args: Any) -> Path:
        rotate(root, 1)
        for step in steps(root):
            os.rename(root / f"step-{step:08d}", root / f".trash-{step:08d}-1")
        return write(root, *args)

    monkeypatch.setattr(checkpoint, "write", rotated_first)
    with pytest.raises(AssertionError, match="nothing is left after event"):
        check_a_crash_anywhere_leaves_a_checkpoint(tmp_path / "root", keep=1)


def test_mutation_writing_in_place_shows_half_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_place(root: Path, step: int, files: dict[str, bytes], facts: dict[str, Any]) -> None:
        whole = write(root / "elsewhere", step, files, facts)
        place = root / whole.name
        os.mkdir(place)
        for path in whole.iterdir():
            with open(place / path.name, "wb") as file:
                file.write(path.read_bytes())

    monkeypatch.setattr(checkpoint, "write", in_place)
    with pytest.raises(DamagedError):
        check_what_is_visible_is_whole(tmp_path / "root")


def test_mutation_without_fsync_the_order_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "write_durable", lambda path, data: path.write_bytes(data))
    with pytest.raises(AssertionError):
        check_files_are_durable_before_their_name(tmp_path)


def test_mutation_without_hashes_a_flipped_bit_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Same:
        def hexdigest(self) -> str:
            return "0"

    save(tmp_path, 1)
    check_every_flipped_bit_is_found(tmp_path / "step-00000001")
    shutil.rmtree(tmp_path / "step-00000001")
    monkeypatch.setattr(checkpoint.hashlib, "sha256", lambda data: Same())
    save(tmp_path, 1)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check_every_flipped_bit_is_found(tmp_path / "step-00000001")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """At every event of `write_file` the name holds the old or the new content."""
    path, event = tmp_path / "file", 0
    while True:
        path.write_bytes(b"old")
        with pytest.MonkeyPatch.context() as patch:
            machine = Machine(patch, event)
            try:
                storage.write_file(path, b"new" * 1000)
                break
            except Crash:
                assert path.read_bytes() in (b"old", b"new" * 1000)
        event += 1
    assert event >= 4
    order = [(name, Path(target).name) for name, target in machine.events if name in ("fsync", "rename")]
    temporary = f".tmp-file-{os.getpid()}"
    assert order[:3] == [("fsync", temporary), ("rename", temporary), ("fsync", tmp_path.name)]
