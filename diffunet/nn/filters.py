"""Fixed binomial filters that halve or double every side: 2 taps are a box, 4 the 1-3-3-1 of StyleGAN and NCSN++."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.nn.layers import pad, pad_to_even

# none for volumes: torch's has no bfloat16 on a CPU and no backward of equal bits on a GPU
AVERAGES: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d}
CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def binomial(taps: int, like: Tensor) -> Tensor:
    """Separable binomial kernel (C, 1, *taps) with sum 1 for each channel of `like` (B, C, *S)."""
    # made here: a buffer would stay behind when a network is built without memory and its weights put in
    row = like.new_tensor([math.comb(taps - 1, i) / 2 ** (taps - 1) for i in range(taps)])
    kernel, dims = row, like.ndim - 2
    for _ in range(dims - 1):
        kernel = kernel[..., None] * row
    return kernel.expand(like.shape[1], 1, *kernel.shape)


class Halve(nn.Module):
    """Filter, then every second value; an odd side is padded to even."""

    def __init__(self, taps: int, padding: str, border: int | None = None) -> None:
        super().__init__()
        self.taps, self.padding = taps, padding
        self.border = (taps - 1) // 2 if border is None else border

    def forward(self, x: Tensor) -> Tensor:
        """Halve the sides of x (B, C, *S), rounding up."""
        x, dims = pad_to_even(x, self.padding), x.ndim - 2
        if self.taps == 2 and dims in AVERAGES:
            return AVERAGES[dims](x, 2)
        options: dict[str, Any] = {"stride": 2, "groups": x.shape[1]}
        if self.padding == "zeros":
            return CONVOLVE[dims](x, binomial(self.taps, x), padding=self.border, **options)
        return CONVOLVE[dims](pad(x, self.border, self.border, self.padding), binomial(self.taps, x), **options)


class Double(nn.Module):
    """Zeros between the values, then the filter, scaled so that a constant stays what it is."""

    def __init__(self, taps: int, padding: str) -> None:
        super().__init__()
        self.taps, self.padding = taps, padding

    def forward(self, x: Tensor) -> Tensor:
        """Double the sides of x (B, C, *S)."""
        if self.taps == 2:
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        dims, border = x.ndim - 2, (self.taps - 1) // 2
        wide = x if self.padding == "zeros" else pad(x, 2, 2, self.padding)
        kernel = binomial(self.taps, x) * 2**dims
        options: dict[str, Any] = {"stride": 2, "padding": border, "output_padding": self.taps % 2}
        y = TRANSPOSED[dims](wide, kernel, groups=x.shape[1], **options)
        if self.padding != "zeros":
            for dim in range(2, x.ndim):
                y = y.narrow(dim, 4, 2 * x.shape[dim])
        return y
