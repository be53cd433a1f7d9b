"""Between levels: the specs of down and up operators, of skips and of pyramids."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from diffunet.spec.base import ByName, Spec, by_name
from diffunet.spec.embeddings import Balance

Taps = Annotated[int, Field(ge=2, le=7, description="taps of the binomial filter: 2 is a box, 4 is 1-3-3-1")]


class StridedConv(Spec):
    """3x3 convolution of stride 2; asymmetric pads right and bottom only (TensorFlow's SAME)."""

    kind: Literal["strided_conv"] = "strided_conv"
    pad: Literal["symmetric", "asymmetric"] = "symmetric"


class MaxPool(Spec):
    """Largest of each 2x2."""

    kind: Literal["max_pool"] = "max_pool"


class AvgPool(Spec):
    """Mean of each 2x2."""

    kind: Literal["avg_pool"] = "avg_pool"


class BlurPool(Spec):
    """Binomial filter at stride 2 (anti-aliased, 1904.11486), behind a 3x3 convolution where `conv` is set."""

    kind: Literal["blur_pool"] = "blur_pool"
    taps: Taps = 4
    conv: bool = False


class PixelUnshuffle(Spec):
    """Each 2x2 becomes channels, then a 1x1 convolution."""

    kind: Literal["pixel_unshuffle"] = "pixel_unshuffle"


class InBlock(Spec):
    """Resampling between the first activation and convolution of a residual block, and on its shortcut (ADM, EDM)."""

    kind: Literal["in_block"] = "in_block"
    taps: Taps = 2
    project: bool = Field(False, description="a 1x1 convolution on the shortcut even where the width stays (EDM)")


class NearestConv(Spec):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    kind: Literal["nearest_conv"] = "nearest_conv"


class Nearest(Spec):
    """Nearest-neighbour doubling alone."""

    kind: Literal["nearest"] = "nearest"


class TransposedConv(Spec):
    """Transposed convolution of stride 2; kernel 2 is the U-Net of 2015's, 4 overlaps evenly."""

    kind: Literal["transposed_conv"] = "transposed_conv"
    kernel: Literal[2, 4] = 2


class LinearConv(Spec):
    """(Bi-, tri-)linear doubling, then a 3x3 convolution."""

    kind: Literal["linear_conv"] = "linear_conv"


class PixelShuffle(Spec):
    """A 3x3 convolution to 2^dims times the channels, which become the 2x2 of a position (1609.05158)."""

    kind: Literal["pixel_shuffle"] = "pixel_shuffle"


class FirUp(Spec):
    """Zeros between the values, then a binomial filter; a 3x3 convolution behind it where `conv` is set."""

    kind: Literal["fir"] = "fir"
    taps: Taps = 4
    conv: bool = False


class NoResample(Spec):
    """The level keeps the size of the one above."""

    kind: Literal["none"] = "none"


class ConcatSkip(Spec):
    """The skip's channels stand behind the decoder's."""

    kind: Literal["concat"] = "concat"


class BottleneckSkip(Spec):
    """Concatenation, then a 1x1 convolution from 2C to `ratio` x C channels."""

    kind: Literal["bottleneck"] = "bottleneck"
    ratio: float = Field(1.0, gt=0, le=2)


class AddSkip(Spec):
    """Sum; a 1x1 convolution on the skip where the widths differ."""

    kind: Literal["add"] = "add"


class GatedSkip(Spec):
    """Concatenation of a skip that the decoder gates (attention gate, 1804.03999)."""

    kind: Literal["gated"] = "gated"


class BalancedSkip(Spec):
    """Magnitude-preserving concatenation (EDM2, 2312.02696)."""

    kind: Literal["balanced"] = "balanced"
    balance: Balance = 0.5


class ScaledSkip(Spec):
    """Concatenation of the skip divided by sqrt(2) (SR3, 2104.07636)."""

    kind: Literal["scaled"] = "scaled"


class CropSkip(Spec):
    """The skip, cropped to its centre, stands first (U-Net of 2015, 1505.04597)."""

    kind: Literal["crop"] = "crop"


class SkipPyramid(Spec):
    """The image, filtered to each level's size, joins by 1x1 convolutions; at the output, images are summed."""

    kind: Literal["skip"] = "skip"
    taps: Taps = 4


class ResidualPyramid(Spec):
    """The image, convolved and filtered from level to level, is averaged into each (NCSN++, 2011.13456)."""

    kind: Literal["residual"] = "residual"
    taps: Taps = 4


DownConfig = Annotated[
    Annotated[
        StridedConv | MaxPool | AvgPool | BlurPool | PixelUnshuffle | InBlock | NoResample, Field(discriminator="kind")
    ],
    by_name("strided_conv"),
]
UpConfig = Annotated[
    Annotated[
        NearestConv | Nearest | TransposedConv | LinearConv | PixelShuffle | FirUp | InBlock | NoResample,
        Field(discriminator="kind"),
    ],
    by_name("nearest_conv"),
]
SkipConfig = Annotated[
    Annotated[
        ConcatSkip | BottleneckSkip | AddSkip | GatedSkip | BalancedSkip | ScaledSkip | CropSkip,
        Field(discriminator="kind"),
    ],
    by_name("concat"),
]
InputPyramidConfig = Annotated[Annotated[SkipPyramid | ResidualPyramid, Field(discriminator="kind")], ByName]
OutputPyramidConfig = Annotated[SkipPyramid, ByName]
