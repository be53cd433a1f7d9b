"""The first and the last layers of a network, which depend on what its blocks are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffunet.nn.layers import zero
from diffunet.nn.magnitude import MPConv
from diffunet.nn.site import Site
from diffunet.table import Table


class Normed:
    """A 3x3 convolution; at the end norm, SiLU and a 3x3 convolution that starts as zero (DDPM, ADM, EDM)."""

    def stem(self, site: Site, in_channels: int, out_channels: int) -> nn.Module:
        """From the image to the first width."""
        return site.conv(in_channels, out_channels)

    def head(self, site: Site, in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Norm, activation and convolution to the output."""
        last = site.conv(in_channels, out_channels)
        return site.norm(in_channels), nn.SiLU(), zero(last) if site.block.zero_init else last


class Plain:
    """A 3x3 convolution; at the end a 1x1 convolution (U-Net, 1505.04597)."""

    def stem(self, site: Site, in_channels: int, out_channels: int) -> nn.Module:
        """From the image to the first width."""
        return site.conv(in_channels, out_channels)

    def head(self, site: Site, in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Norm, activation and convolution to the output."""
        return nn.Identity(), nn.Identity(), site.conv(in_channels, out_channels, kernel=1)


class MPStem(MPConv):
    """Convolution of the image beside a channel of ones, which stands for the bias (EDM2, 2312.02696, B.2)."""

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """Map x (B, C, *S)."""
        return super().forward(torch.cat([x, torch.ones_like(x[:, :1])], dim=1), gain)


class MPHead(MPConv):
    """Convolution with a trained gain, which starts at zero."""

    def __init__(self, dims: int, in_channels: int, out_channels: int, kernel: int, padding: str) -> None:
        super().__init__(dims, in_channels, out_channels, kernel, padding)
        self.gain = nn.Parameter(torch.zeros([]))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """Map x (B, C, *S)."""
        return super().forward(x, self.gain * gain)


class MagnitudePreservingEnds:
    """Normalised convolutions without bias and without norm (EDM2)."""

    def stem(self, site: Site, in_channels: int, out_channels: int) -> nn.Module:
        """From the image to the first width."""
        return MPStem(site.dims, in_channels + 1, out_channels, 3, site.padding)

    def head(self, site: Site, in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Norm, activation and convolution to the output."""
        return nn.Identity(), nn.Identity(), MPHead(site.dims, in_channels, out_channels, 3, site.padding)


ENDS: Table[Normed | Plain | MagnitudePreservingEnds] = Table(
    "ends", {"normed": Normed(), "plain": Plain(), "magnitude_preserving": MagnitudePreservingEnds()}
)
