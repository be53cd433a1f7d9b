"""Rows S1 to S11: a disk that is full, slow, failing, read-only or lying; files that changed; a power cut."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from diffunet import storage
from diffunet.errors import StorageError
from diffunet.training import checkpoint
from diffunet.training.checkpoint import DamagedError, newest, read
from tests.faults import small
from tests.faults.disk import Disk, Recorder, after_power_cut
from tests.training.conftest import Zygote

soak = pytest.mark.soak
ERRORS = {"full": errno.ENOSPC, "failing": errno.EIO}


@pytest.fixture(scope="module")
def files(calm: Path) -> dict[str, bytes]:
    """The files of a real checkpoint."""
    return small.newest_of(calm, small.STEPS)


# --- S1, S2, T12 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("points", [5, pytest.param(100, marks=soak)])
def test_a_save_that_fails_after_any_share_of_its_bytes_keeps_the_last(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, kind: str, points: int
) -> None:
    """T12: at x % of the bytes the disk is full or fails for good; the message names the cause and the bytes needed."""
    monkeypatch.setattr(storage, "_PAUSES", (0.0, 0.0, 0.0))
    checkpoint.write(tmp_path, 1, files, {})
    need = sum(map(len, files.values()))
    for point in range(points):
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, room=need * point // points, error=ERRORS[kind])
            with pytest.raises(StorageError) as caught:
                checkpoint.write(tmp_path, 2, files, {})
        assert disk.failed
        said = str(caught.value)
        assert str(tmp_path / "step-00000002") in said
        assert os.strerror(ERRORS[kind]) in said
        assert kind == "failing" or f"need {need:,} bytes, free " in said
        assert os.listdir(tmp_path) == ["step-00000001"]
        assert newest(tmp_path)[0].files == files
    checkpoint.write(tmp_path, 2, files, {})
    assert newest(tmp_path)[0].step == 2


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE])
def test_an_error_that_passes_is_waited_for(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """S2: two failures and then success make a whole checkpoint, after growing pauses; four are one too many."""
    waited: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", waited.append)
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, room=0, error=error, times=2)
        checkpoint.write(tmp_path, 1, files, {})
    assert disk.failed == 2
    assert len(waited) == 2
    assert 0 < waited[0] < waited[1]
    assert newest(tmp_path)[0].files == files
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, room=0, error=error, times=4)
        with pytest.raises(StorageError, match=os.strerror(error)):
            checkpoint.write(tmp_path, 2, files, {})
    assert newest(tmp_path)[0].step == 1


def test_a_full_disk_stops_the_run_or_not_as_one_likes(zygote: Zygote, calm: Path, tmp_path: Path) -> None:
    """S1: `stop` ends with 5; `continue` goes on without, notes it, and saves again where there is room."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["train", small.write_config(tmp_path), "--out", run]
    full = {"kind": "event", "at": 3, "act": "ENOSPC", "times": 20}
    said = small.again(zygote, command, log, 5, faults=[full])
    assert "No space left on device" in said
    shutil.rmtree(run)
    said = small.again(zygote, [*command, "--train.on_full_disk", "continue"], log, faults=[full])
    assert "No space left on device" in said
    noted = small.events(run, "disk_full")
    assert noted
    assert "bytes" in noted[0]["message"]
    assert small.records(run) == small.records(calm)
    found = small.whole(run)
    assert found is not None
    assert found.files == small.newest_of(calm, small.STEPS)


# --- S3 ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def read_only(tmp_path: Path) -> Any:
    """A file system on which nothing can be written."""
    place = tmp_path / "read-only"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", place], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_read_only_disk_is_refused_before_the_first_step(zygote: Zygote, tmp_path: Path, read_only: Path) -> None:
    command = ["train", small.write_config(tmp_path), "--out", read_only / "run"]
    said = small.again(zygote, command, tmp_path / "log", 5)
    assert str(read_only / "run") in said
    assert "Read-only file system" in said
    assert "step 1" not in said


# --- S4, S5, S8, T5 ---------------------------------------------------------------------------------------------------


def three(root: Path, files: dict[str, bytes]) -> list[Path]:
    """Checkpoints of steps 1 to 3, each with its own bytes."""
    return [checkpoint.write(root, step, {**files, "n.json": b"%d" % step}, {}) for step in (1, 2, 3)]


def fallen_back(root: Path, name: str) -> None:
    """The newest is passed over by name, the one before is whole, and nothing of the bad one is given."""
    found, reasons = newest(root)
    assert found is not None
    assert (found.step, found.files["n.json"]) == (2, b"2")
    (reason,) = reasons
    assert reason.startswith(f"{root / 'step-00000003'} is damaged: {name}")
    assert reason.endswith("; continuing from step 2")
    with pytest.raises(DamagedError):
        read(root, 3)


