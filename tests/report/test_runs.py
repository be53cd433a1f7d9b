"""Real runs: one that is made to learn eight images by heart, and one that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffunet import report
from diffunet.report import read_run, summarize
from diffunet.report.reading import Run
from tests.report.test_page import made
from tests.training.conftest import Zygote

CONFIG = """
[run]
name = "NAME"
[model]
in_channels = 1
out_channels = 1
base_channels = 16
channel_multipliers = [1, 2]
blocks_per_level = 1
attention_levels = []
attention_in_mid = false
block = { kind = "residual", groups = 4, dropout = 0.0 }
[process]
schedule = "cosine"
prediction = "v"
[data]
name = "array"
path = "DATA"
held_out = SHARE
[train]
steps = STEPS
batch_size = 16
learning_rate = 5e-3
warmup_steps = 10
precision = "no"
threads = 1
checkpoint_every = 1000
preview_every = 1000
held_out_every = EVERY
held_out_images = 40
[ema]
decay = 0.9
[sample]
steps = 12
preview_images = 12
"""


def trained(zygote: Zygote, folder: Path, name: str, images: int, steps: int) -> Path:
    """The folder of a run on so many digits beside 60 held-out ones."""
    digits = (load_digits().images[: images + 60, :, :, None] * 15.9375).astype(np.uint8)
    np.savez(folder / f"{name}.npz", images=digits)
    share = (60.5 if images else 60) / len(digits)
    values = {"NAME": name, "DATA": str(folder / f"{name}.npz"), "SHARE": share, "STEPS": steps, "EVERY": steps // 12}
    text = CONFIG
    for key, value in values.items():
        text = text.replace(key, str(value))
    (folder / f"{name}.toml").write_text(text)
    run, log = folder / name, folder / f"{name}.log"
    assert zygote.run(["train", folder / f"{name}.toml", "--out", run], log) == 0, log.read_text()
    return run


def summary(run: Path) -> tuple[Run, dict[str, Any]]:
    found = read_run(run)
    return found, json.loads(json.dumps(summarize(found, 0.0)))


@pytest.fixture(scope="module")
def learnt(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(zygote, tmp_path_factory.mktemp("learnt"), "learnt", 8, 276)


def test_eight_images_learnt_by_heart_are_found_out(learnt: Path) -> None:
    _, found = summary(learnt)
    assert found["overfit"]["since"] is not None, found["overfit"]
    assert found["overfit"]["best"] < found["overfit"]["since"] < 276
    assert found["gap"] > 0
    assert found["copies"]["pixels"]["flag"] is True
    for space in ("pixels", "features"):
        assert found["copies"][space]["ratio"] < 0.7


def test_its_report_says_so_first_of_all(learnt: Path) -> None:
    page = made(learnt)
    top = page.text.split("Curves")[0]
    assert "over-fits since step" in top
    assert "samples lie nearer to training images than new images do, in pixels" in top
    assert "Copies of training images" in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 2  # the preview, and its neighbours


def test_a_short_run_on_many_images_is_not_suspected(zygote: Zygote, tmp_path: Path) -> None:
    run = trained(zygote, tmp_path, "fresh", 1200, 48)
    _, found = summary(run)
    assert found["overfit"]["since"] is None
    assert found["overfit"]["measurements"] == 12
    assert (found["copies"]["pixels"]["flag"], found["copies"]["features"]["flag"]) == (False, False)
    assert "over-fits since" not in made(run).text


def test_the_files_of_a_run_are_not_touched(learnt: Path) -> None:
    def contents() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in learnt.rglob("*") if p.is_file() and p.name != "report.html"}

    before = contents()
    assert report.write(learnt) == learnt / "report.html"
    assert contents() == before
