"""`diffunet evaluate`: every metric beside its floor, as a table, as JSON and as a file in the run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from diffunet.cli import main
from diffunet.metrics.report import LABELS
from tests.training.runs import write_config

QUICK = ["--extractor", "random_conv", "--steps", "2", "--n", "24"]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be written in."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def refusal(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """What a refused command says."""
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments)]) == code
    error = capsys.readouterr().err
    assert error.startswith("diffunet: error[E-")
    assert "Traceback" not in error
    return error


def test_the_table_has_every_metric_and_its_floor(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(run), *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    for label in LABELS.values():
        (row,) = [line for line in lines if line.startswith(label)]
        samples, floor, ratio = row.removeprefix(label).split()
        assert math.isfinite(float(samples))
        assert math.isfinite(float(floor))
        assert ratio == "-" or float(ratio) == pytest.approx(float(samples) / float(floor), rel=2e-3)
    head = " ".join(lines)
    assert "arc, 2 steps, EMA weights, guidance none" in head
    assert "24 samples against 24 held-out images, seed 0" in head
    assert max(map(len, lines)) <= 80


def test_the_result_is_json_and_lies_in_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(run), *QUICK, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((run / "evaluation.json").read_text())
    assert (result["n"], result["seed"], result["run"]) == (24, 0, str(run))
    assert "random_conv" in result["extractor"]
    assert set(result["metrics"]) == set(LABELS)
    for row in result["metrics"].values():
        assert set(row) == {"samples", "floor", "ratio"}


def test_an_evaluation_repeats_and_its_seed_matters(run: Path, tmp_path: Path) -> None:
    for name, flags in {"a": [], "b": [], "c": ["--seed", "100"], "d": ["--sampler", "ddpm"]}.items():
        assert main(["evaluate", str(run), *QUICK, "--out", str(tmp_path / name), *flags]) == 0
    texts = {name: (tmp_path / name).read_text() for name in "abcd"}
    assert texts["a"] == texts["b"]
    assert len(set(texts.values())) == 3
    assert not (run / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--extractor", "random_konv"], "unknown extractor 'random_konv'; did you mean 'random_conv'? one of: auto"),
        (["--n", "1"], "see diffunet evaluate --help"),
        (["--n", "100000"], "needs 100000 held-out images, found 359"),
        (["--sampler", "dimm"], "did you mean 'ddim'?"),
        (["--seed", "-1"], "see diffunet evaluate --help"),
    ],
)
def test_wrong_usage_is_explained(
    trained: Path, capsys: pytest.CaptureFixture[str], flags: list[str], expected: str
) -> None:
    assert expected in refusal(capsys, 2, trained, *flags)
    assert not (trained / "evaluation.json").exists()


def test_a_run_needs_held_out_images_and_to_be_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, held_out="0.0", steps="1")
    assert main(["train", str(config), "--out", str(tmp_path / "run")]) == 0
    assert "holds out no images (data.held_out = 0)" in refusal(capsys, 3, tmp_path / "run", *QUICK)
    assert "is not a run folder: it holds no config.json" in refusal(capsys, 4, tmp_path, *QUICK)
    (tmp_path / "run" / "config.json").write_text("{")
    assert "config.json is broken" in refusal(capsys, 4, tmp_path / "run", *QUICK)
