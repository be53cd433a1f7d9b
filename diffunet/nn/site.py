"""Where a part stands in a network, and what the parts there are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from diffunet.nn.layers import NORMS, conv
from diffunet.spec import BlockConfig


@dataclass(frozen=True)
class Site:
    """What a part may know of its surroundings.

    Args:
        dims: 1, 2 or 3 spatial sides.
        block: the network's block, whose norm the other parts share.
        embed: channels of the embedding; 0 where there is none.
        padding: zeros, reflect, circular; or valid.
        level: 0 is full resolution.
        encoder: on the way down.
        plain: whatever stands here has no norm of its own.
    """

    dims: int
    block: BlockConfig
    embed: int = 0
    padding: str = "zeros"
    level: int = 0
    encoder: bool = True
    plain: bool = False

    def at(self, **changes: Any) -> Site:
        """The same surroundings elsewhere."""
        return replace(self, **changes)

    def conv(self, in_channels: int, out_channels: int, kernel: int = 3, **options: Any) -> nn.Module:
        """A convolution with this network's dimensions and borders."""
        return conv(self.dims, in_channels, out_channels, kernel, **({"padding": self.padding} | options))

    def norm(self, channels: int) -> nn.Module:
        """This network's norm."""
        return nn.Identity() if self.plain else NORMS[self.block.norm](self.block, channels)
