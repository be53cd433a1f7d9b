"""Attention over the positions of a level. Each takes and gives (B, C, *S)."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.nn.layers import GroupNorm, zero
from diffunet.spec import SelfAttention, UNetConfig
from diffunet.table import Table


class Attention(nn.Module):
    """x + out(softmax(q k^T / sqrt(d)) v) over all positions, with one group norm before (DDPM, 2006.11239)."""

    def __init__(self, config: SelfAttention, network: UNetConfig, channels: int) -> None:
        super().__init__()
        self.heads = config.count(channels)
        self.norm = GroupNorm(network.block.groups, channels, network.block.eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        if network.block.zero_init:
            zero(self.out)

    def forward(self, x: Tensor) -> Tensor:
        """Let every position of x (B, C, *S) look at every other."""
        tokens = rearrange(self.norm(x), "b c ... -> b (...) c")
        q, k, v = rearrange(self.qkv(tokens), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        h = F.scaled_dot_product_attention(q, k, v)
        h = self.out(rearrange(h, "b h n d -> b n (h d)"))
        # a view, since einops cannot name an unknown number of sides on the left
        return x + h.transpose(1, 2).reshape(x.shape)


ATTENTIONS: Table[type[nn.Module]] = Table("attention", {"self": Attention})