@pytest.mark.parametrize("flips", [500, pytest.param(10_000, marks=soak)])
def test_every_flipped_bit_is_found_and_the_checkpoint_before_is_taken(
    tmp_path: Path, files: dict[str, bytes], flips: int
) -> None:
    """T5 over all files of a real checkpoint: each file gets its share, so that small ones are hit as well."""
    folder, chance = three(tmp_path, files)[2], random.Random(flips)
    paths = sorted(folder.iterdir())
    for turn in range(flips):
        path = paths[turn % len(paths)]
        place = chance.randrange(8 * path.stat().st_size)
        with open(path, "r+b", buffering=0) as file:
            for flipped in (True, False):  # and put right again
                file.seek(place // 8)
                byte = file.read(1)[0] ^ 1 << place % 8
                file.seek(place // 8)
                file.write(bytes([byte]))
                if flipped:
                    fallen_back(tmp_path, f"{path.name} does not match its SHA-256")
    assert newest(tmp_path)[0].step == 3


@pytest.mark.parametrize("cases", [60, pytest.param(1000, marks=soak)])
def test_truncated_emptied_missing_and_swapped_files_are_found(
    tmp_path: Path, files: dict[str, bytes], cases: int
) -> None:
    """T5: cut anywhere, gone, longer, another step's, another file's."""
    folder, chance = three(tmp_path, files)[2], random.Random(cases)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = {path.name: path.read_bytes() for path in (tmp_path / "step-00000001").iterdir()}
    for turn in range(cases):
        name = sorted(whole)[turn % len(whole)]
        data, path = whole[name], folder / name
        bad = [
            data[: chance.randrange(len(data))],
            data + data[: chance.randrange(1, 99)],
            other[name],
            whole[chance.choice([n for n in whole if n != name])],
            None,
        ][turn // len(whole) % 5]
        if bad == data:
            continue  # equal in both steps
        path.unlink() if bad is None else path.write_bytes(bad)
        fallen_back(tmp_path, name)
        path.write_bytes(data)
    assert newest(tmp_path)[0].step == 3


@pytest.mark.parametrize("kind", ["bit", "cut", "gone"])
def test_a_run_over_a_damaged_checkpoint_ends_as_the_undisturbed_one(
    zygote: Zygote, calm: Path, run: Path, kind: str
) -> None:
    """T5 in the whole program: named, passed over, kept for salvage, and nothing of it is in the end."""
    name = {"bit": "optimizer.safetensors", "cut": "state.json", "gone": "manifest.json"}[kind]
    folder = run / "checkpoints" / f"step-{small.STEPS:08d}"
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 4
    (folder / name).unlink()
    if kind != "gone":
        (folder / name).write_bytes(data if kind == "bit" else data[:-3])
    said = small.again(zygote, ["train", run.parent / "small.toml", "--out", run], run.parent / "log")
    assert f"{folder} is damaged: {name} " in said
    assert f"continuing from step {small.STEPS - 1}" in said
    assert small.events(run, "damaged")
    small.same_end(calm, run)


def test_a_file_that_is_cut_while_it_is_used_kills_nobody(zygote: Zygote, run: Path) -> None:
    """S8: weights that are open survive the truncation of their file; a memory map would die by SIGBUS."""
    weights = run / "weights.safetensors"
    code = zygote.run([weights, "ours"], run.parent / "log", call="tests.faults.disk:use_a_file_that_shrinks")
    assert code == 0, (run.parent / "log").read_text()
    shutil.copy(run.parent / "run" / "checkpoints" / f"step-{small.STEPS:08d}" / "network.safetensors", weights)
    assert zygote.run([weights, "mapped"], run.parent / "log", call="tests.faults.disk:use_a_file_that_shrinks") < 0


# --- S10, S11 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_every_file_of_a_run_has_the_mode_that_the_umask_leaves(
    zygote: Zygote, tmp_path: Path, mask: int, mode: int
) -> None:
    command = ["train", small.write_config(tmp_path, 2), "--out", tmp_path / "run"]
    small.again(zygote, command, tmp_path / "log", faults=[{"kind": "umask", "mask": mask}])
    modes = {p.name: oct(p.stat().st_mode & 0o777) for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert set(modes.values()) == {oct(mode)}, modes


def check_any_power_cut_leaves_a_checkpoint(root: Path, files: dict[str, bytes]) -> int:
    """S11: after any prefix of a save, with any lot of what had reached the disk, the newest is whole; how many."""
    checkpoint.write(root, 1, files, {})
    recorder = Recorder(root)
    with pytest.MonkeyPatch.context() as patch:
        recorder.watch(patch)
        checkpoint.write(root, 2, files, {})
        checkpoint.rotate(root, 1)
    states = 0
    for length, seed in itertools.product(range(len(recorder.log) + 1), range(12)):
        place = root.with_name("after")
        after_power_cut(recorder, length, seed, place)
        found, reasons = newest(place)
        assert found is not None, f"nothing is left after {recorder.log[:length][-1:]}, lots {seed}"
        assert not reasons, (reasons, recorder.log[:length][-1:], seed)
        states += 1
    return states


def test_any_power_cut_leaves_the_old_or_the_new_checkpoint(tmp_path: Path) -> None:
    assert check_any_power_cut_leaves_a_checkpoint(tmp_path / "root", {"a.json": b"a" * 99, "b.json": b"b" * 99}) > 150


@pytest.mark.parametrize("step", ["files", "folder", "parent"])
def test_mutation_without_one_fsync_a_power_cut_spoils_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Take out one fsync of the protocol, and a power cut shows half a checkpoint, or none."""
    if step == "files":
        monkeypatch.setattr(checkpoint, "write_durable", lambda path, data: path.write_bytes(data) and None)
    else:
        right = checkpoint.fsync_dir
        wanted = (lambda path: path.name == "root") if step == "folder" else (lambda path: path.name != "root")
        monkeypatch.setattr(checkpoint, "fsync_dir", lambda path: right(path) if wanted(path) else None)
    with pytest.raises(AssertionError):
        check_any_power_cut_leaves_a_checkpoint(tmp_path / "root", {"a.json": b"a" * 99, "b.json": b"b" * 99})
