"""`diffunet evaluate --bits-per-dim`: both figures and what they are made of, and where there are none."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from diffunet.cli import main
from diffunet.cli.bits import levels_of
from tests.cli.test_evaluate import refusal

QUICK = ["--bits-per-dim", "--n", "2", "--times", "5"]


def test_both_figures_are_printed_and_written(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    capsys.readouterr()
    assert main(["evaluate", str(run), *QUICK]) == 0
    text = capsys.readouterr().out
    result = json.loads((run / "bits_per_dim.json").read_text())
    assert (result["images"], result["levels"], result["given_class"]) == (2, 17, True)
    assert set(result["bits_per_dim"]) == {"bound", "flow, noise", "flow, uniform"}
    for name, found in result["bits_per_dim"].items():
        assert name in text
        assert f"{found['mean']:.3f}" in text
        assert sum(found["parts"].values()) == pytest.approx(found["mean"], abs=1e-4)
        assert {f"t {b / 10:.1f}-{(b + 1) / 10:.1f}" for b in range(10)} < set(found["parts"])
        assert math.isfinite(found["error"])
    assert "17 grey values" in text
    assert max(map(len, text.splitlines())) <= 110


def test_grey_values_are_counted_from_the_range_of_the_data() -> None:
    for levels in (2, 17, 256, 65536):
        values = torch.randint(0, levels, (50,), generator=torch.Generator().manual_seed(0)) / (levels - 1) * 2 - 1
        assert levels_of(values, (0.0, levels - 1.0)) == levels
    assert levels_of(torch.tensor([0.1234]), (0.0, 255.0)) is None
    assert levels_of(torch.tensor([-1.0, 1.0]), (-0.5, 0.5)) is None


def test_where_it_makes_no_sense_it_says_so(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--sampler: for samples" in refusal(capsys, 2, trained, "--bits-per-dim", "--sampler=ddim")
    assert "needs 100000 held-out images, found 359" in refusal(capsys, 2, trained, "--bits-per-dim", "--n=100000")
    assert "--times is for --bits-per-dim" in refusal(capsys, 2, trained, "--times=5")
    assert not (trained / "bits_per_dim.json").exists()
