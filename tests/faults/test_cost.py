"""T15: what it costs that every bit is vouched for and on the disk."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from diffunet.training import checkpoint

soak = pytest.mark.soak


# a busy machine spoils single times, so the fastest of some count; in daily runs there is room for its noise
@pytest.mark.parametrize(("megabytes", "rounds", "most"), [(20, 5, 4.0), pytest.param(200, 7, 2.0, marks=soak)])
def test_hash_and_sync_cost_at_most_twice_a_plain_save(
    tmp_path: Path, megabytes: int, rounds: int, most: float
) -> None:
    """A checkpoint against the same tensors serialised and written, in turns."""
    tensors = {f"w{n}": torch.randn(megabytes * 2**18 // 10) for n in range(10)}
    plain, own = [], []
    for turn in range(rounds):
        begun = time.perf_counter()
        (tmp_path / "plain").write_bytes(safetensors.torch.save(tensors))
        middle = time.perf_counter()
        checkpoint.write(tmp_path / "root", turn + 1, {"w.safetensors": safetensors.torch.save(tensors)}, {})
        own.append(time.perf_counter() - middle)
        plain.append(middle - begun)
        checkpoint.rotate(tmp_path / "root", 1)
    print(f"a save takes {min(own):.3f} s, a plain one {min(plain):.3f} s: {min(own) / min(plain):.2f} times as long")
    assert min(own) <= most * min(plain)
