"""`diffunet train`: what a run folder holds, when a run goes on and when it is refused."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffunet.cli import main
from diffunet.weights import read_tensors
from tests.training.conftest import Zygote, wait_for
from tests.training.runs import assert_same_run, metrics, tensors, write_config

NO_DROPOUT = '{ kind = "residual", groups = 4, dropout = 0.0 }'


def train(folder: Path, *flags: str, run: str = "run", **changes: str) -> int:
    """Train a tiny run in folder/run in this process; its exit code."""
    return main(["train", str(write_config(folder, **changes)), "--out", str(folder / run), *flags])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but status and events, whose times change; of weights their digest, as safetensors
    shuffles the entries of its header."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in ("status.json", "events.jsonl")]
    found = {str(p.relative_to(folder)): p.read_bytes() for p in files}
    return found | {"weights.safetensors": read_tensors(folder / "weights.safetensors")[1]["sha256"].encode()}


# --- what a run leaves ------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_what_the_house_says(trained: Path) -> None:
    names = {p.name for p in trained.iterdir()} - {".lock", "report.html", "environment.json"}
    assert names == {
        *("config.json", "metrics.jsonl", "samples", "checkpoints", "weights.safetensors", "status.json"),
        "events.jsonl",
    }
    assert [p.name for p in sorted((trained / "checkpoints").iterdir())] == ["step-00000006", "step-00000012"]
    shown = sorted(p.name for p in (trained / "samples").iterdir())
    assert shown == ["step-00000012-neighbours.png", "step-00000012.png"]
    status = json.loads((trained / "status.json").read_text())
    assert (status["state"], status["step"], status["exit_code"]) == ("done", 12, 0)
    config = json.loads((trained / "config.json").read_text())
    assert config["train"]["steps"] == 12
    assert config["train"]["betas"] == [0.9, 0.999], "every default is spelt out"


def test_metrics_have_one_line_a_step_with_its_own_loss(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == list(range(1, 13))
    assert len({r["loss"] for r in records}) == 12
    for r in records:
        assert 0 < r["loss"] < 10
        assert r["grad_norm"] > 0
        assert r["seconds"] >= r["data_seconds"] >= 0
    rates = [r["lr"] for r in records]
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])  # the warm-up
    assert rates[4:] == sorted(rates[4:], reverse=True)
    held_out = {r["step"]: r["held_out"] for r in records if "held_out" in r}
    assert list(held_out) == [6, 12]
    for found in held_out.values():
        assert len(found["bins"]) == 10
        assert found["loss"] == pytest.approx(np.mean(found["bins"]), rel=1e-4)  # 20 images: two in each bin


def test_a_checkpoint_vouches_for_each_of_its_files(trained: Path) -> None:
    """SHA-256 of every file, and of the manifest's own canonical JSON in its last field."""
    for folder in (trained / "checkpoints").iterdir():
        text = (folder / "manifest.json").read_text()
        manifest = json.loads(text)
        assert list(manifest)[-1] == "self"
        rest = {k: v for k, v in manifest.items() if k != "self"}
        canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
        assert manifest["self"] == hashlib.sha256(canonical.encode()).hexdigest()
        assert text == f'{canonical[:-1]},"self":"{manifest["self"]}"}}'
        assert {p.name for p in folder.iterdir()} == {*manifest["files"], "manifest.json"}
        for name, entry in manifest["files"].items():
            data = (folder / name).read_bytes()
            assert (entry["size"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert manifest["step"] == int(folder.name[5:])


def test_previews_are_pictures(tmp_path: Path) -> None:
    assert train(tmp_path, steps="4", preview_every="2", checkpoint_every="4") == 0
    for step in (2, 4):
        with Image.open(tmp_path / "run" / "samples" / f"step-{step:08d}.png") as picture:
            picture.load()
            assert picture.mode == "L"
            assert picture.width > 16
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 4  # each with its nearest training images


def test_files_may_be_read_by_whom_the_umask_lets(trained: Path) -> None:
    """safetensors alone would write mode 0600."""
    wanted = (trained / "config.json").stat().st_mode & 0o777
    for path in trained.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o777 == wanted, path


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, steps="4") == 0
    before = contents(tmp_path / "run")
    assert train(tmp_path, steps="4") == 0
    assert "resuming at step 4 (sha ok)" in capsys.readouterr().out
    assert contents(tmp_path / "run") == before


def test_more_steps_go_on_where_the_run_ended(tmp_path: Path) -> None:
    assert train(tmp_path, steps="4") == 0
    first = metrics(tmp_path / "run")
    assert train(tmp_path, "--train.steps", "6", steps="4") == 0
    assert metrics(tmp_path / "run")[:4] == first
    assert [r["step"] for r in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_another_config_is_refused_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, steps="4") == 0
    before = contents(tmp_path / "run")
    assert train(tmp_path, "--train.learning_rate", "0.5", "--train.seed=9", steps="4") == 4
    error = capsys.readouterr().err
    assert "train.learning_rate: 0.001 -> 0.5; train.seed: 0 -> 9" in error
    assert "--out for a new folder" in error
    assert contents(tmp_path / "run") == before
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"


def test_data_that_changed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = array_run(tmp_path, np.random.default_rng(0).random((40, 6, 6), dtype=np.float32), "nhw")
    assert main([*flags, "--train.steps", "2"]) == 0
    array = np.load(tmp_path / "data.npy")
    array[3, 2, 1] = 1 - array[3, 2, 1]
    np.save(tmp_path / "data.npy", array)
    assert main([*flags, "--train.steps", "4"]) == 4
    assert "the data changed since" in capsys.readouterr().err
    assert len(metrics(tmp_path / "run")) == 2


@pytest.mark.parametrize("workers", [(0, 2), (2, 1)])
def test_the_number_of_workers_changes_nothing_also_when_it_changes(tmp_path: Path, workers: tuple[int, int]) -> None:
    first, then = workers
    assert train(tmp_path, steps="6", run="one") == 0
    # the learning rate follows the last step, which is therefore the same in both parts
    assert train(tmp_path, "--train.workers", str(first), steps="6", run="stopped", checkpoint_every="3") == 0
    folder = tmp_path / "stopped"
    for path in (folder / "checkpoints" / "step-00000006", folder / "weights.safetensors"):
        path.rename(tmp_path / path.name)
    assert train(tmp_path, "--train.workers", str(then), steps="6", run="stopped", checkpoint_every="3") == 0
    assert_same_run(tmp_path / "one", folder, 6)


def test_three_micro_steps_are_one_step_within_summation_noise(tmp_path: Path) -> None:
    """Without dropout only the order of float32 sums differs: 2^-24 each, a little of which Adam amplifies."""
    assert train(tmp_path, run="whole", steps="5", block=NO_DROPOUT) == 0
    assert train(tmp_path, "--train.accumulation", "3", run="parts", steps="5", block=NO_DROPOUT) == 0
    for a, b in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "parts"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    one, other = tensors(tmp_path / "whole", 5), tensors(tmp_path / "parts", 5)
    assert all((one[name] - other[name]).abs().max() < 1e-3 for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one), "they were the same computation"


@pytest.mark.parametrize(("precision", "flags"), [("bf16", ["--train.accumulation=3"]), ("no", ["--train.workers=2"])])
def test_a_stopped_run_goes_on_exactly_in_any_precision(
    zygote: Zygote, tmp_path: Path, precision: str, flags: list[str]
) -> None:
    """SIGTERM in a real process, in bfloat16 with micro-steps, and in float32 with workers."""
    config = write_config(tmp_path, precision=f'"{precision}"', steps="12")
    golden, run = tmp_path / "golden", tmp_path / "run"
    assert zygote.run(["train", config, "--out", golden, *flags], tmp_path / "log") == 0
    assert f"precision {precision}" in (tmp_path / "log").read_text()
    child = zygote.start(["train", config, "--out", run, *flags], tmp_path / "log")
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(metrics(run)) >= 3)
    child.kill(signal.SIGTERM)
    assert child.wait() == 143
    assert 3 <= len(metrics(run)) < 12
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("interrupted", 143)
    assert zygote.run(["train", config, "--out", run, *flags], tmp_path / "log") == 0
    assert_same_run(golden, run, 12)


