"""Blocks: what a level repeats. Each takes (x (B, C_in, *S), embedding (B, E) or None) and gives (B, C_out, *S)."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.nn.layers import Timed, zero
from diffunet.nn.magnitude import MagnitudePreserving
from diffunet.nn.site import Site
from diffunet.spec import DilatedBlock, DoubleConvBlock, MultiScaleBlock, ResidualBlock
from diffunet.table import Table


class Residual(Timed):
    """h = conv(SiLU(norm(x))); h = conv(drop(SiLU(norm'(h, embedding)))); out = h + shortcut(x).

    norm' is norm(h + e) for `shift` (DDPM, 2006.11239) and norm(h) (1 + a) + b for `scale_shift` (ADM, 2105.05233).
    The shortcut is a 1x1 convolution where the width changes. `resample`, if given, acts before the first convolution
    and before the shortcut (ADM); `project` asks for the shortcut's convolution at equal widths too (EDM, 2206.00364).
    """

    def __init__(
        self,
        config: ResidualBlock,
        site: Site,
        in_channels: int,
        out_channels: int,
        resample: nn.Module | None = None,
        project: bool = False,
    ) -> None:
        super().__init__()
        self.dims, self.scale_shift = site.dims, config.condition == "scale_shift"
        self.resample = resample or nn.Identity()
        self.norm_in = site.norm(in_channels)
        self.conv_in = self._conv(config, site, in_channels, out_channels)
        self.embed = nn.Linear(site.embed, out_channels * (2 if self.scale_shift else 1)) if site.embed else None
        self.norm_out = site.norm(out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_out = self._conv(config, site, out_channels, out_channels)
        if config.zero_init:
            zero(self.conv_out)
        projects = project or in_channels != out_channels
        self.shortcut = site.conv(in_channels, out_channels, kernel=1) if projects else nn.Identity()
        self.scale = math.sqrt(0.5) if config.rescale else 1.0

    def _conv(self, config: ResidualBlock, site: Site, in_channels: int, out_channels: int) -> nn.Module:
        return site.conv(in_channels, out_channels)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Transform x (B, C_in, *S), told by embedding (B, E), into (B, C_out, *S)."""
        h = self.conv_in(self.resample(F.silu(self.norm_in(x))))
        if self.embed is None or embedding is None:
            h = self.norm_out(h)
        else:
            e = self.embed(F.silu(embedding))
            e = e.view(*e.shape, *[1] * self.dims)  # a view, since the number of sides is open
            if self.scale_shift:
                scale, shift = e.chunk(2, dim=1)
                h = self.norm_out(h) * (1 + scale) + shift
            else:
                h = self.norm_out(h + e)
        y = self.shortcut(self.resample(x)) + self.conv_out(self.dropout(F.silu(h)))
        return y if self.scale == 1 else y * self.scale


class Dilated(Residual):
    """A residual block whose convolutions are dilated by the rate of its level."""

    def _conv(self, config: ResidualBlock, site: Site, in_channels: int, out_channels: int) -> nn.Module:
        assert isinstance(config, DilatedBlock)
        return site.conv(in_channels, out_channels, dilation=config.rate(site.level))


class ParallelConv(nn.Module):
    """The sum of convolutions with several kernels."""

    def __init__(self, site: Site, in_channels: int, out_channels: int, kernels: tuple[int, ...]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            site.conv(in_channels, out_channels, kernel=k, bias=i == 0) for i, k in enumerate(kernels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C_in, *S) to (B, C_out, *S)."""
        first, *others = self.scales
        y = first(x)
        for scale in others:
            y = y + scale(x)
        return y


class MultiScale(Residual):
    """A residual block whose convolutions see several scales at once."""

    def _conv(self, config: ResidualBlock, site: Site, in_channels: int, out_channels: int) -> nn.Module:
        assert isinstance(config, MultiScaleBlock)
        return ParallelConv(site, in_channels, out_channels, config.kernels)


class DoubleConv(Timed):
    """Twice: conv, norm, activation (the U-Net of 2015); an embedding shifts what the first activation sees."""

    def __init__(self, config: DoubleConvBlock, site: Site, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.dims = site.dims
        self.conv_in = site.conv(in_channels, out_channels)
        self.norm_in = site.norm(out_channels)
        self.embed = nn.Linear(site.embed, out_channels) if site.embed else None
        self.dropout = nn.Dropout(config.dropout)
        self.conv_out = site.conv(out_channels, out_channels)
        self.norm_out = site.norm(out_channels)
        self.activation = ACTIVATIONS[config.activation]()

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Transform x (B, C_in, *S), told by embedding (B, E), into (B, C_out, *S)."""
        h = self.norm_in(self.conv_in(x))
        if self.embed is not None and embedding is not None:
            e = self.embed(F.silu(embedding))
            h = h + e.view(*e.shape, *[1] * self.dims)
        h = self.dropout(self.activation(h))
        return self.activation(self.norm_out(self.conv_out(h)))


ACTIVATIONS: Table[type[nn.Module]] = Table("activation", {"relu": nn.ReLU, "silu": nn.SiLU})
BLOCKS: Table[type[Timed]] = Table(
    "block",
    {
        "residual": Residual,
        "dilated": Dilated,
        "multi_scale": MultiScale,
        "double_conv": DoubleConv,
        "magnitude_preserving": MagnitudePreserving,
    },
)
