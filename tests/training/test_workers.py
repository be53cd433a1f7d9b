"""Data workers that die or hang: started again once from the same batch, so that no sample is lost or doubled."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from diffunet.cli import main
from diffunet.training.compare import difference
from diffunet.training.indexstream import Stream
from tests.training.runs import metrics, write_config

CULPRIT = 100  # the position whose worker fails


def spoil(patch: pytest.MonkeyPatch, marks: Path, times: int, hang: bool = False) -> None:
    """Let the worker that is asked for CULPRIT die of SIGKILL, or hang, the first few times that it is."""
    right, own = Stream.__getitem__, os.getpid()

    def wrong(self: Stream, position: int) -> dict[str, Any]:
        if position == CULPRIT and os.getpid() != own and len(list(marks.iterdir())) < times:
            (marks / str(os.getpid())).touch()
            time.sleep(1000) if hang else os.kill(os.getpid(), signal.SIGKILL)
        return right(self, position)

    patch.setattr(Stream, "__getitem__", wrong)


def train(folder: Path, *flags: str, run: str = "run") -> int:
    config = str(write_config(folder, steps="12"))
    return main(["train", config, "--out", str(folder / run), "--train.workers", "2", *flags])


def assert_names_the_culprit(message: str) -> None:
    found = re.search(r"died or hung before step (\d+), over samples (\d+) to (\d+): \S+", message)
    assert found is not None, message
    step, first, last = map(int, found.groups())
    assert first == (step - 1) * 12 <= CULPRIT <= last < first + 12 * 5


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


@pytest.mark.parametrize("hang", [False, True])
def test_a_worker_that_fails_once_costs_nothing(
    tmp_path: Path, marks: Path, monkeypatch: pytest.MonkeyPatch, hang: bool
) -> None:
    assert train(tmp_path, run="golden") == 0
    with monkeypatch.context() as patch:
        spoil(patch, marks, 1, hang)
        assert train(tmp_path, "--train.worker_timeout", "3.0") == 0
    assert len(list(marks.iterdir())) == 1, "no worker failed: the test proves nothing"
    assert difference(tmp_path / "golden", tmp_path / "run") is None
    found = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    (event,) = [event for event in found if event["kind"] == "worker_restarted"]
    assert_names_the_culprit(event["message"])


def test_a_worker_that_fails_again_ends_the_run_with_its_samples_named(
    tmp_path: Path, marks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, marks, 9)
    assert train(tmp_path) == 9
    error = capsys.readouterr().err.splitlines()[-1]
    assert_names_the_culprit(error)
    assert "error[E-WORKER]" in error
    assert "failed again" in error
    assert len(metrics(tmp_path / "run")) <= 8
    assert len(list(marks.iterdir())) == 2
