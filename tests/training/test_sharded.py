"""Two real processes that share one network by torch's `fully_shard` (gloo on the CPU)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch

from diffunet import load
from diffunet.training.checkpoint import read
from diffunet.training.compare import difference
from diffunet.training.state import tensors_of
from tests.training.conftest import Zygote
from tests.training.runs import metrics, write_config
from tests.training.test_ranks import ROOT, environment, torchrun

STEPS, HALF = 8, 4
FLAGS = ("--train.parallel", "fsdp", "--ema.sigma_rel", "0.05")
# runs the program, and writes what each rank holds of the parameters when it has trained
WATCHED = """
import os, sys, json
from torch.distributed.tensor import DTensor
from diffunet.cli import main
from diffunet.training.trainer import Trainer
run = Trainer.run
def noted(self, *args):
    run(self, *args)
    held = {n: [isinstance(p, DTensor), p.numel(), p.to_local().numel()] for n, p in self.network.named_parameters()}
    moments = [isinstance(t, DTensor) for s in self.optimizer.state.values() for k, t in s.items() if k != "step"]
    averages = [isinstance(t, DTensor) for a in self.averages.tensors.values() for t in a.values()]
    with open(sys.argv[0] + os.environ["RANK"], "w") as file:
        json.dump([held, moments, averages], file)
Trainer.run = noted
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(
        tmp_path_factory.mktemp("fsdp"), block='{ kind = "residual", groups = 4, dropout = 0.0 }', steps=str(STEPS)
    )


@pytest.fixture(scope="module")
def sharded(config: Path) -> Path:
    """The folder of a finished run of two ranks, and beside it what each rank held."""
    script, run = config.parent / "watched.py", config.parent / "run"
    script.write_text(WATCHED)
    command = [*torchrun()[:-2], str(script), "train", str(config), "--out", str(run), *FLAGS]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return run


def test_each_rank_holds_its_share_of_every_tensor(sharded: Path) -> None:
    ranks = [json.loads((sharded.parent / f"watched.py{rank}").read_text()) for rank in (0, 1)]
    for held, moments, averages in ranks:
        assert all(is_cut for is_cut, _, _ in held.values())
        assert moments
        assert all(moments)
        assert all(averages)
    for name, (_, size, own) in ranks[0][0].items():
        assert own + ranks[1][0][name][2] == size, name
    shares = [sum(own for _, _, own in held.values()) for held, _, _ in ranks]
    assert min(shares) > 0.45 * sum(shares)


def test_every_rank_writes_its_file_and_nothing_is_written_twice(sharded: Path) -> None:
    checkpoint = read(sharded / "checkpoints", STEPS)
    parts = ("ema", "ema-0.050", "network", "optimizer")
    assert sorted(checkpoint.files) == sorted(
        [*(f"{part}-{rank}-of-2.safetensors" for part in parts for rank in (0, 1)), "state.json"]
    )
    assert checkpoint.manifest["world"] == 2
    sizes = [len(checkpoint.files[f"network-{rank}-of-2.safetensors"]) for rank in (0, 1)]
    whole = sum(t.numel() * t.element_size() for t in tensors_of(checkpoint, "network").values())
    assert sum(sizes) < whole + 2 * 30_000, "headers aside"


def test_the_weights_file_holds_whole_tensors(sharded: Path) -> None:
    """The average of the checkpoint, put together, in a file like any other run's."""
    stored = safetensors.torch.load_file(sharded / "weights.safetensors")
    together = tensors_of(read(sharded / "checkpoints", STEPS), "ema")
    assert stored.keys() == together.keys()
    assert all(torch.equal(value, together[name]) for name, value in stored.items())
    den = load(sharded)
    assert torch.isfinite(den(torch.zeros(1, 1, 8, 8), 0.5, class_labels=torch.tensor([3]))).all()


def test_it_equals_one_process_within_summation_noise(sharded: Path, config: Path, zygote: Zygote) -> None:
    """See test_ranks: the same samples, noises and times; only the order of float32 sums differs."""
    one = config.parent / "one"
    assert zygote.run(["train", config, "--out", one], config.parent / "log") == 0
    for a, b in zip(metrics(sharded), metrics(one), strict=True):
        assert a["step"] == b["step"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


def half(sharded: Path, copy: Path) -> Path:
    """The run as a kill after its first checkpoint would have left it."""
    shutil.copytree(sharded, copy)
    shutil.rmtree(copy / "checkpoints" / f"step-{STEPS:08d}")
    return copy


def test_two_ranks_go_on_exactly(sharded: Path, config: Path, tmp_path: Path) -> None:
    run = half(sharded, tmp_path / "run")
    command = torchrun(config, "--out", run, *FLAGS)
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {HALF} (sha ok)" in done.stdout
    assert difference(sharded, run) is None
    assert (run / "weights.safetensors").read_bytes() == (sharded / "weights.safetensors").read_bytes()


def test_one_process_goes_on_with_the_same_data(sharded: Path, config: Path, zygote: Zygote, tmp_path: Path) -> None:
    """Shares of two ranks become whole tensors of one."""
    run = half(sharded, tmp_path / "run")
    assert zygote.run(["train", config, "--out", run, *FLAGS], tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert [r["step"] for r in metrics(run)] == list(range(1, STEPS + 1))
    for a, b in zip(metrics(sharded)[HALF:], metrics(run)[HALF:], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert "network.safetensors" in read(run / "checkpoints", STEPS).files


def test_a_share_that_is_missing_is_named(sharded: Path, tmp_path: Path) -> None:
    """A manifest that lists one of two shares, as a checkpoint put together by hand would."""
    checkpoint = read(sharded / "checkpoints", STEPS)
    files = {name: data for name, data in checkpoint.files.items() if name != "network-1-of-2.safetensors"}
    partial = type(checkpoint)(checkpoint.step, checkpoint.path, checkpoint.manifest, files)
    with pytest.raises(Exception, match="holds only 1 of the 2 files of network"):
        tensors_of(partial, "network")
