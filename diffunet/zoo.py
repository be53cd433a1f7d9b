"""Known networks by name, without torch: one literal table of configs."""

from __future__ import annotations

from typing import Any, TypeVar

from diffunet.errors import ConfigError
from diffunet.spec import (
    ClassBalanced,
    ClassicUNetConfig,
    ClassLinear,
    CosineAttention,
    DilatedBlock,
    DoubleConvBlock,
    FourierTime,
    InBlock,
    MagnitudeBlock,
    MagnitudeTime,
    NoResample,
    NoTime,
    ResidualBlock,
    ResidualPyramid,
    SelfAttention,
    SinusoidalTime,
    StridedConv,
    UNetConfig,
)
from diffunet.table import Table

Config = TypeVar("Config", UNetConfig, ClassicUNetConfig)

# what all members of a family share; the parameter counts behind the presets are those of the original code

DDPM: dict[str, Any] = {"base_channels": 128, "down": StridedConv(pad="asymmetric")}  # 2006.11239
ADM_TIME = SinusoidalTime(order="cos_sin", shift=0)
# improved DDPM, 2102.09672: shares ADM's code; four heads, learned variance
IDDPM: dict[str, Any] = {
    "base_channels": 128,
    "learned_variance": True,
    "time": ADM_TIME,
    "attention": SelfAttention(heads=4),
    "block": ResidualBlock(condition="scale_shift", eps=1e-5),
}
# ADM, 2105.05233: resampling in the blocks, 64 channels a head
ADM: dict[str, Any] = {
    "base_channels": 256,
    "stem_channels": "first_level",
    "learned_variance": True,
    "time": ADM_TIME,
    "attention": SelfAttention(head_channels=64),
    "block": ResidualBlock(condition="scale_shift", eps=1e-5),
    "down": InBlock(),
    "up": InBlock(),
}
ADM_256: dict[str, Any] = ADM | {"channel_multipliers": (1, 1, 2, 2, 4, 4), "attention_levels": (3, 4, 5)}
ADM_64: dict[str, Any] = ADM | {
    "base_channels": 192,
    "channel_multipliers": (1, 2, 3, 4),
    "blocks_per_level": 3,
    "attention_levels": (1, 2, 3),
    "num_classes": 1000,
    "block": ResidualBlock(condition="scale_shift", eps=1e-5, dropout=0.1),
}
UPSAMPLE: dict[str, Any] = ADM | {"base_channels": 192, "cond_channels": 3, "num_classes": 1000}
# DDPM++ of score SDE, 2011.13456, as EDM trained it (2206.00364), told 9 augmentation labels
DDPMPP: dict[str, Any] = {
    "base_channels": 128,
    "channel_multipliers": (2, 2, 2),
    "blocks_per_level": 4,
    "attention_up": "last",
    "vector_channels": 9,
    "class_embedding": ClassLinear(),
    "block": ResidualBlock(group_channels=4, rescale=True, dropout=0.13),
    "down": InBlock(project=True),
    "up": InBlock(project=True),
}
NCSNPP: dict[str, Any] = DDPMPP | {
    "time": FourierTime(features=2),
    "down": InBlock(project=True, taps=4),
    "up": InBlock(project=True, taps=4),
    "input_pyramid": ResidualPyramid(),
}
FFHQ64: dict[str, Any] = {
    "channel_multipliers": (1, 2, 2, 2),
    "attention_levels": (2,),
    "block": ResidualBlock(group_channels=4, rescale=True, dropout=0.05),
}
# EDM2, 2312.02696: ImageNet-512 in a latent space of 4 x 64 x 64
EDM2: dict[str, Any] = {
    "stem_channels": "first_level",
    "in_channels": 4,
    "out_channels": 4,
    "channel_multipliers": (1, 2, 3, 4),
    "blocks_per_level": 3,
    "attention_levels": (2, 3),
    "num_classes": 1000,
    "uncertainty_channels": 128,
    "time": MagnitudeTime(),
    "class_embedding": ClassBalanced(),
    "block": MagnitudeBlock(),
    "attention": CosineAttention(head_channels=64),
    "down": InBlock(),
    "up": InBlock(),
    "skip": "balanced",
}
# what segmentation networks have in common: one grey channel in, two classes out, no time
GREY: dict[str, Any] = {"in_channels": 1, "out_channels": 2, "time": NoTime(), "base_channels": 64}

