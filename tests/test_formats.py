"""Files that earlier versions wrote load for ever.

tests/fixtures/format-N holds a weights file with eight values of an image that its writer drew from it, and a run of
two steps with the loss of the third as its writer continued it. A new format gets a new folder; these stay as they are.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from diffunet import generate, load
from diffunet.cli import main

FORMATS = sorted((Path(__file__).parent / "fixtures").glob("format-*"))


@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: folder.name)
def test_old_weights_draw_the_same_image(folder: Path) -> None:
    """Float32 sums may be ordered otherwise on another processor: 1e-4 of values in [-1, 1]."""
    expected = json.loads((folder / "expected.json").read_text())
    image = generate(load(folder / "weights.safetensors"), 1, "ddim", 5, seed=3, class_labels=1)
    assert image.flatten()[:8].tolist() == pytest.approx(expected["image"], abs=1e-4)


@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: folder.name)
def test_an_old_run_goes_on(folder: Path, tmp_path: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    shutil.copytree(folder / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    assert main(["train", str(config), "--out", str(tmp_path / "run"), "--train.steps", "3"]) == 0
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 3
    assert last["loss"] == pytest.approx(expected["loss"], rel=1e-4)
