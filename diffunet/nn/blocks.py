"""Blocks: what a level repeats. Each takes (x (B, C_in, *S), embedding (B, E)) and gives (B, C_out, *S)."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.nn.layers import GroupNorm, Timed, conv, zero
from diffunet.spec import ResidualBlock, UNetConfig
from diffunet.table import Table


class Residual(Timed):
    """h = conv(SiLU(norm(x))); h = conv(drop(SiLU(norm'(h, embedding)))); out = h + shortcut(x).

    norm' is norm(h + e) for `shift` (DDPM, 2006.11239) and norm(h) (1 + a) + b for `scale_shift` (ADM, 2105.05233).
    The shortcut is a 1x1 convolution where the width changes.
    """

    def __init__(self, config: ResidualBlock, network: UNetConfig, in_channels: int, out_channels: int, embed: int):
        super().__init__()
        dims, self.scale_shift = network.dims, config.condition == "scale_shift"
        self.norm_in = GroupNorm(config.groups, in_channels, config.eps)
        self.conv_in = conv(dims, in_channels, out_channels)
        self.embed = nn.Linear(embed, out_channels * (2 if self.scale_shift else 1))
        self.norm_out = GroupNorm(config.groups, out_channels, config.eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_out = conv(dims, out_channels, out_channels)
        if config.zero_init:
            zero(self.conv_out)
        widens = in_channels != out_channels
        self.shortcut = conv(dims, in_channels, out_channels, kernel=1) if widens else nn.Identity()
        self.dims = dims

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Transform x (B, C_in, *S), told by embedding (B, E), into (B, C_out, *S)."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        e = rearrange(self.embed(F.silu(embedding)), f"b c -> b c {'1 ' * self.dims}")
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm_out(h) * (1 + scale) + shift
        else:
            h = self.norm_out(h + e)
        return self.shortcut(x) + self.conv_out(self.dropout(F.silu(h)))


BLOCKS: Table[type[nn.Module]] = Table("block", {"residual": Residual})