# --- flags of the command ---------------------------------------------------------------------------------------------


def test_results_are_json_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "--json", steps="1") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 1
    assert Path(result["weights"]).exists()
    assert Path(result["metrics"]).exists()
    assert train(tmp_path, "--json", "--train.precision", "fp16", "--out", str(tmp_path / "other")) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "E-CONFIG"


# --- signals, pictures of two channels, volumes -----------------------------------------------------------------------


def array_run(folder: Path, array: np.ndarray, layout: str, **flags: Any) -> list[str]:
    """The command that trains on an array; its config needs no more than these flags."""
    np.save(folder / "data.npy", array)
    channels = array.shape[1 + layout[1:].index("c")] if "c" in layout else 1
    (folder / "array.toml").write_text(
        f"""
[model]
dims = {len(layout.replace("n", "").replace("c", ""))}
in_channels = {channels}
out_channels = {channels}
base_channels = 8
channel_multipliers = [1, 2]
blocks_per_level = 1
block = {{ kind = "residual", groups = 4 }}
[data]
name = "array"
path = "{folder / "data.npy"}"
layout = "{layout}"
held_out = 0.2
[train]
steps = 3
batch_size = 4
precision = "no"
threads = 1
[sample]
steps = 2
preview_images = 4
"""
    )
    return ["train", str(folder / "array.toml"), "--out", str(folder / "run")]


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ("nl", (30, 37)),
        ("ncl", (30, 2, 37)),
        ("nhwc", (30, 7, 9, 2)),
        ("ndhw", (20, 9, 10, 11)),
        ("ncdhw", (9, 2, 5, 4, 3)),
    ],
)
def test_arrays_of_any_dimension_are_learnt_and_drawn(tmp_path: Path, layout: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).random(shape, dtype=np.float32)
    assert main(array_run(tmp_path, array, layout)) == 0
    assert len(metrics(tmp_path / "run")) == 3
    assert (tmp_path / "run" / "samples" / "step-00000003.png").exists()
    out = tmp_path / "x.npz"
    assert main(["sample", str(tmp_path / "run"), "--n", "3", "--steps", "2", "--out", str(out)]) == 0
    with np.load(out) as arrays:
        images = arrays["arr_0"]
    sides = [side for side, axis in zip(shape[1:], layout[1:], strict=True) if axis != "c"]
    channels = shape[1 + layout[1:].index("c")] if "c" in layout else 1
    assert images.shape == (3, *sides, channels)
    assert images.dtype == np.uint8
