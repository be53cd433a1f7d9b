"""A tiny segmentation run on pictures of blobs, for tests that need one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CONFIG = """
[run]
name = "blobs"
task = "segment"
[model]
kind = "classic"
base_channels = 4
levels = 2
padding = "valid"
block = { kind = "double_conv", norm = "batch", dropout = 0.1 }
[segment]
loss = "cross_entropy"
crop = 34
augment = { elastic = { spacing = 16.0, sigma = 2.0 } }
tile = 64
margin = 8
preview_images = 2
[data]
name = "pairs"
path = "DATA"
class_names = ["gap", "blob"]
held_out = 0.34
[train]
steps = 12
batch_size = 4
learning_rate = 5e-3
warmup_steps = 2
precision = "no"
threads = 1
checkpoint_every = 4
preview_every = 6
held_out_every = 6
"""


def blobs(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A grey picture of noisy discs, and its label: 50 between them, 200 inside."""
    random = np.random.default_rng(seed)
    rows, columns = np.indices((height, width))
    inside = np.zeros((height, width), bool)
    for _ in range(height * width // 200):
        r, c, radius = random.integers(height), random.integers(width), random.integers(3, 7)
        inside |= (rows - r) ** 2 + (columns - c) ** 2 < radius**2
    grey = 90 + 80 * inside + random.normal(0, 15, inside.shape)
    return grey.clip(0, 255).astype(np.uint8), np.where(inside, 200, 50).astype(np.uint8)


def write_pairs(root: Path, count: int = 6) -> Path:
    """A folder of pairs, of different sizes."""
    for i in range(count):
        for kind, array in zip(("image", "label"), blobs(i, 40 + 3 * i, 56 - 2 * i), strict=True):
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / kind / f"{i}.png")
    return root


def write_config(folder: Path, **changes: str) -> Path:
    """The tiny config on blobs beside it, with some `key = value` lines replaced (the first of that key)."""
    if not (folder / "data").exists():
        write_pairs(folder / "data")
    lines = CONFIG.replace("DATA", str(folder / "data")).splitlines()
    for key, value in changes.items():
        place = next(i for i, line in enumerate(lines) if line.split(" = ")[0] == key)
        lines[place] = f"{key} = {value}"
    path = folder / "blobs.toml"
    path.write_text("\n".join(lines))
    return path
