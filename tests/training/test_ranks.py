"""Two real processes under torchrun (gloo on the CPU) against one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.conftest import Zygote, wait_for
from tests.training.runs import assert_same_run, metrics, tensors, write_config

ROOT = Path(__file__).parents[2]
STEPS = 48
COMPARED = 12


def torchrun(*arguments: object) -> list[str]:
    """The command of the README, two processes."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--rdzv_endpoint",
        "127.0.0.1:0",
    ]
    return [*launcher, "--rdzv_backend", "c10d", "-m", "train", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The config and folder of a finished run of two ranks, without dropout; each rank notes its weights' digest."""
    folder = tmp_path_factory.mktemp("ranks")
    config = write_config(folder, block='{ kind = "residual", groups = 4, dropout = 0.0 }', steps=str(STEPS))
    done = subprocess.run(
        torchrun(config, "--out", folder / "run"),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "2 process(es) on cpu" in done.stdout
    assert done.stdout.count("starting:") == 1, "only the main process speaks"
    return config, folder / "run"


def test_two_ranks_equal_one_process_within_summation_noise(
    two_ranks: tuple[Path, Path], zygote: Zygote, tmp_path: Path
) -> None:
    """The same 12 samples, noises and times make each step; only the order of float32 sums differs.

    A mean of means rounds differently than one mean: relative 2^-24 = 6e-8 a sum, which Adam's division by the root of
    the second moment can amplify while that is young, and each step then differs a little more from its twin. Over the
    first 12 steps 1e-4 of the loss leaves a margin of ten.
    """
    config, run = two_ranks
    assert zygote.run(["train", config, "--out", tmp_path / "one"], tmp_path / "log") == 0
    for a, b in zip(metrics(run)[:COMPARED], metrics(tmp_path / "one")[:COMPARED], strict=True):
        assert a["step"] == b["step"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    weights = tensors(run, STEPS), tensors(tmp_path / "one", STEPS)
    for name, value in weights[0].items():
        assert (value - weights[1][name]).abs().max() < 1e-3, name


def test_both_ranks_end_with_equal_weights(tmp_path: Path) -> None:
    """Each rank writes what it holds; the files are equal byte for byte."""
    config = write_config(tmp_path, steps="3")
    script = tmp_path / "ranks.py"
    script.write_text(
        "import os, sys\n"
        "import safetensors.torch\n"
        "from diffunet.training.trainer import Trainer\n"
        "from diffunet.cli import main\n"
        "run = Trainer.run\n"
        "def noted(self, *args):\n"
        "    run(self, *args)\n"
        f"    name = r'{tmp_path}/rank-' + os.environ['RANK']\n"
        "    safetensors.torch.save_file(dict(self.network.state_dict()), name)\n"
        "    safetensors.torch.save_file(self.averages.tensors['ema'], name + '-ema')\n"
        "Trainer.run = noted\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [*torchrun()[:-2], str(script), "train", str(config), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rank-0").read_bytes() == (tmp_path / "rank-1").read_bytes()
    assert (tmp_path / "rank-0-ema").read_bytes() == (tmp_path / "rank-1-ema").read_bytes()


def test_a_signal_to_the_launcher_stops_both_ranks_and_the_run_goes_on_exactly(
    two_ranks: tuple[Path, Path], tmp_path: Path
) -> None:
    config, run = two_ranks
    command, mine = torchrun(config, "--out", tmp_path / "run"), tmp_path / "run"
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log, start_new_session=True)
        wait_for(lambda: (mine / "metrics.jsonl").exists() and len(metrics(mine)) >= 3, 120)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    begun = time.monotonic()
    assert 3 <= len(metrics(mine)) < STEPS, (tmp_path / "log").read_text()
    assert (mine / "status.json").read_text().count('"interrupted"') == 1
    assert subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, timeout=300).returncode == 0
    assert time.monotonic() - begun < 200
    assert_same_run(run, mine, STEPS)


def test_accelerate_launch_with_the_cpu_preset_equals_the_plain_program(
    zygote: Zygote, golden: Path, tmp_path: Path
) -> None:
    preset = ROOT / "train" / "launch" / "cpu.yaml"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", preset, "-m", "train"]
    command = [*launcher, write_config(tmp_path), "--out", tmp_path / "run"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_same_run(golden, tmp_path / "run", 24)
