"""Published networks, parameter by parameter: what a preset or a config builds has exactly as many.

The numbers are those of the original code, instantiated. Not expressible, and why:

- pytorch-ddpm's 35,874,307 is the DDPM network plus a frozen 1000 x 128 table of sinusoids, which are computed here;
- denoising-diffusion-pytorch (35,711,491; 28,537,347; 14,869,408; 430,740,725) norms by RMS, attends with memory keys
  and joins the stem's skip once more behind the last level;
- k-diffusion's image_v1 (66,119,427; 19,596,545) shifts and scales every norm, its attention's too, by a mapped
  condition;
- ADM's classifiers (65,438,568; 42,568,040; 54,096,360; 54,448,360) are the way down of a U-Net with a pool.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from diffunet import UNet
from diffunet.nn import NETWORKS, PRESETS
from diffunet.spec import FourierTime, InBlock, ResidualBlock, SelfAttention, SinusoidalTime, UNetConfig

COUNTS = {
    "ddpm-cifar10": 35_746_307,
    "ddpm-256": 113_673_219,
    "score-sde-ddpm": 35_218_947,
    "iddpm-cifar10": 52_546_438,
    "iddpm-imagenet64": 121_063_942,
    "iddpm-lsun": 113_676_678,
    "adm-64": 295_904_454,  # and EDM's with the preconditioning of improved DDPM
    "adm-128": 421_529_606,
    "adm-256": 553_838_086,
    "adm-256-uncond": 552_814_086,
    "adm-upsample-256": 311_795_910,
    "adm-upsample-512": 308_835_270,
    "cm-imagenet64": 295_899_267,  # and EDM's own
    "cm-lsun256": 526_304_771,
    "ddpmpp-cifar10": 55_733_891,
    "ddpmpp-ffhq64": 61_805_571,
    "ncsnpp-cifar10": 56_397_827,
    "ncsnpp-ffhq64": 62_761_091,
    "edm2-xxs": 31_309_029,
    "edm2-xs": 124_713_253,
    "edm2-s": 280_212_837,
    "edm2-m": 497_807_781,
    "edm2-l": 777_498_085,
    "edm2-xl": 1_119_283_749,
    "edm2-xxl": 1_523_164_773,
    "unet-2015": 31_030_658,
}
# presets of our own, which nobody published a number of
UNPUBLISHED = {"adm-512", "unet-2015-same", "unet-dilated", "unet-plain", "small", "base"}

# other members of the families: a preset and what differs, or a config of its own
CHANGED: dict[str, tuple[str, dict[str, Any], int]] = {
    "EDM, CIFAR-10 with classes": ("ddpmpp-cifar10", {"num_classes": 10}, 55_735_299),
    "EDM, CIFAR-10 without augmentation": ("ddpmpp-cifar10", {"vector_channels": 0}, 55_732_739),
    "EDM, NCSN++ with classes": ("ncsnpp-cifar10", {"num_classes": 10}, 56_400_643),
    "flow_matching, ImageNet-64: a null class": ("cm-imagenet64", {"null_class": True}, 295_900_035),
    "EDM2 without the uncertainty": ("edm2-xs", {"uncertainty_channels": 0}, 124_713_253 - 128),
    "diffusers, the script's default shape": ("ddpm-256", {"attention": SelfAttention(head_channels=8)}, 113_673_219),
}
ADM_TIME = SinusoidalTime(order="cos_sin", shift=0)
FIR = InBlock(taps=4, project=True)
OTHERS: dict[str, tuple[dict[str, Any], int]] = {
    "flow_matching, CIFAR-10": (
        {
            "stem_channels": 256,
            "channel_multipliers": (2, 2, 2),
            "blocks_per_level": 4,
            "time": ADM_TIME,
            "block": ResidualBlock(condition="scale_shift", eps=1e-5),
            "down": "avg_pool",
            "up": "nearest",
        },
        55_676_419,
    ),
    "torchcfm, MNIST": (
        {
            "in_channels": 1,
            "out_channels": 1,
            "base_channels": 32,
            "channel_multipliers": (1, 2, 2),
            "blocks_per_level": 1,
            "attention_levels": (0,),
            "time": ADM_TIME,
        },
        1_075_361,
    ),
    "diffusers, UNet2DModel()": (
        {
            "base_channels": 224,
            "channel_multipliers": (1, 2, 3, 4),
            "attention_levels": (1, 2, 3),
            "attention": SelfAttention(head_channels=8),
        },
        274_056_163,
    ),
    "diffusers, the tests' consistency model": (
        {
            "base_channels": 32,
            "channel_multipliers": (1, 2),
            "num_classes": 1000,
            "attention": SelfAttention(head_channels=8),
            "block": ResidualBlock(condition="scale_shift"),
            "down": InBlock(),
            "up": InBlock(),
        },
        1_280_643,
    ),
    "MONAI, 2-D tutorial": (
        {
            "in_channels": 1,
            "out_channels": 1,
            "channels": (128, 256, 256),
            "blocks_per_level": 1,
            "attention_levels": (1, 2),
            "attention": SelfAttention(head_channels=256),
        },
        18_500_993,
    ),
    "MONAI, 3-D tutorial": (
        {
            "dims": 3,
            "in_channels": 1,
            "out_channels": 1,
            "base_channels": 256,
            "channels": (256, 256, 512),
            "attention_levels": (2,),
            "attention": SelfAttention(head_channels=512),
        },
        189_815_297,
    ),
    # score SDE counts its 128 frequencies, which it does not train; here they are trained, or no parameters
    "score SDE, NCSN++ at 256 pixels, and diffusers' copy": (
        {
            "channel_multipliers": (1, 1, 2, 2, 2, 2, 2),
            "attention_levels": (4,),
            "attention_up": "last",
            "time": FourierTime(features=2, log=True, trained=True),
            "block": ResidualBlock(group_channels=4, rescale=True),
            "down": FIR,
            "up": FIR,
            "input_pyramid": "skip",
            "output_pyramid": "skip",
            "divide_by_time": True,
        },
        65_574_549,
    ),
}


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.fixture(autouse=True)
def _no_memory() -> Any:
    with torch.device("meta"):
        yield


def test_every_preset_is_counted_or_our_own() -> None:
    assert COUNTS.keys() | UNPUBLISHED == PRESETS.keys()
    assert not COUNTS.keys() & UNPUBLISHED


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_a_preset_has_the_published_number_of_parameters(name: str, count: int) -> None:
    assert parameters(NETWORKS.build(PRESETS[name])) == count


@pytest.mark.parametrize(("name", "changes", "count"), CHANGED.values(), ids=CHANGED)
def test_a_preset_with_changes_is_another_published_network(name: str, changes: dict[str, Any], count: int) -> None:
    assert parameters(UNet.from_preset(name, **changes)) == count


@pytest.mark.parametrize(("fields", "count"), OTHERS.values(), ids=OTHERS)
def test_a_config_of_its_own_is_a_published_network(fields: dict[str, Any], count: int) -> None:
    assert parameters(UNet(UNetConfig(**fields))) == count
