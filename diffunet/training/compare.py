"""Are two runs the same run? Every number of every step, and every bit that is kept.

What only says how fast or how large a run was may differ; nothing else may.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from diffunet.training.checkpoint import steps

MEASURED = ("seconds", "memory")  # keys that end so tell of the machine and not of the run


class Difference(NamedTuple):
    """The first thing in which two runs differ: at which step (None: not tied to one), and what it is."""

    step: int | None
    what: str

    def __str__(self) -> str:
        return self.what if self.step is None else f"at step {self.step}: {self.what}"


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what is measured of the machine."""
    path = run / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{k: v for k, v in r.items() if not k.endswith(MEASURED)} for r in records]


def tensors(run: Path, step: int) -> dict[str, Tensor]:
    """Weights, averages, moments and what the task remembers, of a checkpoint: `FILE/NAME` -> tensor."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {
        f"{path.stem}/{name}": value
        for path in sorted(folder.glob("*.safetensors"))
        for name, value in safetensors.torch.load_file(path).items()
    }


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Are two tensors of one kind and shape, and equal bit for bit? NaN is equal to itself, and 0 not to -0."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    one, other = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(one, other)


def difference(one: Path, other: Path, last: int | None = None) -> Difference | None:
    """The first difference of two runs, or None where they are the same.

    Compared are each line of metrics.jsonl (loss, rate, gradient norm, held-out losses, ...), all tensors and counters
    of the checkpoints that both have, the averages kept in ema/ and the sampling weights.

    Args:
        one, other: run folders; `one` is the one to be equal to.
        last: hold only steps up to this one against each other, for a run that is still on its way.
    """
    found = _metrics(one, other, last)
    first, second = steps(one / "checkpoints"), steps(other / "checkpoints")
    shared = [step for step in first if step in second and (last is None or step <= last)]
    if found is None and last is None and first[-1:] != second[-1:]:
        found = Difference(None, f"last checkpoint: {first[-1:]} and {second[-1:]}")
    # weights may differ before any loss shows it
    for step in shared:
        if found is not None and found.step is not None and found.step <= step:
            return found
        if differs := _checkpoint(one, other, step):
            return differs
    return found or (_ends(one, other) if last is None else None)


def _metrics(one: Path, other: Path, last: int | None) -> Difference | None:
    a, b = metrics(one), metrics(other)
    if last is not None:
        a, b = ([r for r in records if r["step"] <= last] for records in (a, b))
    for x, y in zip(a, b, strict=False):
        if x != y:
            key = next(key for key in (*x, *y) if x.get(key) != y.get(key))
            return Difference(x["step"], f"{key} {x.get(key)!r} and {y.get(key)!r}")
    if len(a) != len(b):
        return Difference(None, f"{len(a)} and {len(b)} steps")
    return None


def _checkpoint(one: Path, other: Path, step: int) -> Difference | None:
    a, b = tensors(one, step), tensors(other, step)
    if what := _tensors(a, b):
        return Difference(step, what)
    texts = [(run / "checkpoints" / f"step-{step:08d}" / "state.json").read_bytes() for run in (one, other)]
    return Difference(step, "state.json") if json.loads(texts[0]) != json.loads(texts[1]) else None


def _tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> str | None:
    if a.keys() != b.keys():
        return f"tensor {min(a.keys() ^ b.keys())} is in one of them only"
    return next((f"tensor {name}" for name in a if not same_bits(a[name], b[name])), None)


def _ends(one: Path, other: Path) -> Difference | None:
    """What stands beside the checkpoints at the end of a run."""
    names = [
        {str(path.relative_to(run)) for path in (run / "weights.safetensors", *run.glob("ema/*.safetensors"))}
        for run in (one, other)
    ]
    if names[0] != names[1]:
        return Difference(None, f"{min(names[0] ^ names[1])} is in one of them only")
    for name in sorted(names[0]):
        if what := _tensors(*(safetensors.torch.load_file(run / name) for run in (one, other))):
            return Difference(None, f"{what} of {name}")
    return None
