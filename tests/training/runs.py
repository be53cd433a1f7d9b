"""A tiny run on real digits, and how to hold two runs against each other bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

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


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the timings, which alone may differ."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if not k.endswith("seconds")} for r in records]


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights, average and moments of a checkpoint."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    parts = {
        name: safetensors.torch.load_file(folder / f"{name}.safetensors") for name in ("network", "ema", "optimizer")
    }
    return {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}


def assert_same_run(one: Path, other: Path, step: int) -> None:
    """Losses, held-out losses, weights, EMA and moments of two runs are equal bit for bit."""
    assert metrics(one) == metrics(other)
    a, b = tensors(one, step), tensors(other, step)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, different
    x, y = (safetensors.torch.load_file(run / "weights.safetensors") for run in (one, other))
    assert all(torch.equal(x[name], y[name]) for name in x)