PRESETS: Table[UNetConfig | ClassicUNetConfig] = Table(
    "preset",
    {
        "ddpm-cifar10": UNetConfig(**DDPM, block=ResidualBlock(dropout=0.1)),  # 35,746,307
        "ddpm-256": UNetConfig(**DDPM, channel_multipliers=(1, 1, 2, 2, 4, 4), attention_levels=(4,)),  # 113,673,219
        "iddpm-cifar10": UNetConfig(  # 52,546,438
            **IDDPM
            | {
                "blocks_per_level": 3,
                "attention_levels": (1, 2),
                "block": ResidualBlock(condition="scale_shift", eps=1e-5, dropout=0.3),
            }
        ),
        "iddpm-imagenet64": UNetConfig(  # 121,063,942
            **IDDPM, channel_multipliers=(1, 2, 3, 4), blocks_per_level=3, attention_levels=(2, 3)
        ),
        "iddpm-lsun": UNetConfig(  # 113,676,678
            **IDDPM
            | {
                "channel_multipliers": (1, 1, 2, 2, 4, 4),
                "attention_levels": (4,),
                "attention": SelfAttention(heads=1),
                "block": ResidualBlock(eps=1e-5),
            }
        ),
        "adm-64": UNetConfig(**ADM_64),  # 295,904,454
        "adm-128": UNetConfig(  # 421,529,606
            **ADM
            | {
                "channel_multipliers": (1, 1, 2, 3, 4),
                "attention_levels": (2, 3, 4),
                "attention": SelfAttention(heads=4),
                "num_classes": 1000,
            }
        ),
        "adm-256": UNetConfig(**ADM_256, num_classes=1000),  # 553,838,086
        "adm-256-uncond": UNetConfig(**ADM_256),  # 552,814,086
        "adm-512": UNetConfig(
            **ADM,
            channels=(128, 256, 256, 512, 512, 1024, 1024),
            attention_levels=(4, 5, 6),
            num_classes=1000,
        ),
        "adm-upsample-256": UNetConfig(  # 64 to 256 pixels: 311,795,910
            **UPSAMPLE
            | {
                "channel_multipliers": (1, 1, 2, 2, 4, 4),
                "attention_levels": (3, 4, 5),
                "attention": SelfAttention(heads=4),
            }
        ),
        "adm-upsample-512": UNetConfig(  # 128 to 512 pixels: 308,835,270
            **UPSAMPLE, channel_multipliers=(1, 1, 2, 2, 4, 4), attention_levels=(4, 5)
        ),
        # consistency models, 2303.01469
        "cm-imagenet64": UNetConfig(**ADM_64 | {"learned_variance": False}),  # 295,899,267
        "cm-lsun256": UNetConfig(  # 526,304,771
            **ADM_256 | {"learned_variance": False, "block": ResidualBlock(eps=1e-5, dropout=0.1)}
        ),
        "ddpmpp-cifar10": UNetConfig(**DDPMPP),  # 55,733,891
        "ddpmpp-ffhq64": UNetConfig(**DDPMPP | FFHQ64),  # 61,805,571
        "ncsnpp-cifar10": UNetConfig(**NCSNPP),  # 56,397,827
        "ncsnpp-ffhq64": UNetConfig(**NCSNPP | FFHQ64),  # 62,761,091
        "score-sde-ddpm": UNetConfig(**DDPM, attention_up="last", block=ResidualBlock(dropout=0.1)),  # 35,218,947
        "edm2-xxs": UNetConfig(**EDM2, base_channels=64),  # 31,309,029
        "edm2-xs": UNetConfig(**EDM2, base_channels=128),  # 124,713,253
        "edm2-s": UNetConfig(**EDM2, base_channels=192),  # 280,212,837
        "edm2-m": UNetConfig(**EDM2, base_channels=256),  # 497,807,781
        "edm2-l": UNetConfig(**EDM2, base_channels=320),  # 777,498,085
        "edm2-xl": UNetConfig(**EDM2, base_channels=384),  # 1,119,283,749
        "edm2-xxl": UNetConfig(**EDM2, base_channels=448),  # 1,523,164,773
        # the U-Net of 2015 (1505.04597), two classes: 31,030,658
        "unet-2015": ClassicUNetConfig(),
        # the same with same padding and group norm, as it is mostly used today
        "unet-2015-same": ClassicUNetConfig(padding="same", block=DoubleConvBlock(norm="group")),
        # at full resolution throughout: no down or up operator, the dilation grows instead
        "unet-dilated": UNetConfig(
            **GREY,
            channel_multipliers=(1, 1, 1, 1, 1),
            blocks_per_level=1,
            attention_levels=(),
            attention_in_mid=False,
            block=DilatedBlock(groups=8),
            down=NoResample(),
            up=NoResample(),
        ),
        # the diffusion U-Net without time
        "unet-plain": UNetConfig(
            **GREY,
            channel_multipliers=(1, 2, 4, 8),
            blocks_per_level=1,
            attention_levels=(),
            attention_in_mid=False,
            block=ResidualBlock(groups=8),
        ),
        # what we would start from on images of 32 to 64 pixels
        "small": UNetConfig(
            base_channels=64,
            channel_multipliers=(1, 2, 2),
            attention_levels=(2,),
            attention=SelfAttention(head_channels=64),
            block=ResidualBlock(condition="scale_shift", dropout=0.1),
        ),
        # and where there are tens of thousands of images and a GPU
        "base": UNetConfig(
            base_channels=128,
            channel_multipliers=(1, 2, 2, 2),
            blocks_per_level=3,
            attention_levels=(2, 3),
            attention=SelfAttention(head_channels=64),
            block=ResidualBlock(condition="scale_shift", dropout=0.1),
            down=InBlock(),
            up=InBlock(),
        ),
    },
)


def presets() -> tuple[str, ...]:
    """Names of the known networks."""
    return tuple(PRESETS)


def preset(name: str, family: type[Config]) -> Config:
    """Config of a known network of one family.

    Raises:
        ConfigError: unknown name (the message lists them), or a network of the other family.
    """
    config = PRESETS[name]
    if not isinstance(config, family):
        raise ConfigError(f"preset '{name}' is a '{config.kind}' network, not a '{family().kind}' one")
    return config
