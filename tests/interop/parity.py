"""Whether a network of ours computes what the original did, and gives its state dict back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffunet import UNet
from diffunet.spec import UNetConfig
from diffunet.zoo import PRESETS
from tests import peers

TOLERANCE = 1e-5  # of the largest value; measured are 2.2e-6 and less


def inputs(given: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """The original's inputs under our names; a one-hot label of zeros is no class."""
    ours = {"x": given["x"], "t": given["t"]}
    if "y" in given:
        rows = given["y"]
        none = torch.full(rows.shape[:1], net.config.num_classes or 0)  # type: ignore[union-attr]
        ours["class_labels"] = rows if rows.ndim == 1 else torch.where(rows.any(1), rows.argmax(1), none)
    if "low_res" in given:
        sides = given["x"].shape[2:]
        ours["cond"] = nn.functional.interpolate(given["low_res"], sides, mode="bilinear")
    if "augment" in given:
        ours["vector"] = given["augment"]
    return ours


@torch.no_grad()
def worst(case: peers.Case, net: nn.Module, run: Callable[..., Tensor] | None = None) -> float:
    """The largest difference over a case's calls, as a share of the largest value."""
    gaps = []
    for call in case.calls:
        out = (run or net)(**inputs(call.inputs, net))
        assert out.shape == call.out.shape
        gaps.append(float((out - call.out).abs().max() / call.out.abs().max()))
    return max(gaps)


def same(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Equal names and equal bits."""
    return state.keys() == other.keys() and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name]) for name, value in state.items()
    )


def case(name: str) -> peers.Case:
    """A fixture by its name."""
    return peers.read(peers.FOLDER / f"{name}.safetensors")


def names(*projects: str) -> list[str]:
    """Names of the fixtures of some projects."""
    return [Path(path).stem for project in projects for path in peers.cases(project)]


def empty(preset: str) -> UNet:
    """The network of a preset at its full size, without memory."""
    config: Any = PRESETS[preset]
    assert isinstance(config, UNetConfig)
    with torch.device("meta"):
        return UNet(config)
