"""What only a GPU can show. Skipped without one; run them by `make gpu`.

CIFAR-10 is read from DIFFUNET_DATA/cifar-10-batches-py (the python batches) where that folder is; digits need nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from diffunet import generate, load
from diffunet.config import parse_flags, read, resolve
from diffunet.pictures import to_uint8
from tests.training.runs import assert_same_run, metrics, write_config

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
MINUTES = float(os.environ.get("DIFFUNET_GPU_MINUTES", "3"))


def diffunet(*arguments: object, **environment: str) -> subprocess.Popen:
    """The program in a process of its own."""
    command = [sys.executable, "-m", "diffunet", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, text=True, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen) -> None:
    """Wait; the process must end well."""
    _, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors


def stopped(process: subprocess.Popen, run: Path, seconds: float, number: int = signal.SIGTERM) -> int:
    """Signal the process after `seconds` of steps; its exit code."""
    end = time.monotonic() + 300
    while not (run / "metrics.jsonl").exists() or not metrics(run):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)
    time.sleep(seconds)
    process.send_signal(number)
    process.communicate(timeout=120)
    return process.returncode


def test_first_loss_equals_the_cpu(tmp_path: Path) -> None:
    """The same weights, images, noises and times give the same float32 loss on both devices to 1e-4."""
    config = write_config(tmp_path, steps="1", block='{ kind = "residual", groups = 4, dropout = 0.0 }')
    finished(diffunet("train", config, "--out", tmp_path / "gpu"))
    finished(diffunet("train", config, "--out", tmp_path / "cpu", CUDA_VISIBLE_DEVICES=""))
    (a,), (b,) = metrics(tmp_path / "gpu"), metrics(tmp_path / "cpu")
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("recipe", ["digits", "cifar10"])
def test_trains_for_minutes(recipe: str, precision: str, tmp_path: Path) -> None:
    """The loss of the last fifty steps is finite and below that of the first fifty."""
    flags = ["--train.precision", precision, "--train.steps", "1000000", "--train.lr_schedule", "constant"]
    if recipe == "cifar10":
        batches = Path(os.environ.get("DIFFUNET_DATA", "")) / "cifar-10-batches-py"
        if not batches.is_dir():
            pytest.skip("DIFFUNET_DATA/cifar-10-batches-py is not there")
        flags += ["--data.path", str(batches)]
    run = tmp_path / "run"
    process = diffunet("train", ROOT / "configs" / f"{recipe}.toml", "--out", run, *flags)
    assert stopped(process, run, MINUTES * 60) == 143
    losses = [record["loss"] for record in metrics(run) if record["loss"] is not None]
    assert len(losses) > 100
    assert sum(losses[-50:]) < sum(losses[:50])


def test_fp16_scaler_survives_a_kill(tmp_path: Path) -> None:
    """SIGKILL, then the same command: losses, weights and the scaler are those of the run that never stopped."""
    flags = ["--train.precision", "fp16", "--train.steps", "200", "--train.checkpoint_every", "20"]
    environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    config = write_config(tmp_path)
    finished(diffunet("train", config, *flags, "--out", tmp_path / "whole", **environment))
    run = tmp_path / "killed"
    process = diffunet("train", config, *flags, "--out", run, **environment)
    assert stopped(process, run, 1.0, signal.SIGKILL) == -signal.SIGKILL
    assert 0 < len(metrics(run)) < 200
    finished(diffunet("train", config, *flags, "--out", run, **environment))
    assert_same_run(tmp_path / "whole", run, 200)
    states = [json.loads((r / "checkpoints/step-00000200/state.json").read_text()) for r in (tmp_path / "whole", run)]
    assert states[0] == states[1]
    assert states[0]["scaler"]["scale"] > 0


def test_same_seed_same_image_at_any_batch(tmp_path: Path) -> None:
    """64 images drawn 1, 7 and 64 at a time differ by one level of 255 at most."""
    finished(diffunet("train", write_config(tmp_path, steps="200"), "--out", tmp_path / "run"))
    den = load(tmp_path / "run", device="cuda")
    labels = torch.arange(64) % 10
    images = [to_uint8(generate(den, 64, steps=20, batch_size=b, class_labels=labels)) for b in (64, 7, 1)]
    for other in images[1:]:
        assert abs(images[0].astype(int) - other.astype(int)).max() <= 1


def test_accelerate_launch_with_the_one_gpu_preset(tmp_path: Path) -> None:
    """The README's line for one GPU."""
    preset = ROOT / "train" / "launch" / "one_gpu.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", preset, "-m", "train"]
    config = write_config(tmp_path, steps="5")
    done = subprocess.run([*command, config, "--out", tmp_path / "run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "on cuda" in done.stdout


def test_digits_config_says_what_these_tests_assume() -> None:
    """Flags used above are keys of the config."""
    table = read(ROOT / "configs" / "digits.toml") | parse_flags(["--train.precision", "bf16"])
    assert resolve(table).train.precision == "bf16"
