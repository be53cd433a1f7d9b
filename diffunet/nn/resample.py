"""Between levels: down operators halve every side (an odd side is padded to even), up operators double it."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.nn.blocks import BLOCKS
from diffunet.nn.filters import TRANSPOSED, Double, Halve
from diffunet.nn.layers import Timed, crop_centre, pad, pad_to_even
from diffunet.nn.site import Site
from diffunet.spec import (
    AvgPool,
    BlurPool,
    FirUp,
    InBlock,
    LinearConv,
    MaxPool,
    Nearest,
    NearestConv,
    PixelShuffle,
    PixelUnshuffle,
    StridedConv,
    TransposedConv,
)
from diffunet.table import Table

MAXIMA: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
CONV_TRANSPOSES: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
# channels vary slowest, as in torch's pixel_shuffle
SHUFFLES = {
    1: "b (c p) x -> b c (x p)",
    2: "b (c p q) x y -> b c (x p) (y q)",
    3: "b (c p q r) x y z -> b c (x p) (y q) (z r)",
}


def unshuffle(x: Tensor) -> Tensor:
    """Make the 2x2 of each position channels: (B, C, *S) to (B, C 2^dims, *S / 2)."""
    into, out = SHUFFLES[x.ndim - 2].split(" -> ")
    return rearrange(x, f"{out} -> {into}", **dict.fromkeys("pqr"[: x.ndim - 2], 2))


def shuffle(x: Tensor) -> Tensor:
    """The inverse of `unshuffle`."""
    return rearrange(x, SHUFFLES[x.ndim - 2], **dict.fromkeys("pqr"[: x.ndim - 2], 2))


# --- down ------------------------------------------------------------------------------------------------------------


class StridedConvDown(nn.Module):
    """3x3 convolution of stride 2.

    Symmetric pads one value on every side (ADM, and DDPM's PyTorch ports that kept it); asymmetric pads right and
    bottom only, which is TensorFlow's SAME and what converted DDPM weights need.
    """

    def __init__(self, config: StridedConv, site: Site, channels: int) -> None:
        super().__init__()
        self.padding, self.asymmetric = site.padding, config.pad == "asymmetric"
        padding = "valid" if self.asymmetric else site.padding
        self.conv = site.conv(channels, channels, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the sides of x (B, C, *S), rounding up."""
        x = pad_to_even(x, self.padding)
        return self.conv(pad(x, 0, 1, self.padding) if self.asymmetric else x)


class MaxPoolDown(nn.Module):
    """The largest of each 2x2."""

    def __init__(self, config: MaxPool, site: Site, channels: int) -> None:
        super().__init__()
        # a zero beyond the border may be larger than all that is there
        self.padding = "edge" if site.padding == "zeros" else site.padding

    def forward(self, x: Tensor) -> Tensor:
        """Halve the sides of x (B, C, *S), rounding up."""
        return MAXIMA[x.ndim - 2](pad_to_even(x, self.padding), 2)


class AvgPoolDown(Halve):
    """The mean of each 2x2."""

    def __init__(self, config: AvgPool, site: Site, channels: int) -> None:
        super().__init__(2, site.padding)


class BlurPoolDown(nn.Sequential):
    """Binomial filter at stride 2, behind a 3x3 convolution where one is asked for."""

    def __init__(self, config: BlurPool, site: Site, channels: int) -> None:
        first = [site.conv(channels, channels)] if config.conv else []
        super().__init__(*first, Halve(config.taps, site.padding))


class PixelUnshuffleDown(nn.Module):
    """Each 2x2 becomes channels, then a 1x1 convolution."""

    def __init__(self, config: PixelUnshuffle, site: Site, channels: int) -> None:
        super().__init__()
        self.padding = site.padding
        self.conv = site.conv(channels * 2**site.dims, channels, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the sides of x (B, C, *S), rounding up."""
        return self.conv(unshuffle(pad_to_even(x, self.padding)))


class InBlockDown(Timed):
    """A block of the network that halves within."""

    def __init__(self, config: InBlock, site: Site, channels: int) -> None:
        super().__init__()
        self.padding = site.padding
        resample = Halve(config.taps, site.padding)
        self.block = BLOCKS.build(site.block, site, channels, channels, resample, config.project)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Halve the sides of x (B, C, *S), rounding up; embedding (B, E)."""
        return self.block(pad_to_even(x, self.padding), embedding)


# --- up --------------------------------------------------------------------------------------------------------------


def folded(weight: Tensor) -> Tensor:
    """Kernel (C_in, C_out, 4...) of the transposed convolution that doubles by repetition and convolves by `weight`.

    Of each three taps (a, b, c) two fall on the same value: on one half of the positions (a, b + c), on the other
    (a + b, c).
    """
    for dim in range(2, weight.ndim):
        a, b, c = weight.split(1, dim)
        weight = torch.cat([c, b + c, a + b, a], dim)
    return weight.transpose(0, 1)


class NearestConvUp(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution.

    On a CPU both are one transposed convolution with 4/9 of the multiplications and no doubled input to keep (1.5 to
    1.9 times as fast, backward too), unless so few positions come in that folding the kernel costs more. The batch has
    no say in this: an image must not depend on those beside it.
    """

    FEWEST_POSITIONS = 256

    def __init__(self, config: NearestConv, site: Site, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = site.conv(in_channels, out_channels)
        self.folds = site.padding == "zeros"

    def forward(self, x: Tensor) -> Tensor:
        """Double the sides of x (B, C, *S)."""
        few = torch.compiler.is_exporting() or x.shape[2:].numel() < self.FEWEST_POSITIONS  # a program's size is open
        if self.folds and x.device.type == "cpu" and not few:
            weight, bias = self.conv.get_parameter("weight"), self.conv.get_parameter("bias")
            return TRANSPOSED[x.ndim - 2](x, folded(weight), bias, stride=2, padding=1)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class FilterUp(nn.Sequential):
    """A fixed filter, then a 3x3 convolution where one is asked for, or 1x1 where only the width must change."""

    def __init__(self, config: Nearest | FirUp, site: Site, in_channels: int, out_channels: int) -> None:
        taps, kernel = getattr(config, "taps", 2), 3 if getattr(config, "conv", False) else 1
        changes = kernel == 3 or in_channels != out_channels
        last = [site.conv(in_channels, out_channels, kernel=kernel)] if changes else []
        super().__init__(Double(taps, site.padding), *last)


class TransposedConvUp(nn.Module):
    """Transposed convolution of stride 2."""

    def __init__(self, config: TransposedConv, site: Site, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.border, self.padding = (config.kernel - 2) // 2, site.padding
        self.conv = CONV_TRANSPOSES[site.dims](in_channels, out_channels, config.kernel, stride=2, padding=self.border)

    def forward(self, x: Tensor) -> Tensor:
        """Double the sides of x (B, C, *S)."""
        if self.padding == "zeros" or not self.border:
            return self.conv(x)
        sides = [2 * side for side in x.shape[2:]]
        return crop_centre(self.conv(pad(x, 1, 1, self.padding)), sides)


class LinearConvUp(nn.Module):
    """(Bi-, tri-)linear doubling, then a 3x3 convolution."""

    def __init__(self, config: LinearConv, site: Site, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.padding = site.padding
        self.conv = site.conv(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Double the sides of x (B, C, *S); beyond a zero border the edge goes on, since a fade would darken it."""
        sides = [2 * side for side in x.shape[2:]]
        wide = x if self.padding == "zeros" else pad(x, 1, 1, self.padding)
        y = F.interpolate(wide, scale_factor=2.0, mode=LINEAR[x.ndim - 2])
        return self.conv(crop_centre(y, sides))


class PixelShuffleUp(nn.Module):
    """A 3x3 convolution to 2^dims times the channels, which become the 2x2 of each position."""

    def __init__(self, config: PixelShuffle, site: Site, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = site.conv(in_channels, out_channels * 2**site.dims)

    def forward(self, x: Tensor) -> Tensor:
        """Double the sides of x (B, C, *S)."""
        return shuffle(self.conv(x))


class InBlockUp(Timed):
    """A block of the network that doubles within."""

    def __init__(self, config: InBlock, site: Site, in_channels: int, out_channels: int) -> None:
        super().__init__()
        resample = Double(config.taps, site.padding)
        self.block = BLOCKS.build(site.block, site, in_channels, out_channels, resample, config.project)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Double the sides of x (B, C, *S); embedding (B, E)."""
        return self.block(x, embedding)


def _nothing(*_: Any) -> None:
    """The level keeps its size."""


DOWNS: Table[Any] = Table(
    "down operator",
    {
        "strided_conv": StridedConvDown,
        "max_pool": MaxPoolDown,
        "avg_pool": AvgPoolDown,
        "blur_pool": BlurPoolDown,
        "pixel_unshuffle": PixelUnshuffleDown,
        "in_block": InBlockDown,
        "none": _nothing,
    },
)
UPS: Table[Any] = Table(
    "up operator",
    {
        "nearest_conv": NearestConvUp,
        "nearest": FilterUp,
        "transposed_conv": TransposedConvUp,
        "linear_conv": LinearConvUp,
        "pixel_shuffle": PixelShuffleUp,
        "fir": FilterUp,
        "in_block": InBlockUp,
        "none": _nothing,
    },
)
