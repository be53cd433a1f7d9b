"""`diffunet train --dry-run`: a report and a picture, and not a trace in the run that follows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffunet.cli import main
from diffunet.preflight import learning
from tests import segments
from tests.cli.test_train import train
from tests.training.runs import assert_same_run


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not cut the fit of a batch short."""
    monkeypatch.setattr(learning, "SECONDS", 300.0)


def test_a_dry_run_reports_for_people_and_leaves_one_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "--dry-run", "--data.flip", "false") == 0
    out = capsys.readouterr().out
    for line in ("data.flip = False", "train.steps = 24", "train.clip_norm = 1.0", "process.schedule.kind = 'linear'"):
        assert f"{line}\n" in out
    assert re.search(r"1438 training and 359 held-out images of 1x8x8\nmodel: [\d,]+ parameters", out)
    assert out.endswith("no warnings\ndry run: nothing was trained\n")
    titles = re.findall(r"^(\w+):$", out, flags=re.MULTILINE)
    assert titles == ["data", "model", "process", "picture", "learning", "cost", "disk"]
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["dry-run.png"]
    with Image.open(tmp_path / "run" / "dry-run.png") as picture:
        assert picture.mode == "RGB"
        assert picture.width > 9 * 96


def test_a_run_after_a_dry_run_is_the_run_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one process, so that a generator or a number of threads left behind would show."""
    assert train(tmp_path, "--train.steps", "5", run="alone") == 0
    capsys.readouterr()
    # another config, which the folder must not remember
    assert train(tmp_path, "--dry-run", "--json", "--train.steps", "9", "--train.seed", "3", run="after") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["warnings"] == []
    assert (result["train_images"], result["held_out_images"], result["shape"]) == (1438, 359, [1, 8, 8])
    assert result["config"]["train.betas"] == [0.9, 0.999]
    assert result["config"]["train.seed"] == 3
    assert result["learning"]["fit"]["last"] < 0.5 * result["learning"]["fit"]["first"]
    assert result["cost"]["run_seconds"] == pytest.approx(9 * result["cost"]["step_seconds"])
    assert train(tmp_path, "--train.steps", "5", run="after") == 0
    assert_same_run(tmp_path / "alone", tmp_path / "after", 5)


def test_a_warning_is_marked_and_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array = np.random.default_rng(0).random((30, 6, 7), dtype=np.float32) * 0.1
    np.savez(tmp_path / "dim.npz", arr_0=array, arr_1=np.arange(30) % 10)
    flags = ["--data.name", "array", "--data.path", str(tmp_path / "dim.npz"), "--train.learning_rate", "1e-7"]
    assert train(tmp_path, "--dry-run", *flags) == 0
    out = capsys.readouterr().out
    for line in ("values fill 10 % of the range 0 to 1", "the loss of one batch fell only from"):
        assert re.search(rf"^  WARNING: .*{line}", out, flags=re.MULTILINE)
    assert "2 warning(s), marked above" in out


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--data.name", "folder", "--data.path", "/nowhere"], 3),
        (["--model.in_channels=3", "--model.out_channels=3"], 3),
        (["--train.precision", "fp16"], 2),
        (["--train.lerning_rate", "1"], 2),
    ],
)
def test_what_cannot_be_trained_is_refused_as_ever(tmp_path: Path, flags: list[str], code: int) -> None:
    assert train(tmp_path, "--dry-run", *flags) == code
    assert not (tmp_path / "run").exists()


def test_segmentation_has_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", str(segments.write_config(tmp_path)), "--out", str(tmp_path / "run"), "--dry-run", "--json"]
    assert main([*command, "--train.precision", "bf16"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["data"]["classes"]) == {"gap", "blob"}
    assert result["learning"]["fit"]["last"] < 0.9 * result["learning"]["fit"]["first"]
    assert 0 < result["learning"]["precision"]["largest"] < 1000
    with Image.open(tmp_path / "run" / "dry-run.png") as picture:
        shown = np.array(picture)
    assert (shown != shown[..., :1]).any(), "classes are laid over in colour"
    assert "sample.steps" not in result["config"]


@pytest.mark.parametrize(("shape", "layout", "dims"), [((24, 2, 40), "ncl", 1), ((24, 5, 6, 7), "ndhw", 3)])
def test_signals_and_volumes_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: tuple[int, ...], layout: str, dims: int
) -> None:
    array = np.random.default_rng(0).random(shape, dtype=np.float32)
    np.savez(tmp_path / "data.npz", arr_0=array, arr_1=np.arange(24) % 10)
    channels = 2 if dims == 1 else 1
    flags = ["--data.name", "array", "--data.path", str(tmp_path / "data.npz"), "--data.layout", layout,
             "--data.flip", "false", "--model.dims", str(dims), f"--model.in_channels={channels}",
             f"--model.out_channels={channels}", "--train.batch_size", "2"]  # fmt: skip
    assert train(tmp_path, "--dry-run", "--json", *flags) == 0
    assert json.loads(capsys.readouterr().out)["shape"] == [channels, *shape[-dims:]]
    with Image.open(tmp_path / "run" / "dry-run.png") as picture:
        assert picture.width > 9 * 96
