"""A tiny run on real digits, and how to hold two runs against each other bit for bit."""

from __future__ import annotations

from pathlib import Path

from diffunet.training.checkpoint import steps
from diffunet.training.compare import difference, metrics, tensors

__all__ = ["assert_same_run", "difference", "metrics", "tensors", "write_config"]

CONFIG = """
[run]
name = "tiny"
[model]
in_channels = 1
out_channels = 1
base_channels = 8
channel_multipliers = [1, 2]
blocks_per_level = 1
attention_levels = [1]
num_classes = 10
null_class = true
block = { kind = "residual", groups = 4, dropout = 0.1 }
[objective]
class_dropout = 0.2
[data]
held_out = 0.2
flip = true
[train]
steps = 24
batch_size = 12
learning_rate = 1e-3
warmup_steps = 4
precision = "no"
threads = 1
checkpoint_every = 4
preview_every = 1000
held_out_every = 8
held_out_images = 20
report = false
[sample]
steps = 2
preview_images = 4
"""


def write_config(folder: Path, **changes: str) -> Path:
    """The tiny config, with some `key = value` lines replaced (the first of that key)."""
    lines = CONFIG.splitlines()
    for key, value in changes.items():
        place = next(i for i, line in enumerate(lines) if line.split(" = ")[0] == key)
        lines[place] = f"{key} = {value}"
    path = folder / "tiny.toml"
    path.write_text("\n".join(lines))
    return path


def assert_same_run(one: Path, other: Path, step: int) -> None:
    """Two runs are equal bit for bit up to their end at `step`: losses, weights, averages, moments, counters."""
    assert steps(other / "checkpoints")[-1] == step
    found = difference(one, other)
    assert found is None, str(found)
