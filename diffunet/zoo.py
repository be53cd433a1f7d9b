"""Known networks by name, without torch: one literal table of configs."""

from __future__ import annotations

from typing import TypeVar

from diffunet.errors import ConfigError
from diffunet.spec import ClassicUNetConfig, ResidualBlock, SelfAttention, StridedConv, UNetConfig
from diffunet.table import Table

Config = TypeVar("Config", UNetConfig, ClassicUNetConfig)

PRESETS: Table[UNetConfig | ClassicUNetConfig] = Table(
    "preset",
    {
        # DDPM (2006.11239) on CIFAR-10: 35,746,307 parameters
        "ddpm-cifar10": UNetConfig(
            base_channels=128,
            channel_multipliers=(1, 2, 2, 2),
            attention_levels=(1,),
            block=ResidualBlock(dropout=0.1),
            down=StridedConv(pad="asymmetric"),
        ),
        # DDPM on LSUN and CelebA-HQ at 256 pixels: 113,673,219 parameters
        "ddpm-256": UNetConfig(
            base_channels=128,
            channel_multipliers=(1, 1, 2, 2, 4, 4),
            attention_levels=(4,),
            down=StridedConv(pad="asymmetric"),
        ),
        # the U-Net of 2015 (1505.04597), two classes
        "unet-2015": ClassicUNetConfig(),
        # what we would start from on images of 32 to 64 pixels
        "small": UNetConfig(
            base_channels=64,
            channel_multipliers=(1, 2, 2),
            attention_levels=(2,),
            attention=SelfAttention(head_channels=64),
            block=ResidualBlock(condition="scale_shift", dropout=0.1),
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
