"""The networks and their parts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Strict, model_validator

from diffunet.spec.base import ByName, Count, Ints, IntTuple, Spec, contradictions, listed

# float32 weights that no single device holds beside their gradients, moments and average
MAX_BYTES = 64 * 2**30
Widths = Annotated[tuple[Annotated[int, Field(le=2**30)], ...], Strict(False), BeforeValidator(listed)]


def too_large(parameters: int, keys: str) -> list[str]:
    """The contradiction of a network with at least so many parameters: found by arithmetic, before any allocation."""
    need = 4 * parameters
    if need <= MAX_BYTES:
        return []
    return [f"the weights would need {need / 1e9:,.0f} GB, at most {MAX_BYTES / 1e9:.0f} are allowed; lower {keys}"]


class SinusoidalTime(Spec):
    """Sinusoids of the time, then a two-layer MLP.

    `order` and `shift` decide which project's weights fit: sin_cos with shift 1 is DDPM's
    (10000^(-i/(half-1))), cos_sin with shift 0 is ADM's (10000^(-i/half)).
    """

    kind: Literal["sinusoidal"] = "sinusoidal"
    order: Literal["sin_cos", "cos_sin"] = "sin_cos"
    shift: Literal[0, 1] = 1
    width: int = Field(4, ge=1, le=64, description="embedding channels = width x base channels")


class ResidualBlock(Spec):
    """norm, SiLU, conv, condition, norm, SiLU, dropout, conv, plus the input."""

    kind: Literal["residual"] = "residual"
    condition: Literal["shift", "scale_shift"] = "shift"
    dropout: float = Field(0.0, ge=0, lt=1)
    groups: Count = 32
    eps: float = Field(1e-6, gt=0, lt=1)
    zero_init: bool = True


class SelfAttention(Spec):
    """Attention over all positions; give the number of heads or the channels of one head."""

    kind: Literal["self"] = "self"
    heads: Count | None = None
    head_channels: Count | None = None

    @model_validator(mode="after")
    def _check(self) -> SelfAttention:
        both = self.heads is not None and self.head_channels is not None
        contradictions(["give heads or head_channels, not both"] if both else [])
        return self

    def count(self, channels: int) -> int:
        """Number of heads for a width of `channels` (one head where neither option is given)."""
        return channels // self.head_channels if self.head_channels else (self.heads or 1)


class StridedConv(Spec):
    """3x3 convolution of stride 2; asymmetric pads right and bottom only (TensorFlow's SAME)."""

    kind: Literal["strided_conv"] = "strided_conv"
    pad: Literal["symmetric", "asymmetric"] = "symmetric"


class NearestConv(Spec):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    kind: Literal["nearest_conv"] = "nearest_conv"


class ConcatSkip(Spec):
    """The skip's channels stand behind the decoder's."""

    kind: Literal["concat"] = "concat"


TimeConfig = Annotated[SinusoidalTime, ByName]
BlockConfig = Annotated[ResidualBlock, ByName]
AttentionConfig = Annotated[SelfAttention, ByName]
DownConfig = Annotated[StridedConv, ByName]
UpConfig = Annotated[NearestConv, ByName]
SkipConfig = Annotated[ConcatSkip, ByName]


class UNetConfig(Spec):
    """The U-Net in the DDPM topology. Level 0 is full resolution; each next level halves every side."""

    kind: Literal["unet"] = "unet"
    dims: Literal[1, 2, 3] = 2
    in_channels: int = Field(3, ge=1, le=4096)
    out_channels: int = Field(3, ge=1, le=4096)
    cond_channels: int = Field(0, ge=0, le=4096, description="channels of an image condition, joined to the input")
    base_channels: int = Field(128, ge=1, le=16384)
    channel_multipliers: Widths = Field((1, 2, 2, 2), min_length=1, max_length=12)
    channels: Widths | None = Field(
        None, min_length=1, max_length=12, description="width of each level, in place of base x multipliers"
    )
    blocks_per_level: int | IntTuple = 2
    attention_levels: Ints = (1,)
    attention_in_mid: bool = True
    num_classes: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    null_class: bool = Field(False, description="one more row in the class table: 'no class'")
    checkpoint_levels: Ints = Field((), description="levels whose activations are recomputed in the backward pass")
    time: TimeConfig = SinusoidalTime()
    block: BlockConfig = ResidualBlock()
    attention: AttentionConfig = SelfAttention()
    down: DownConfig = StridedConv()
    up: UpConfig = NearestConv()
    skip: SkipConfig = ConcatSkip()

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return self.channels or tuple(self.base_channels * m for m in self.channel_multipliers)

    @property
    def _made(self) -> str:
        """The keys that the widths come from."""
        return "channels" if self.channels else "base_channels x channel_multipliers"

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each level on the way down (one more on the way up)."""
        blocks = self.blocks_per_level
        return (blocks,) * len(self.widths) if isinstance(blocks, int) else blocks

    @model_validator(mode="after")
    def _check(self) -> UNetConfig:
        widths, levels, made = self.widths, len(self.widths), self._made
        bad = [f"{made}: a width must be at least 1, not {w}" for w in widths if w < 1]
        if len(self.depths) != levels:
            bad.append(f"blocks_per_level names {len(self.depths)} levels but there are {levels} ({made})")
        if any(not 1 <= d <= 64 for d in self.depths):
            bad.append(f"blocks_per_level must be 1 to 64, not {self.blocks_per_level}")
        for name in ("attention_levels", "checkpoint_levels"):
            bad += [
                f"{name} holds {i} but the levels are 0 to {levels - 1} ({made})"
                for i in getattr(self, name)
                if not 0 <= i < levels
            ]
        groups = self.block.groups
        for width in sorted({w for w in (*widths, self.base_channels) if w >= 1 and w % groups}):
            bad.append(f"a width of {width} channels is not divisible by block.groups = {groups} ({made})")
        bad += self._attention_contradictions()
        if self.null_class and self.num_classes is None:
            bad.append("null_class needs num_classes")
        sizes = f"{made}, blocks_per_level or num_classes"
        contradictions(bad or too_large(self._least_parameters(), sizes))
        return self

    def _least_parameters(self) -> int:
        """A lower bound: of each level the convolutions from its own width to its own width, and the class table."""
        # two a block, d blocks down and d + 1 up; the first of all comes from another width
        squares = sum((4 * d + 1) * w**2 for w, d in zip(self.widths, self.depths, strict=True))
        return squares * 3**self.dims + (self.num_classes or 0) * self.time.width * self.base_channels

    def _attention_contradictions(self) -> list[str]:
        made, levels = self._made, {i for i in self.attention_levels if 0 <= i < len(self.widths)}
        if self.attention_in_mid:
            levels.add(len(self.widths) - 1)
        bad = []
        for width in sorted({self.widths[i] for i in levels}):
            per, heads = self.attention.head_channels, self.attention.heads
            if per and width % per:
                bad.append(f"a width of {width} channels is not divisible by attention.head_channels = {per} ({made})")
            if heads and width % heads:
                bad.append(f"a width of {width} channels is not divisible by attention.heads = {heads} ({made})")
        return bad


class ClassicUNetConfig(Spec):
    """The segmentation U-Net of 2015 (1505.04597): one skip per level, ReLU, max-pool, no time.

    `valid` convolutions lose a border of one at each, as in the paper (572 in, 388 out); `same` keep the size.
    """

    kind: Literal["classic"] = "classic"
    dims: Literal[1, 2, 3] = 2
    in_channels: int = Field(1, ge=1, le=4096)
    out_channels: int = Field(2, ge=1, le=4096)
    base_channels: int = Field(64, ge=1, le=16384)
    levels: Annotated[int, Field(ge=1, le=12)] = 5
    padding: Literal["valid", "same"] = "valid"

    @model_validator(mode="after")
    def _check(self) -> ClassicUNetConfig:
        widths = [self.base_channels * 2**level for level in range(self.levels)]
        # two convolutions on the way down, the first from half the width; the way up has more
        contradictions(too_large(sum(w * w * 3**self.dims for w in widths), "base_channels or levels"))
        return self


NetworkConfig = Annotated[UNetConfig | ClassicUNetConfig, Field(discriminator="kind")]
