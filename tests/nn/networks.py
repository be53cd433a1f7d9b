"""Small networks for tests: every weight differs from zero, so that no part can hide behind its zero initialisation."""

from __future__ import annotations

from math import inf, sqrt
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from diffunet import UNet, UNetConfig
from diffunet.nn.site import Site
from diffunet.spec import ResidualBlock

M = TypeVar("M", bound=nn.Module)

CONV: dict[int, Any] = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}


def perturbed(module: M, seed: int = 0, gain: float = inf) -> M:
    """Add seeded noise of 0.1 to every parameter, or of gain / sqrt(inputs) where that is less."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            size = min(0.1, gain / sqrt(parameter[0].numel() if parameter.ndim else 1))
            parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
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


def site(dims: int = 2, embed: int = 6, **changes: Any) -> Site:
    """Surroundings of a part: two groups to a norm."""
    return Site(**{"dims": dims, "block": ResidualBlock(groups=2), "embed": embed} | changes)


def images(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Seeded normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_right_gradients(part: nn.Module, *inputs: Tensor) -> None:
    """Derivatives of a part against differences, in float64, by its inputs and its parameters."""
    part = part.double()
    leaves = [x.double().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda *all_of: part(*all_of[: len(leaves)]), (*leaves, *part.parameters()))
