"""T2: SIGKILL, a full disk and a failing disk at every file-system event of clean-up, load, save and rotation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.faults.points import ACTS, BUG, FAILED
from tests.training.conftest import Zygote


@pytest.fixture(scope="module")
def results(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("points")
    code = zygote.run([folder, folder / "results"], folder / "log", call="tests.faults.points:main")
    assert code == 0, (folder / "log").read_text()
    return [json.loads(line) for line in (folder / "results").read_text().splitlines()]


def test_no_event_makes_a_run_unrecoverable(results: list[dict[str, Any]]) -> None:
    """The newest visible checkpoint is whole, of step 2 or 3, and there are never fewer than two."""
    bad = [r for r in results if not (r["right"] and r["newest"] in (2, 3) and r["count"] >= 2 and r["landed"])]
    assert not bad, bad


def test_every_event_of_every_part_was_struck(results: list[dict[str, Any]]) -> None:
    """Anti-vacuity: folders made, files written, made durable, renamed, read, listed and removed."""
    struck = {act: [r["event"] for r in results if r["act"] == act] for act, _ in ACTS}
    parts = {"os.mkdir", "open", "write", "fsync", "os.rename"}
    assert parts <= set(struck["ENOSPC"])
    assert parts | {"os.listdir", "os.remove", "os.rmdir"} <= set(struck["EIO"])
    assert parts | {"os.listdir", "os.remove", "os.rmdir", "shutil.rmtree"} <= set(struck["kill"])
    assert struck["kill"].count("fsync") == 3 + 1 + 2, "three files, the manifest, two folders"
    assert len(results) >= 100


def test_a_full_disk_is_an_error_and_the_old_checkpoints_stay(results: list[dict[str, Any]]) -> None:
    full = [r for r in results if r["act"] == "ENOSPC"]
    assert {r["code"] for r in full} == {FAILED}


def test_no_failing_disk_is_a_bug(results: list[dict[str, Any]]) -> None:
    bugs = [r for r in results if r["code"] == BUG]
    assert not bugs, bugs
