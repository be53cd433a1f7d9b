"""What a level repeats: the specs of blocks and of the attention behind them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from diffunet.spec.base import Count, Ints, Spec, by_name, contradictions
from diffunet.spec.embeddings import Balance


class Normed(Spec):
    """A block with group norms, which the attention and the head around it share."""

    norm: ClassVar[str] = "group"
    ends: ClassVar[str] = "normed"
    resamples: ClassVar[bool] = True
    groups: Count = 32
    group_channels: Count | None = Field(
        None, description="fewer groups where one would have fewer channels than this (EDM: 4)"
    )
    eps: float = Field(1e-6, gt=0, lt=1)

    def groups_of(self, channels: int) -> int:
        """Number of groups at a width."""
        if self.group_channels is None:
            return self.groups
        most = max(1, min(self.groups, channels // self.group_channels))
        return next(n for n in range(most, 0, -1) if channels % n == 0)

    def kernel_values(self, dims: int) -> int:
        """Values of a convolution's kernel for one input and one output channel."""
        return 3**dims


class ResidualBlock(Normed):
    """norm, SiLU, conv, condition, norm, SiLU, dropout, conv, plus the input."""

    kind: Literal["residual"] = "residual"
    condition: Literal["shift", "scale_shift"] = "shift"
    dropout: float = Field(0.0, ge=0, lt=1)
    zero_init: bool = True
    rescale: bool = Field(False, description="each residual sum is divided by sqrt(2) (score SDE, EDM)")


class DilatedBlock(ResidualBlock):
    """A residual block whose convolutions are dilated: the receptive field grows at full resolution."""

    kind: Literal["dilated"] = "dilated"  # type: ignore[assignment]
    rates: Ints | None = Field(None, description="dilation of each level; 1, 2, 4, ... if unset")

    def rate(self, level: int) -> int:
        """Dilation of a level."""
        return self.rates[level] if self.rates else 2**level


class MultiScaleBlock(ResidualBlock):
    """A residual block whose convolutions are sums of parallel ones with several kernels."""

    kind: Literal["multi_scale"] = "multi_scale"  # type: ignore[assignment]
    kernels: Ints = (1, 3, 5)

    def kernel_values(self, dims: int) -> int:
        """Values of all kernels together."""
        return sum(k**dims for k in self.kernels)

    @model_validator(mode="after")
    def _check(self) -> MultiScaleBlock:
        bad = [f"kernels must be odd and 1 to 31, not {k}" for k in self.kernels if k % 2 == 0 or not 1 <= k <= 31]
        contradictions(bad if self.kernels else ["kernels is empty"])
        return self


class DoubleConvBlock(Spec):
    """Twice: conv, norm if any, activation (the plain U-Net, 1505.04597)."""

    ends: ClassVar[str] = "plain"
    resamples: ClassVar[bool] = False
    zero_init: ClassVar[bool] = False
    rescale: ClassVar[bool] = False
    kind: Literal["double_conv"] = "double_conv"
    norm: Literal["none", "batch", "group"] = "none"
    activation: Literal["relu", "silu"] = "relu"
    dropout: float = Field(0.0, ge=0, lt=1)
    groups: Count = 8
    eps: float = Field(1e-5, gt=0, lt=1)

    def groups_of(self, channels: int) -> int:
        """Number of groups at a width, where the norm has groups."""
        return self.groups if self.norm == "group" else 1

    def kernel_values(self, dims: int) -> int:
        """Values of a convolution's kernel for one input and one output channel."""
        return 3**dims


class MagnitudeBlock(Spec):
    """Magnitude-preserving residual block: normalised weights, no group norm, balanced sums (EDM2, 2312.02696)."""

    norm: ClassVar[str] = "none"
    ends: ClassVar[str] = "magnitude_preserving"
    resamples: ClassVar[bool] = True
    zero_init: ClassVar[bool] = False
    rescale: ClassVar[bool] = False
    kind: Literal["magnitude_preserving"] = "magnitude_preserving"
    dropout: float = Field(0.0, ge=0, lt=1)
    balance: Balance = 0.3
    clip: float = Field(256.0, gt=0, description="largest activation behind a block")

    def groups_of(self, channels: int) -> int:
        """One: there is no group norm."""
        return 1

    def kernel_values(self, dims: int) -> int:
        """Values of a convolution's kernel for one input and one output channel."""
        return 3**dims


class Heads(Spec):
    """Give the number of heads or the channels of one head."""

    heads: Count | None = None
    head_channels: Count | None = None

    @model_validator(mode="after")
    def _check(self) -> Heads:
        both = self.heads is not None and self.head_channels is not None
        contradictions(["give heads or head_channels, not both"] if both else [])
        return self

    def count(self, channels: int) -> int:
        """Number of heads for a width of `channels` (one head where neither option is given)."""
        return channels // self.head_channels if self.head_channels else (self.heads or 1)

    def problems(self, channels: int) -> list[str]:
        """What of these options does not divide a width."""
        options = {"head_channels": self.head_channels, "heads": self.heads}
        return [f"{name} = {value}" for name, value in options.items() if value and channels % value]


class SelfAttention(Heads):
    """Attention over all positions."""

    kind: Literal["self"] = "self"


class LinearAttention(Heads):
    """Attention whose cost grows with the positions, not with their square (1812.01243)."""

    kind: Literal["linear"] = "linear"


class CosineAttention(Heads):
    """Self-attention of normalised queries, keys and values in a balanced sum (EDM2, 2312.02696)."""

    kind: Literal["cosine"] = "cosine"
    balance: Balance = 0.3


class SpatialAttention(Spec):
    """sigmoid(conv(x)) x: one gate for each position."""

    kind: Literal["spatial"] = "spatial"
    kernel: Literal[1, 3, 5, 7] = 7

    def problems(self, channels: int) -> list[str]:
        """Every width will do."""
        return []


class ChannelAttention(Spec):
    """Squeeze and excite: one gate for each channel, from the mean over positions (1709.01507)."""

    kind: Literal["channel"] = "channel"
    reduction: Count = 8

    def problems(self, channels: int) -> list[str]:
        """Every width will do."""
        return []


BlockConfig = Annotated[
    Annotated[
        ResidualBlock | DilatedBlock | MultiScaleBlock | DoubleConvBlock | MagnitudeBlock, Field(discriminator="kind")
    ],
    by_name("residual"),
]
AttentionConfig = Annotated[
    Annotated[
        SelfAttention | LinearAttention | CosineAttention | SpatialAttention | ChannelAttention,
        Field(discriminator="kind"),
    ],
    by_name("self"),
]
