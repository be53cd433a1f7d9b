"""`diffunet train`: what is refused, and that nothing is spoilt by it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from diffunet.cli import main
from tests.cli.test_train import train
from tests.training.conftest import Zygote, wait_for
from tests.training.runs import metrics, write_config

REFUSED: list[tuple[list[str], int, str]] = [
    (["--train.precision", "fp16"], 2, "train.precision = 'fp16' needs a GPU; use 'bf16' or 'no' here"),
    (["--train.trackers", '["no-such-tracker"]'], 2, "train.trackers = ['no-such-tracker']"),
    (["--data.name", "folder", "--data.path", "/nowhere/at/all"], 3, "/nowhere/at/all"),
    (["--data.name", "array", "--data.path", "/nowhere.npy"], 3, "/nowhere.npy"),
    (["--model.in_channels=3", "--model.out_channels=3"], 3, "has 1 channels but model.in_channels = 3"),
    (["--model.num_classes=7"], 3, "has 10 classes but model.num_classes = 7"),
    (["--model.base_channels=16384"], 2, "the weights would need"),
]


@pytest.mark.parametrize(("flags", "code", "expected"), REFUSED)
def test_what_cannot_be_trained_is_refused_and_may_be_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, expected: str
) -> None:
    assert train(tmp_path, *flags, steps="1") == code
    error = capsys.readouterr().err
    assert error.startswith("diffunet: error[E-")
    assert expected in error
    assert error.count("\n") <= 6
    assert "Traceback" not in error
    run = tmp_path / "run"
    assert not list(run.glob("checkpoints/*"))
    if run.exists():
        assert json.loads((run / "status.json").read_text())["exit_code"] == code
    assert train(tmp_path, steps="1") == 0, "nothing had begun, so another config may take the folder"


def test_a_second_run_in_one_folder_is_refused(
    zygote: Zygote, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child = zygote.start(["train", write_config(tmp_path, steps="100000"), "--out", tmp_path / "run"], tmp_path / "log")
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and len(metrics(tmp_path / "run")) >= 1)
    assert train(tmp_path, steps="100000") == 5
    error = capsys.readouterr().err
    assert f"is in use by process {child.pid} on " in error
    assert "--out for another folder" in error
    child.kill(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert train(tmp_path, "--train.steps", "1") == 0, "a lock of a dead process is free"


def test_a_place_that_cannot_be_written_is_refused_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        assert main(["train", str(write_config(tmp_path)), "--out", str(out)]) == 5
        assert f"cannot write {out}" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "in the way"
