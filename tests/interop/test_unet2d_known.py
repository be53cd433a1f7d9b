"""Published networks of diffusers become ours on the meta device, with every parameter; and our presets theirs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from diffunet.interop import diffusers as hub
from diffunet.interop.unet2d_write import essence
from diffunet.nn import UNet

SKIP, RESNET = {"kind": "skip", "taps": 4}, {"kind": "in_block", "taps": 2, "project": False}
FIR = {"kind": "in_block", "taps": 4, "project": True}

# consistency models' scripts/convert_consistency_to_diffusers.py of diffusers
CM: dict[str, Any] = {
    "attention_head_dim": 64,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "num_train_timesteps": 40,
}
CM_64 = CM | {
    "sample_size": 64,
    "layers_per_block": 3,
    "num_class_embeds": 1000,
    "block_out_channels": (192, 384, 576, 768),
    "down_block_types": ("ResnetDownsampleBlock2D", *("AttnDownBlock2D",) * 3),
    "up_block_types": (*("AttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 32,
}
CM_256 = CM | {
    "sample_size": 256,
    "block_out_channels": (256, 256, 512, 512, 1024, 1024),
    "down_block_types": (*("ResnetDownsampleBlock2D",) * 3, *("AttnDownBlock2D",) * 3),
    "up_block_types": (*("AttnUpBlock2D",) * 3, *("ResnetUpsampleBlock2D",) * 3),
}
CM_TEST = CM_64 | {
    "sample_size": 32,
    "layers_per_block": 2,
    "block_out_channels": (32, 64),
    "attention_head_dim": 8,
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
DDPM: dict[str, Any] = {
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
DDPM_32 = DDPM | {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
DDPM_256 = DDPM | {
    "sample_size": 256,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
}
NCSNPP_256: dict[str, Any] = {
    "sample_size": 256,
    "block_out_channels": (128, 128, 256, 256, 256, 256, 256),
    "down_block_types": (*("SkipDownBlock2D",) * 4, "AttnSkipDownBlock2D", *("SkipDownBlock2D",) * 2),
    "up_block_types": (*("SkipUpBlock2D",) * 2, "AttnSkipUpBlock2D", *("SkipUpBlock2D",) * 4),
    "attention_head_dim": None,
    "mid_block_scale_factor": math.sqrt(2),
    "norm_eps": 1e-6,
    "norm_num_groups": None,
    "time_embedding_type": "fourier",
}
# name: options of UNet2DModel, parameters, and what of our config shows that they are understood
KNOWN: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "UNet2DModel()": ({}, 274_056_163, {"attention_levels": [1, 2, 3], "time.order": "cos_sin", "time.shift": 0}),
    "google/ddpm-cifar10-32": (DDPM_32, 35_746_307, {"attention_levels": [1], "time.order": "sin_cos"}),
    "google/ddpm-celebahq-256": (DDPM_256, 113_673_219, {"attention_levels": [4], "block.eps": 1e-6}),
    "google/ncsnpp-celebahq-256": (
        NCSNPP_256,
        65_574_549,
        {"input_pyramid.kind": "skip", "output_pyramid.kind": "skip", "up": [FIR] * 6, "divide_by_time": True},
    ),
    "openai/diffusers-cd_imagenet64_l2": (CM_64, 295_899_267, {"num_classes": 1000, "down": [RESNET] * 3}),
    "openai/diffusers-cd_bedroom256_l2": (CM_256, 526_304_771, {"block.condition": "shift", "up": [RESNET] * 5}),
    "consistency models' test": (CM_TEST, 1_280_643, {"attention.heads": {1: 8}, "mid_attention_norm": True}),
}
# presets that a UNet2DModel can say
PRESETS = [
    *("ddpm-cifar10", "ddpm-256", "iddpm-cifar10", "iddpm-lsun", "adm-64", "adm-256", "adm-256-uncond"),
    *("cm-imagenet64", "cm-lsun256", "small", "base"),
]


def values(module: torch.nn.Module) -> int:
    """Numbers in a state dict: our random frequencies are a buffer, theirs a parameter that is not trained."""
    return sum(value.numel() for value in module.state_dict().values())


@pytest.mark.parametrize("name", KNOWN)
def test_a_published_network_is_understood(name: str) -> None:
    import diffusers

    options, parameters, said = KNOWN[name]
    with torch.device("meta"):
        model = diffusers.UNet2DModel(**options)
    net = hub.from_unet2d(model)
    assert parameters == values(net) == sum(p.numel() for p in model.parameters())
    assert said.items() <= essence(net.config).items()


@pytest.mark.parametrize("name", KNOWN)
def test_a_published_network_returns(name: str) -> None:
    import diffusers

    with torch.device("meta"):
        model = diffusers.UNet2DModel(**KNOWN[name][0])
    back = hub.to_unet2d(hub.from_unet2d(model))
    shapes = {key: value.shape for key, value in back.state_dict().items()}
    assert shapes == {key: value.shape for key, value in model.state_dict().items()}
    again = hub.from_unet2d(back)
    assert again.config == hub.from_unet2d(model).config


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_as_many_parameters_there(preset: str) -> None:
    with torch.device("meta"):
        net = UNet.from_preset(preset)
    model = hub.to_unet2d(net)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in net.parameters())
    assert essence(hub.from_unet2d(model).config) == essence(net.config)


def test_their_networks_are_the_presets_of_the_same_name() -> None:
    import diffusers

    with torch.device("meta"):
        for name, options in {"ddpm-cifar10": DDPM_32 | {"dropout": 0.1}, "ddpm-256": DDPM_256}.items():
            net = hub.from_unet2d(diffusers.UNet2DModel(**options))
            assert essence(net.config) == essence(UNet.from_preset(name).config)
