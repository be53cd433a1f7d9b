"""What tells two runs apart must see a single bit, and say where it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from diffunet.training.compare import difference, same_bits

STEP = "checkpoints/step-00000024"


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Path:
    """The golden run again, to be changed."""
    return Path(shutil.copytree(golden, tmp_path / "copy"))


def test_a_copy_is_the_same_run(golden: Path, copy: Path) -> None:
    assert difference(golden, copy) is None


def test_times_and_memory_may_differ_and_nothing_else_in_a_step(golden: Path, copy: Path) -> None:
    records = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record |= {key: value + 1 for key, value in record.items() if key.endswith(("seconds", "memory"))}
    (copy / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert difference(golden, copy) is None
    records[4]["loss"] += 1e-12
    (copy / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    found = difference(golden, copy)
    assert found is not None
    assert (found.step, found.what[:5]) == (5, "loss ")
    assert difference(golden, copy, last=4) is None


@pytest.mark.parametrize("name", ["network", "ema", "optimizer"])
def test_a_single_bit_of_a_checkpoint_is_seen(golden: Path, copy: Path, name: str) -> None:
    path = copy / STEP / f"{name}.safetensors"
    tensors = safetensors.torch.load_file(path)
    changed = sorted(tensors)[3]
    tensors[changed].view(-1).view(torch.int32)[0] ^= 1
    safetensors.torch.save_file(tensors, path)
    found = difference(golden, copy)
    assert found is not None
    assert str(found) == f"at step 24: tensor {name}/{changed}"


def test_counters_weights_and_missing_steps_are_seen(golden: Path, copy: Path) -> None:
    state = json.loads((copy / STEP / "state.json").read_text())
    state["counters"]["skipped"] += 1
    (copy / STEP / "state.json").write_text(json.dumps(state))
    assert str(difference(golden, copy)) == "at step 24: state.json"
    shutil.rmtree(copy / STEP)
    assert "last checkpoint" in str(difference(golden, copy))
    shutil.copytree(golden / STEP, copy / STEP)
    tensors = safetensors.torch.load_file(copy / "weights.safetensors")
    tensors[min(tensors)] += 1
    safetensors.torch.save_file(tensors, copy / "weights.safetensors")
    assert str(difference(golden, copy)) == f"tensor {min(tensors)} of weights.safetensors"
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert str(difference(golden, copy)) == "24 and 23 steps"


def test_bits_and_not_values_are_compared() -> None:
    nan, zero = torch.tensor(float("nan")), torch.zeros(())
    assert same_bits(nan, nan.clone())
    assert not same_bits(zero, -zero)
    assert not same_bits(zero, zero.double())
    assert not same_bits(torch.zeros(2, 3), torch.zeros(3, 2))
    assert same_bits(torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16))
