"""A segmentation run resumes exactly, learns, says what it held out, and refuses what does not fit."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffunet import config as configs
from diffunet import data
from diffunet.cli import main
from diffunet.nn import NETWORKS
from diffunet.tiles import fit
from diffunet.training.segmentation import Crops, Segmentation
from diffunet.weights import described, load_segmenter
from tests import segments
from tests.training.conftest import Zygote, wait_for
from tests.training.runs import assert_same_run, metrics

STEPS = 12


@pytest.fixture(scope="module")
def done(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted tiny run, beside its config."""
    folder = tmp_path_factory.mktemp("segmentation")
    config = segments.write_config(folder)
    assert zygote.run(["train", config, "--out", folder / "run"], folder / "log") == 0, (folder / "log").read_text()
    return folder / "run"


def task(folder: Path, *flags: str, **changes: str) -> Segmentation:
    """The task of the tiny run."""
    config = configs.load(segments.write_config(folder, **changes), flags)
    return Segmentation(config, data.load(config.data))


def build(made: Segmentation) -> torch.nn.Module:
    """The network of a task."""
    return NETWORKS.build(made.config.model)


# --- exact resume -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 5, 9])
def test_a_stopped_run_goes_on_exactly(zygote: Zygote, done: Path, tmp_path: Path, after: int) -> None:
    """With other workers after the stop: weights, averages, buffers of batch norm, moments, losses, scores."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["train", done.parent / "blobs.toml", "--out", run]
    ended = 0
    for _ in range(10):  # a run of a second may be over before the signal is sent
        shutil.rmtree(run, ignore_errors=True)
        child = zygote.start(command, log)
        wait_for(lambda: (run / "metrics.jsonl").exists() and len(metrics(run)) >= after)
        child.kill(signal.SIGTERM)
        if ended := child.wait():
            break
    assert ended == 143
    assert zygote.run([*command, "--train.workers", "2"], log) == 0, log.read_text()
    assert "resuming at step" in log.read_text()
    assert_same_run(done, run, STEPS)


def test_a_killed_run_goes_on_exactly(zygote: Zygote, done: Path, tmp_path: Path) -> None:
    command, log = ["train", done.parent / "blobs.toml", "--out", tmp_path / "run"], tmp_path / "log"
    assert zygote.start(command, log, event=20).wait() == -signal.SIGKILL
    assert zygote.run(command, log) == 0, log.read_text()
    assert_same_run(done, tmp_path / "run", STEPS)


def test_micro_steps_add_up_to_the_same_gradient(zygote: Zygote, tmp_path: Path) -> None:
    """Without batch norm and dropout, which look at a micro-batch: the losses to rounding."""
    config = segments.write_config(tmp_path, block='{ kind = "double_conv", norm = "group", groups = 2 }', steps="4")
    for count in ("1", "2"):
        flags = ["--train.accumulation", count, "--out", tmp_path / count]
        assert zygote.run(["train", config, *flags], tmp_path / "log") == 0, (tmp_path / "log").read_text()
    one, two = ([r["loss"] for r in metrics(tmp_path / count)] for count in ("1", "2"))
    assert one == pytest.approx(two, rel=1e-4)


# --- crops ------------------------------------------------------------------------------------------------------------


def test_items_are_functions_of_the_position(tmp_path: Path) -> None:
    made = task(tmp_path)
    one, other = (made.stream(build(made)) for _ in range(2))
    assert isinstance(one, Crops)
    for position in (0, 7, 10**6):
        a, b = one[position], other[position]
        assert all(np.array_equal(a[key], b[key]) for key in a)
    assert not np.array_equal(one[0]["image"], one[6]["image"])


def test_the_loss_is_taken_where_a_valid_network_answers(tmp_path: Path) -> None:
    """The label and its weights are the centre of what the network sees."""
    made = task(tmp_path, "--segment.augment.elastic=false")
    network = build(made)
    item = made.stream(network)[3]
    side = item["image"].shape[-1]
    inner = side - fit(network).loss
    assert item["image"].shape == (1, side, side)
    assert item["classes"].shape == item["weight"].shape == (inner, inner)
    assert side == fit(network).up(34)
    # blobs are brighter by five times the noise
    centre = item["image"][0, (side - inner) // 2 :][:inner, (side - inner) // 2 :][:, :inner]
    bright, dark = centre[item["classes"] == 1], centre[item["classes"] == 0]
    assert bright.min() > dark.mean()
    assert dark.max() < bright.mean()


def test_weights_are_on_borders_only_where_they_are_wanted(tmp_path: Path) -> None:
    assert "weight" not in task(tmp_path, "--segment.border=false").stream(build(task(tmp_path)))[0]
    plain = task(tmp_path, "--segment.border={w0 = 0.0}")
    counts = plain.split.train.counts()
    weights = np.unique(np.concatenate([w.ravel() for w in plain._weights(plain.split.train)]))
    assert weights == pytest.approx(np.sort(counts.sum() / (2 * counts)))


# --- what a run leaves ------------------------------------------------------------------------------------------------


def test_the_split_is_stated_in_the_run(done: Path) -> None:
    held_out = described(done)[0]["held_out"]
    assert len(held_out) == 2
    assert described(done)[0]["split_seed"] == 0
    assert f"held out by data.seed = 0: {', '.join(held_out)}" in (done.parent / "log").read_text()
    assert load_segmenter(done).info.values == (50, 200)


def test_scores_of_held_out_images_are_logged(done: Path) -> None:
    scores = [record["held_out"] for record in metrics(done) if "held_out" in record]
    assert len(scores) == 2
    for score in scores:
        assert set(score["dice"]) == {"gap", "blob"}
        assert 0 <= score["pixel_error"] <= 1
        assert score["loss"] > 0


def test_the_preview_shows_image_label_and_mask(done: Path) -> None:
    picture = np.asarray(Image.open(done / "samples" / f"step-{STEPS:08d}.png"))
    assert picture.ndim == 3
    folder = done.parent / "data" / "image"
    widths = [np.asarray(Image.open(folder / name)).shape[1] for name in described(done)[0]["held_out"]]
    assert picture.shape[1] == 3 * (max(widths) + 2)


@pytest.mark.parametrize(
    "model",
    [
        '{kind = "classic", base_channels = 4, levels = 2, padding = "same", block = {norm = "group", groups = 2}}',
        '{preset = "unet-plain", base_channels = 8, channel_multipliers = [1, 2]}',
        '{preset = "unet-dilated", base_channels = 8, channel_multipliers = [1, 1]}',
        '{kind = "classic", base_channels = 4, levels = 2, out_channels = 1, block = {norm = "batch"}}',
    ],
)
@pytest.mark.parametrize("loss", ['"cross_entropy"', '{kind = "sum", losses = ["bce", "tversky"]}'])
def test_blobs_are_found(tmp_path: Path, model: str, loss: str) -> None:
    """Forty steps on easy pictures, with every network and out of one sigmoid, too."""
    text = segments.write_config(tmp_path, steps="40", held_out_every="40", preview_every="40", loss=loss).read_text()
    head, rest = text.split("[model]")
    path = tmp_path / "other.toml"
    path.write_text(f"model = {model}\n{head}[segment]{rest.split('[segment]')[1]}")
    assert main(["train", str(path), "--out", str(tmp_path / "run"), "--ema.decay", "0.8"]) == 0
    score: dict[str, Any] = metrics(tmp_path / "run")[-1]["held_out"]
    assert score["pixel_error"] < 0.15, score
    assert min(score["dice"].values()) > 0.7, score


# --- refusals ---------------------------------------------------------------------------------------------------------

MISFITS = [
    (["--model.in_channels", "3"], "the images have 1 channels but model.in_channels = 3; set model.in_channels = 1"),
    (["--model.out_channels", "4"], "set model.out_channels = 2, or 1 (a sigmoid)"),
    (["--segment.border.background", "9"], "segment.border.background = 9 is none of the label values 50, 200"),
]


@pytest.mark.parametrize(("flags", "expected"), MISFITS)
def test_data_that_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], expected: str
) -> None:
    assert main(["train", str(segments.write_config(tmp_path)), "--out", str(tmp_path / "run"), *flags]) == 3
    assert expected in capsys.readouterr().err


def test_a_dry_run_shows_only_what_such_a_run_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(segments.write_config(tmp_path)), "--dry-run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {key.split(".")[0] for key in result["config"]} == {"run", "model", "segment", "data", "train", "ema"}
    assert (result["train_images"], result["held_out_images"]) == (4, 2)


def test_changed_data_is_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = segments.write_config(tmp_path, steps="4")
    command = ["train", str(config), "--out", str(tmp_path / "run")]
    assert main(command) == 0
    kept = described(tmp_path / "run")[0]["held_out"]
    trained = next(p for p in (tmp_path / "data" / "label").iterdir() if p.name not in kept)
    label = np.array(Image.open(trained))
    label[0, 0] = 250 - label[0, 0]
    Image.fromarray(label).save(trained)
    assert main([*command, "--train.steps", "5"]) == 4
    assert "the data changed since" in capsys.readouterr().err
