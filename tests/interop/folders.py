"""A small denoiser, the schedules it may have, edits of the folder that it becomes; and a small UNet2DModel."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffunet import Denoiser, Schedule
from diffunet.spec import DataInfo, InBlock, ResidualBlock, SkipPyramid
from tests.nn.networks import perturbed, tiny

SHAPE = (3, 16, 12)
# NCSN++ as diffusers' Skip types have it, without attention: options of UNet
NCSNPP: dict[str, Any] = {
    "attention_levels": (),
    "block": ResidualBlock(group_channels=4, rescale=True),
    "down": InBlock(taps=4, project=True),
    "up": InBlock(taps=4, project=True),
    "input_pyramid": SkipPyramid(),
    "output_pyramid": SkipPyramid(),
}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"

SCHEDULES = {
    "linear": Schedule.linear(),
    "linear, short": Schedule.linear(T=100, beta_start=1e-3, beta_end=0.2),
    "scaled_linear": Schedule.scaled_linear(),
    "cosine": Schedule.cosine(),
    "cosine, other s": Schedule.cosine(T=500, s=0.02),
    "sigmoid": Schedule.sigmoid(),
    "sigmoid, other ends": Schedule.sigmoid(start=-2.0, end=2.5, tau=0.7),
}


def denoiser(
    schedule: Schedule = SCHEDULES["linear"], prediction: str = "eps", clip: Any = (-1, 1), **changes: Any
) -> Denoiser:
    return Denoiser(tiny(**changes), schedule, prediction, clip, DataInfo(shape=SHAPE)).eval()


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change one JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def their_model(**options: Any) -> Any:
    """A perturbed UNet2DModel of three levels with attention on the middle one, in eval mode."""
    import diffusers

    small: dict[str, Any] = {
        "block_out_channels": (8, 16, 24),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    }
    return perturbed(diffusers.UNet2DModel(**(small | options))).eval()
