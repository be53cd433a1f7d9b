"""How a skip joins the way up. Each reports `out_channels`, so the network never asks which kind it is."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.nn.layers import crop_centre
from diffunet.nn.magnitude import mp_cat
from diffunet.nn.site import Site
from diffunet.spec import AddSkip, BalancedSkip, BottleneckSkip, ConcatSkip, GatedSkip
from diffunet.table import Table


class Concat(nn.Module):
    """The skip's channels behind the decoder's (U-Net, 1505.04597)."""

    def __init__(self, config: ConcatSkip, site: Site, channels: int, skip_channels: int) -> None:
        super().__init__()
        self.out_channels = channels + skip_channels

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join x (B, C, *S) and skip (B, C', *S) as (B, C + C', *S)."""
        return torch.cat([x, skip], dim=1)


class Bottleneck(nn.Module):
    """conv1x1([x, skip]): from 2C to r C channels, rounded up to whole groups of the norm that follows."""

    def __init__(self, config: BottleneckSkip, site: Site, channels: int, skip_channels: int) -> None:
        super().__init__()
        wanted = config.ratio * (channels + skip_channels) / 2
        groups = site.block.groups_of(math.ceil(wanted))
        self.out_channels = groups * math.ceil(wanted / groups)
        self.conv = site.conv(channels + skip_channels, self.out_channels, kernel=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join x (B, C, *S) and skip (B, C', *S) as (B, out_channels, *S)."""
        return self.conv(torch.cat([x, skip], dim=1))


class Add(nn.Module):
    """x + skip, the skip through a 1x1 convolution where the widths differ."""

    def __init__(self, config: AddSkip, site: Site, channels: int, skip_channels: int) -> None:
        super().__init__()
        self.out_channels = channels
        self.conv = site.conv(skip_channels, channels, kernel=1) if channels != skip_channels else nn.Identity()

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join x (B, C, *S) and skip (B, C', *S) as (B, C, *S)."""
        return x + self.conv(skip)


class Gated(nn.Module):
    """[x, a skip] with a = sigmoid(psi(ReLU(W_x skip + W_g x))): attention gate (Oktay, 1804.03999, eq. 1-2)."""

    def __init__(self, config: GatedSkip, site: Site, channels: int, skip_channels: int) -> None:
        super().__init__()
        self.out_channels, inner = channels + skip_channels, max(1, skip_channels // 2)
        self.gate = site.conv(channels, inner, kernel=1)
        self.look = site.conv(skip_channels, inner, kernel=1, bias=False)
        self.psi = site.conv(inner, 1, kernel=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join x (B, C, *S) and skip (B, C', *S) as (B, C + C', *S)."""
        a = torch.sigmoid(self.psi(F.relu(self.look(skip) + self.gate(x))))
        return torch.cat([x, a * skip], dim=1)


class Balanced(Concat):
    """Magnitude-preserving concatenation (EDM2, 2312.02696, eq. 103)."""

    def __init__(self, config: BalancedSkip, site: Site, channels: int, skip_channels: int) -> None:
        super().__init__(ConcatSkip(), site, channels, skip_channels)
        self.balance = config.balance

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join x (B, C, *S) and skip (B, C', *S) as (B, C + C', *S)."""
        return mp_cat(x, skip, self.balance)


class Scaled(Concat):
    """[x, skip / sqrt(2)] (SR3, 2104.07636)."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join x (B, C, *S) and skip (B, C', *S) as (B, C + C', *S)."""
        return torch.cat([x, skip * math.sqrt(0.5)], dim=1)


class Crop(Concat):
    """[crop(skip), x]: the skip, cut to the sides of x around its centre, stands first (U-Net, 1505.04597)."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join x (B, C, *S) and skip (B, C', *S') as (B, C' + C, *S)."""
        return torch.cat([crop_centre(skip, x.shape[2:]), x], dim=1)


SKIPS: Table[type[nn.Module]] = Table(
    "skip",
    {
        "concat": Concat,
        "bottleneck": Bottleneck,
        "add": Add,
        "gated": Gated,
        "balanced": Balanced,
        "scaled": Scaled,
        "crop": Crop,
    },
)
