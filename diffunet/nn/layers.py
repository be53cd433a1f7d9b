"""The smallest parts: convolutions in any dimension, the group norm, zero initialisation, and routing of the embedding.

Legend: B batch, C channels, *S spatial sides (1, 2 or 3 of them), E embedding channels.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

CONVS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
M = TypeVar("M", bound=nn.Module)


def conv(dims: int, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, **options: Any) -> nn.Module:
    """Convolution in `dims` dimensions that keeps the size at stride 1."""
    return CONVS[dims](in_channels, out_channels, kernel, stride, **{"padding": kernel // 2, **options})


def zero(module: M) -> M:
    """Set every parameter of `module` to zero: a residual branch that starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class GroupNorm(nn.GroupNorm):
    """Group norm that also takes a single value, whose norm is its bias (torch's own refuses it)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, *S) over each group of channels and all positions."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class Timed(nn.Module):
    """Mark of a part whose forward takes (x, embedding) in place of (x)."""


class Chain(Timed):
    """Parts in a row; those that are `Timed` also get the embedding."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Send x (B, C, *S) through the parts; embedding (B, E)."""
        for part in self.parts:
            x = part(x, embedding) if isinstance(part, Timed) else part(x)
        return x
