"""What the original networks of other projects compute: numbers frozen in `fixtures/peers`, without their code.

A fixture holds inputs and outputs; its weights follow from their names (`value`), so a few kilobytes stand for a whole
network. `fixtures/peers/README.md` says where the numbers come from.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

FOLDER = Path(__file__).parent / "fixtures" / "peers"
STORED = (
    "state/"  # what the original computes itself (filters, tables of noise levels) lies in the file under this name
)


@dataclass(frozen=True)
class Call:
    """One run of the original, in eval mode and float32.

    inputs: x (B, C, H, W), t (B,) as the original's forward takes it, and where the network has them y (labels (B,) or
    one-hot (B, N)), low_res (B, C, h, w), augment (B, 9), mapping (B, N); out: what it answered.
    """

    inputs: dict[str, Tensor]
    out: Tensor


@dataclass(frozen=True)
class Case:
    """An original network: what it was built from, its weights under its own names, and what it computes."""

    project: str
    cls: str
    arguments: dict[str, Any]  # of the constructor, or the config that it takes
    flags: dict[str, Any]  # what the weights cannot tell: a converter is told these
    state: dict[str, Tensor]  # in the original's order
    calls: tuple[Call, ...]  # a square, another size; then, in some cases, the first one without its condition


def value(name: str, shape: list[int], offset: float) -> Tensor:
    """The weights called `name`: offset + N(0, 1) * scale, float32, the same for ever on every machine.

    scale = 1/sqrt(fan_in) with fan_in = numel / shape[0] from two dimensions on, 0.1 for vectors and scalars; the
    stream is that of NumPy's frozen legacy generator, seeded by the CRC-32 of the name.
    """
    scale = math.sqrt(shape[0] / math.prod(shape)) if len(shape) > 1 else 0.1
    noise = np.random.RandomState(crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(np.asarray(offset + scale * noise, dtype=np.float32))


def cases(project: str = "") -> list[Path]:
    """The fixtures of a project (`guided-diffusion`, `edm`, ...), or all of them; `path.stem` is a good test id."""
    return sorted(FOLDER.glob(f"{project}-*.safetensors" if project else "*.safetensors"))


def read(path: Path) -> Case:
    """A fixture with its weights made anew."""
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["case"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a reader, not a dict
    state = {
        name: tensors.pop(STORED + name) if offset is None else value(name, shape, offset)
        for name, (shape, offset) in metadata.pop("state").items()
    }
    calls: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, number = re.fullmatch(r"([a-z_]+)(\d*)", name).groups()  # type: ignore[union-attr]
        calls.setdefault(number, {})[part] = tensor
    return Case(
        metadata["project"],
        metadata["class"],
        metadata["arguments"],
        metadata["flags"],
        state,
        tuple(Call(inputs, inputs.pop("out")) for _, inputs in sorted(calls.items())),
    )
