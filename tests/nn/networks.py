"""Small networks for tests: every weight differs from zero, so that no part can hide behind its zero initialisation."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from diffunet import UNet, UNetConfig
from diffunet.spec import ResidualBlock

M = TypeVar("M", bound=nn.Module)


def perturbed(module: M, seed: int = 0) -> M:
    """Add seeded noise to every parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return module


def tiny_config(**changes: Any) -> UNetConfig:
    """Three levels of 8, 16 and 24 channels with attention on the middle one, four channels to a norm's group."""
    fields: dict[str, Any] = {
        "base_channels": 8,
        "channel_multipliers": (1, 2, 3),
        "blocks_per_level": 1,
        "block": ResidualBlock(groups=2),
    }
    return UNetConfig(**(fields | changes))


def tiny(**changes: Any) -> UNet:
    """The perturbed network of `tiny_config`, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return perturbed(UNet(tiny_config(**changes))).eval()
