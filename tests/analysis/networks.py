"""Small configs that hold every part of the tables once, in one to three dimensions."""

from __future__ import annotations

from typing import Any

import pytest

from diffunet.spec import ClassicUNetConfig, NetworkConfig, ResidualBlock, UNetConfig
from tests.families import PARTS

SIDES = {1: (20,), 2: (16, 12), 3: (8, 4, 4)}
BASE: dict[str, Any] = {
    "in_channels": 2,
    "out_channels": 3,
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "blocks_per_level": 1,
    "attention_levels": (1,),
    "block": ResidualBlock(groups=4),
}


def unet(**changes: Any) -> UNetConfig:
    """A small UNet."""
    return UNetConfig(**(BASE | changes))


def classic(**changes: Any) -> ClassicUNetConfig:
    """A small ClassicUNet that keeps the size."""
    return ClassicUNetConfig(**({"base_channels": 4, "levels": 3, "padding": "same"} | changes))


def part(key: str, kind: str) -> dict[str, Any]:
    """The change that puts a part of a kind in a config, with what it needs around it."""
    given: dict[str, Any] = {"kind": kind} | ({"groups": 4} if key == "block" and kind in GROUPED else {})
    beside = {"none": {"down": {"kind": "none"}, "up": {"kind": "none"}}} if key in ("down", "up") else {}
    return beside.get(kind, {key: given})


GROUPED = ("residual", "dilated", "multi_scale")
KINDS = [(key, kind) for key in ("block", "attention", "down", "up", "skip", "time") for kind in PARTS[key][1]]
CONFIGS: dict[str, NetworkConfig] = {
    **{f"{key}-{kind}": unet(**part(key, kind)) for key, kind in KINDS},
    **{f"{dims}d": unet(dims=dims) for dims in (1, 2, 3)},
    **{f"classic-{dims}d": classic(dims=dims) for dims in (1, 2, 3)},
    "told-much": unet(num_classes=4, cond_channels=2, vector_channels=3, self_conditioning=True, learned_variance=True),
    "pyramids": unet(input_pyramid="residual", output_pyramid="skip"),
    "uneven": unet(channels=(8, 16, 12), blocks_per_level=(1, 2, 1), attention_levels=(0, 2), attention_up="last"),
    "one-level": unet(channel_multipliers=(1,), attention_levels=()),
    "dilated-flat": unet(block={"kind": "dilated", "groups": 4}, down="none", up="none", dims=1),
}


def sides_of(config: NetworkConfig) -> tuple[int, ...]:
    """Sides that a config takes."""
    return SIDES[config.dims]


every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
