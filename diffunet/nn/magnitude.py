"""Magnitude-preserving layers: activations keep unit size because weights, sums and activations are normalised.

Equations of "Analyzing and Improving the Training Dynamics of Diffusion Models" (EDM2, 2312.02696), appendix B.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.nn.filters import CONVOLVE
from diffunet.nn.layers import Timed, pad
from diffunet.nn.site import Site
from diffunet.spec import CosineAttention, MagnitudeBlock


def normalize(x: Tensor, dims: tuple[int, ...] | None = None, eps: float = 1e-4) -> Tensor:
    """Scale x so that its values have root mean square 1 over `dims` (all but the first if unset): eq. 66."""
    dims = tuple(range(1, x.ndim)) if dims is None else dims
    full = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=full)
    norm = eps + norm * math.sqrt(norm.numel() / x.numel())
    return x / norm.to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU(x) / 0.596, which has unit magnitude for unit normal x: eq. 81."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2): eq. 88."""
    common = torch.promote_types(a.dtype, b.dtype)  # autocast leaves some sums in float32
    return a.to(common).lerp(b.to(common), balance) / math.sqrt((1 - balance) ** 2 + balance**2)


def mp_cat(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """Concatenation over channels whose two halves count as 1 - t and t, whatever their widths: eq. 103."""
    n_a, n_b = a.shape[1], b.shape[1]
    scale = math.sqrt((n_a + n_b) / ((1 - balance) ** 2 + balance**2))
    return torch.cat([scale * (1 - balance) / math.sqrt(n_a) * a, scale * balance / math.sqrt(n_b) * b], dim=1)


class MPConv(nn.Module):
    """Convolution, or linear map where `kernel` is 0, whose weights are normalised: eq. 47 and 66.

    While training the stored weights themselves are brought back to unit size before each use, so that the learning
    rate acts on all of them alike.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, kernel: int, padding: str = "zeros") -> None:
        super().__init__()
        self.dims, self.kernel, self.padding = dims, kernel, padding
        shape = (kernel,) * dims if kernel else ()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *shape))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """Map x (B, C_in, *S), or (B, C_in) for a linear map; the result is `gain` times unit size."""
        w = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalize(w))
        w = (normalize(w) * (gain / math.sqrt(w[0].numel()))).to(x.dtype)
        if not self.kernel:
            return x @ w.t()
        border = self.kernel // 2
        if self.padding == "zeros" or not border:
            return CONVOLVE[self.dims](x, w, padding=border)
        return CONVOLVE[self.dims](pad(x, border, border, self.padding), w)


class MagnitudePreserving(Timed):
    """mp_sum(x, conv(mp_silu(conv(mp_silu(x)) (1 + gain e)))), x normalised over channels on the way down: fig. 19.

    `resample` and `project` are as in `Residual`. What comes out is clipped, which only half precision needs.
    """

    def __init__(
        self,
        config: MagnitudeBlock,
        site: Site,
        in_channels: int,
        out_channels: int,
        resample: nn.Module | None = None,
        project: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.balance, self.dims, self.clip = site.encoder, config.balance, site.dims, config.clip
        self.resample = resample or nn.Identity()

        def part(i: int, o: int, kernel: int) -> MPConv:
            return MPConv(site.dims, i, o, kernel, site.padding)

        self.conv_in = part(out_channels if site.encoder else in_channels, out_channels, 3)
        self.embed = part(site.embed, out_channels, 0) if site.embed else None
        self.gain = nn.Parameter(torch.zeros([])) if site.embed else None
        self.dropout = nn.Dropout(config.dropout)
        self.conv_out = part(out_channels, out_channels, 3)
        projects = project or in_channels != out_channels
        self.shortcut = part(in_channels, out_channels, 1) if projects else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Transform x (B, C_in, *S), told by embedding (B, E), into (B, C_out, *S)."""
        x = self.resample(x)
        if self.encoder:
            x = normalize(self.shortcut(x), dims=(1,))
        h = self.conv_in(mp_silu(x))
        if self.embed is not None and embedding is not None:
            scale = self.embed(mp_silu(embedding), gain=self.gain) + 1
            h = h * scale.view(*scale.shape, *[1] * self.dims)
        h = self.conv_out(self.dropout(mp_silu(h)))
        x = mp_sum(x if self.encoder else self.shortcut(x), h, self.balance)
        return x.clamp(-self.clip, self.clip)


class Cosine(nn.Module):
    """Self-attention of queries, keys and values normalised over a head's channels, in a balanced sum: fig. 19."""

    def __init__(self, config: CosineAttention, site: Site, channels: int) -> None:
        super().__init__()
        self.heads, self.balance = config.count(channels), config.balance
        self.clip = getattr(site.block, "clip", math.inf)
        self.qkv = MPConv(site.dims, channels, 3 * channels, 1)
        self.out = MPConv(site.dims, channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Let every position of x (B, C, *S) look at every other."""
        # the weights of EDM2 hold q, k and v of one channel next to each other; views, since *S is open
        y = self.qkv(x).flatten(2).unflatten(1, (self.heads, -1, 3))
        q, k, v = (part.transpose(2, 3) for part in normalize(y, dims=(2,)).unbind(3))
        h = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
        return mp_sum(x, self.out(h), self.balance).clamp(-self.clip, self.clip)
