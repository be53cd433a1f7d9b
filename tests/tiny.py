"""The smallest real networks, for tests that need one: random, but the same each time."""

from __future__ import annotations

from typing import Any

import torch

from diffunet import Denoiser, Schedule, UNet
from diffunet.spec import ResidualBlock

# a schedule for each prediction
PROCESSES = {
    "eps": Schedule.linear(),
    "x0": Schedule.linear(),
    "v": Schedule.cosine(),
    "flow": Schedule.flow(),
    "edm": Schedule.karras(),
}


def unet(**changes: Any) -> UNet:
    """A UNet of one channel with hundreds of parameters, in eval mode; its output is not zero at the start."""
    fields: dict[str, Any] = {
        "dims": 1,
        "in_channels": 1,
        "out_channels": 1,
        "base_channels": 2,
        "channel_multipliers": (1,),
        "blocks_per_level": 1,
        "attention_levels": (),
        "attention_in_mid": False,
        "block": ResidualBlock(groups=1, zero_init=False),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet(**(fields | changes)).eval()


def denoiser(clip: tuple[float, float] | None = (-1.0, 1.0), **changes: Any) -> Denoiser:
    """A denoiser around `unet(**changes)` on the linear schedule."""
    return Denoiser(unet(**changes), Schedule.linear(), clip=clip).eval()
