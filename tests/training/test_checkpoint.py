"""What a checkpoint is: every bit vouched for, nothing opened that the manifest does not name, damage kept apart."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from diffunet import storage
from diffunet.errors import CheckpointError, StorageError
from diffunet.training import checkpoint
from diffunet.training.checkpoint import DamagedError, newest, read, rotate, seal, steps, write

FILES = {"network.safetensors": b"weights" * 500, "state.json": b'{"step": 1}', "ema.safetensors": b"average" * 400}
FACTS = {"data": "fingerprint", "torch": "2.13"}


def save(root: Path, step: int, keep: int = 2) -> None:
    """What the trainer does: write one, then let go of old ones. Each step's files are its own."""
    checkpoint.write(root, step, {name: data + bytes([step]) for name, data in FILES.items()}, FACTS)
    checkpoint.rotate(root, keep)


# --- what is read -----------------------------------------------------------------------------------------------------


def test_a_manifest_is_canonical_and_vouches_for_itself(tmp_path: Path) -> None:
    folder = write(tmp_path, 7, FILES, FACTS)
    assert folder == tmp_path / "step-00000007"
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert list(manifest)[-1] == "self"
    own = manifest.pop("self")
    assert own == hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    assert (folder / "manifest.json").read_bytes() == seal(manifest)
    assert manifest["data"] == "fingerprint"
    found = read(tmp_path, 7)
    assert found.files == FILES
    assert (found.step, found.path) == (7, folder)
    # the same content in another order or spacing is not what was written
    (folder / "manifest.json").write_text(json.dumps(manifest | {"self": own}))
    with pytest.raises(DamagedError, match=r"manifest\.json does not match its SHA-256"):
        read(tmp_path, 7)


def test_truncated_missing_and_exchanged_files_are_found(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    old, new = tmp_path / "step-00000001", tmp_path / "step-00000002"
    good = {path.name: path.read_bytes() for path in new.iterdir()}
    for name in good:
        for bad in (good[name][:-1], b"", good[name] + b"\0", (old / name).read_bytes()):
            (new / name).write_bytes(bad)
            found, reasons = newest(tmp_path)
            assert found is not None
            assert found.step == 1
            (reason,) = reasons
            assert reason.startswith(f"{new} is damaged: {'manifest.json' if name == 'manifest.json' else name} ")
            assert reason.endswith("; continuing from step 1")
        (new / name).unlink()
        with pytest.raises(DamagedError, match=f"{name} cannot be read"):
            read(tmp_path, 2)
        (new / name).write_bytes(good[name])
    assert newest(tmp_path)[0].step == 2


def test_a_checkpoint_under_another_steps_name_is_damaged(tmp_path: Path) -> None:
    write(tmp_path, 1, FILES, FACTS).rename(tmp_path / "step-00000009")
    with pytest.raises(DamagedError, match=r"manifest\.json is of step 1"):
        read(tmp_path, 9)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", ".hidden", "", "a\0b", "\\\\host\\share"])
def test_a_manifest_may_name_plain_files_only(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "root", 1, FILES, FACTS)
    secret = b"secret"
    (tmp_path / "root" / "x").write_bytes(secret)
    entry = {"size": len(secret), "sha256": hashlib.sha256(secret).hexdigest()}
    (folder / "manifest.json").write_bytes(seal({"format": 1, "step": 1, "files": {name: entry}}))
    with pytest.raises(DamagedError, match="which is not a plain file name"):
        read(tmp_path / "root", 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"format": 1, "step": 1},
        {"format": 1, "step": 1, "files": []},
        {"format": 1, "step": 1, "files": {}},
        {"format": 1, "step": 1, "files": {"a": 3}},
        {"format": 1, "step": 1, "files": {"a": {"size": 1}}},
        {"format": 2, "step": 1, "files": {"state.json": {"size": 1, "sha256": ""}}},
    ],
)
def test_a_sealed_manifest_of_another_form_is_no_manifest(tmp_path: Path, fields: dict[str, Any]) -> None:
    """A stranger can seal anything."""
    folder = write(tmp_path, 1, FILES, FACTS)
    for content in (seal(fields), b"[]", b"3", b'"self"', b"[" * 100_000, b"\xff"):
        (folder / "manifest.json").write_bytes(content)
        with pytest.raises(DamagedError, match=r"manifest\.json does not match its SHA-256"):
            read(tmp_path, 1)


def test_only_what_the_manifest_names_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, 1, FILES, FACTS)
    for name in ("custom_checkpoint_0.pkl", ".metadata", "optimizer.bin"):
        os.mkfifo(folder / name)  # to open it would block for ever
    opened: list[str] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (opened.append(path.name), read_bytes(path))[1])
    assert read(tmp_path, 1).files == FILES
    assert sorted(opened) == sorted([*FILES, "manifest.json"])


def test_names_are_strict_and_foreign_ones_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    foreign = ["checkpoint-tmp", "step-abc", "step-10.tmp", "step-000000030", "xstep-00000031", ".tmp-notes", ".trash"]
    ours = [".tmp-00000003-17", ".trash-00000001-99999"]
    for name in (*foreign, *ours):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("mine")
    (tmp_path / "step-00000040").write_text("a file")
    assert steps(tmp_path) == [2, 3]
    checkpoint.clean(tmp_path)
    rotate(tmp_path, 1)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*foreign, "step-00000003", "step-00000040"}
    checkpoint.clean(tmp_path / "missing")
    assert newest(tmp_path / "missing") == (None, [])


def test_where_none_is_whole_nothing_is_given(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
        (tmp_path / f"step-{step:08d}" / "state.json").write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        newest(tmp_path)
    for part in ("no valid checkpoint among 2", "step-00000001 is damaged", "step-00000002 is damaged", "Nothing was"):
        assert part in str(caught.value)
    assert steps(tmp_path) == [1, 2]


# --- what is written --------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_gives_way_and_is_kept(tmp_path: Path) -> None:
    for _ in range(3):
        folder = write(tmp_path, 1, FILES, FACTS)
        (folder / "state.json").write_bytes(b"broken")
    write(tmp_path, 1, FILES, FACTS)
    assert read(tmp_path, 1).files == FILES
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["damaged-step-00000001-0", "damaged-step-00000001-1", "damaged-step-00000001-2", "step-00000001"]
    assert (tmp_path / "damaged-step-00000001-0" / "state.json").read_bytes() == b"broken"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_have_the_mode_that_the_umask_leaves(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        folder = write(tmp_path / "root", 1, FILES, FACTS)
        storage.write_file(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {mode}
    assert folder.stat().st_mode & 0o777 == 0o777 & ~mask
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_a_write_that_fails_keeps_the_old_and_says_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError) as caught:
        save(tmp_path, 2)
    need = sum(map(len, FILES.values())) + len(FILES)
    assert re.search(rf"need {need:,} bytes, free [\d,]+ bytes \(No space left on device\)", str(caught.value))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    monkeypatch.undo()
    assert newest(tmp_path)[0].step == 1
