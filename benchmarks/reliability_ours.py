"""diffunet as `reliability.py` asks it: the program `diffunet train`, and what its resume does first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import diffunet
from benchmarks.reliability_systems import KEEP, NAN_AT, note
from diffunet.cli import main
from diffunet.training import checkpoint

CONFIG = """
[model]
base_channels = 8
channel_multipliers = [1]
blocks_per_level = 1
attention_levels = []
block = {{ kind = "residual", groups = 4, dropout = 0.1 }}
[data]
name = "folder"
path = {path}
[train]
steps = {steps}
batch_size = 4
learning_rate = 1e-3
lr_schedule = "constant"
warmup_steps = 0
precision = "no"
threads = 1
checkpoint_every = 1
keep_checkpoints = {keep}
preview_every = 1000000
held_out_every = 1000000
"""


class Diffunet:
    """`diffunet train`."""

    name, package = "diffunet", "diffunet"

    def __init__(self) -> None:
        self.version = diffunet.__version__

    def config(self, folder: Path, images: Path, steps: int, keep: int) -> Path:
        path = folder / "config.toml"
        path.write_text(CONFIG.format(path=json.dumps(str(images)), steps=steps, keep=keep))
        return path

    def checkpoints(self, folder: Path) -> list[Path]:
        root = folder / "run" / "checkpoints"
        return [root / f"step-{step:08d}" for step in checkpoint.steps(root)]

    def train(self, folder: Path, images: Path, steps: int, nan: bool = False, keep: int = KEEP) -> None:
        """The same command, whatever is there."""
        if nan:
            _spoil(NAN_AT)
        code = main(["train", str(self.config(folder, images, steps, keep)), "--out", str(folder / "run")])
        metrics = folder / "run" / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        (folder / "losses").unlink(missing_ok=True)
        for record in map(json.loads, lines):
            note(folder / "losses", f"{record['step']} {(record['loss'] or 0.0).hex()}")
        if code:
            raise SystemExit(code)

    def open(self, folder: Path, images: Path) -> Callable[[Path], str]:
        """As a resume does: read and verify a checkpoint before anything is touched."""

        def load(path: Path) -> str:
            found = checkpoint.read(path.parent, int(path.name[5:]))
            return hashlib.sha256(found.files["network.safetensors"]).hexdigest()

        return load

    def digests(self, folder: Path, golden: Path) -> set[str]:
        """Those of every step of an undisturbed run, which this one must repeat bit for bit."""
        paths = golden.glob("run/checkpoints/step-*/network.safetensors")
        return {hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    def finite(self, folder: Path, images: Path) -> bool:
        tensors = safetensors.torch.load_file(self.checkpoints(folder)[-1] / "network.safetensors")
        return all(bool(value.isfinite().all()) for value in tensors.values())

    def save_large(self, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        checkpoint.write(folder, 1, {"network.safetensors": safetensors.torch.save(tensors)}, {})


def _spoil(step: int) -> None:
    """The loss of one step is NaN."""
    from diffunet.training.stepper import Stepper

    right = Stepper._loss

    def wrong(self: Any, *args: Any) -> torch.Tensor:
        return right(self, *args) * (float("nan") if self.counters.step + 1 == step else 1.0)

    Stepper._loss = wrong  # type: ignore[method-assign]
