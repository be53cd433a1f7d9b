"""Attention behind a block. Each takes and gives (B, C, *S)."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.nn.layers import zero
from diffunet.nn.magnitude import Cosine
from diffunet.nn.site import Site
from diffunet.spec import ChannelAttention, LinearAttention, SelfAttention, SpatialAttention
from diffunet.table import Table


class Attention(nn.Module):
    """x + out(softmax(q k^T / sqrt(d)) v) over all positions, with one norm before (DDPM, 2006.11239)."""

    def __init__(self, config: SelfAttention | LinearAttention, site: Site, channels: int) -> None:
        super().__init__()
        self.heads = config.count(channels)
        self.norm = site.norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        if site.block.zero_init:
            zero(self.out)
        self.scale = math.sqrt(0.5) if site.block.rescale else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Let every position of x (B, C, *S) look at every other."""
        tokens = rearrange(self.norm(x), "b c ... -> b (...) c")
        q, k, v = rearrange(self.qkv(tokens), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        h = self.out(rearrange(self.look(q, k, v), "b h n d -> b n (h d)"))
        # a view, since einops cannot name an unknown number of sides on the left
        y = x + h.transpose(1, 2).reshape(x.shape)
        return y if self.scale == 1 else y * self.scale

    def look(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Values (B, heads, positions, d) as the queries see them."""
        return F.scaled_dot_product_attention(q, k, v)


class Linear(Attention):
    """softmax_d(q / sqrt(d)) (softmax_n(k)^T v): positions speak through a d x d table (1812.01243)."""

    def look(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Values (B, heads, positions, d) as the queries see them."""
        table = torch.softmax(k, dim=2).transpose(2, 3) @ v
        return torch.softmax(q / math.sqrt(q.shape[3]), dim=3) @ table


class Spatial(nn.Module):
    """sigmoid(conv(x)) x, one gate for each position."""

    def __init__(self, config: SpatialAttention, site: Site, channels: int) -> None:
        super().__init__()
        self.conv = site.conv(channels, 1, kernel=config.kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the positions of x (B, C, *S)."""
        return torch.sigmoid(self.conv(x)) * x


class Channel(nn.Module):
    """sigmoid(W2 SiLU(W1 mean(x))) x, one gate for each channel (1709.01507, with SiLU for its ReLU)."""

    def __init__(self, config: ChannelAttention, site: Site, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, max(1, channels // config.reduction))
        self.excite = nn.Linear(max(1, channels // config.reduction), channels)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels of x (B, C, *S)."""
        gates = torch.sigmoid(self.excite(F.silu(self.squeeze(x.flatten(2).mean(dim=2)))))
        return x * gates.view(*gates.shape, *[1] * (x.ndim - 2))


ATTENTIONS: Table[type[nn.Module]] = Table(
    "attention", {"self": Attention, "linear": Linear, "spatial": Spatial, "channel": Channel, "cosine": Cosine}
)
