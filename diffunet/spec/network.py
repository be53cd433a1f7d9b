"""The networks: what their parts are and how they are put together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Strict, model_validator

from diffunet.spec.base import ByName, Ints, IntTuple, Spec, contradictions, listed
from diffunet.spec.blocks import AttentionConfig, BlockConfig, DoubleConvBlock, ResidualBlock, SelfAttention
from diffunet.spec.embeddings import ClassConfig, ClassTable, NoTime, SinusoidalTime, TimeConfig
from diffunet.spec.levels import (
    ConcatSkip,
    CropSkip,
    DownConfig,
    InputPyramidConfig,
    MaxPool,
    NearestConv,
    OutputPyramidConfig,
    SkipConfig,
    StridedConv,
    TransposedConv,
    UpConfig,
)

# float32 weights that no single device holds beside their gradients, moments and average
MAX_BYTES = 64 * 2**30
MAX_LEVELS = 12
Width = Annotated[int, Field(ge=1, le=16384)]
Channels = Annotated[int, Field(ge=1, le=4096)]
PaddingMode = Literal["zeros", "reflect", "circular"]
Widths = Annotated[tuple[Annotated[int, Field(le=2**30)], ...], Strict(False), BeforeValidator(listed)]
PER_LEVEL = "of each level, in place of"


def too_large(parameters: int, keys: str) -> list[str]:
    """The contradiction of a network with at least so many parameters: found by arithmetic, before any allocation."""
    need = 4 * parameters
    if need <= MAX_BYTES:
        return []
    return [f"the weights would need {need / 1e9:,.0f} GB, at most {MAX_BYTES / 1e9:.0f} are allowed; lower {keys}"]


class UNetConfig(Spec):
    """The U-Net in the DDPM topology. Level 0 is full resolution; each next level halves every side."""

    kind: Literal["unet"] = "unet"
    dims: Literal[1, 2, 3] = 2
    in_channels: Channels = 3
    out_channels: Channels = 3
    cond_channels: int = Field(0, ge=0, le=4096, description="channels of an image condition, joined to the input")
    self_conditioning: bool = Field(False, description="the previous estimate is joined to the input (2208.04202)")
    learned_variance: bool = Field(False, description="as many output channels more: the variance (2102.09672)")
    base_channels: Width = 128
    channel_multipliers: Widths = Field((1, 2, 2, 2), min_length=1, max_length=MAX_LEVELS)
    channels: Widths | None = Field(
        None, min_length=1, max_length=MAX_LEVELS, description=f"width {PER_LEVEL} base x multipliers"
    )
    stem_channels: Width | Literal["first_level"] | None = Field(
        None, description="width of the first convolution: a number, or that of the first level; base_channels if unset"
    )
    blocks_per_level: int | IntTuple = 2
    attention_levels: Ints = (1,)
    attention_up: Literal["every", "last"] = Field("every", description="attention behind which blocks of the way up")
    attention_in_mid: bool = True
    mid_attention_norm: bool = True
    num_classes: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    null_class: bool = Field(False, description="one more class: 'no class'")
    vector_channels: int = Field(0, ge=0, le=65536, description="length of a continuous condition, beside the time")
    padding: PaddingMode = "zeros"
    divide_by_time: bool = Field(False, description="the output is divided by t: score networks told sigma itself")
    uncertainty_channels: int = Field(0, ge=0, le=4096, description="features of a learned log variance u(t) (EDM2)")
    checkpoint_levels: Ints = Field((), description="levels whose activations are recomputed in the backward pass")
    time: TimeConfig = SinusoidalTime()
    class_embedding: ClassConfig = ClassTable()
    block: BlockConfig = ResidualBlock()
    attention: AttentionConfig = SelfAttention()
    down: DownConfig = StridedConv()
    up: UpConfig = NearestConv()
    skip: SkipConfig = ConcatSkip()
    attentions: tuple[AttentionConfig, ...] | None = Field(None, strict=False, description=f"{PER_LEVEL} attention")
    downs: tuple[DownConfig, ...] | None = Field(None, strict=False, description=f"below {PER_LEVEL} down")
    ups: tuple[UpConfig, ...] | None = Field(None, strict=False, description=f"below {PER_LEVEL} up")
    input_pyramid: InputPyramidConfig | None = None
    output_pyramid: OutputPyramidConfig | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return self.channels or tuple(self.base_channels * m for m in self.channel_multipliers)

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each level on the way down (one more on the way up)."""
        blocks = self.blocks_per_level
        return (blocks,) * len(self.widths) if isinstance(blocks, int) else blocks

    @property
    def stem_width(self) -> int:
        """Channels behind the first convolution."""
        return self.widths[0] if self.stem_channels == "first_level" else self.stem_channels or self.base_channels

    @property
    def head_channels(self) -> int:
        """Channels of the output, the variance included."""
        return self.out_channels * (2 if self.learned_variance else 1)

    @property
    def embed_channels(self) -> int:
        """Channels of the embedding that the blocks are told; 0 where there is nothing to tell."""
        if isinstance(self.time, NoTime) and self.num_classes is None:
            return 0
        return self.time.width * self.base_channels if self.time.width else max(self.widths)

    def attention_at(self, level: int) -> AttentionConfig:
        """The attention of a level."""
        return self.attentions[level] if self.attentions else self.attention

    def down_at(self, level: int) -> DownConfig:
        """The operator from a level to the one below."""
        return self.downs[level] if self.downs else self.down

    def up_at(self, level: int) -> UpConfig:
        """The operator to a level from the one below."""
        return self.ups[level] if self.ups else self.up

    @property
    def _made(self) -> str:
        """The keys that the widths come from."""
        return "channels" if self.channels else "base_channels x channel_multipliers"

    @model_validator(mode="after")
    def _check(self) -> UNetConfig:
        # widths and operators can be looked up only where the lists fit the levels
        bad = self._shape_contradictions() or [*self._width_contradictions(), *self._operator_contradictions()]
        bad += self._condition_contradictions()
        sizes = f"{self._made}, blocks_per_level or num_classes"
        contradictions(bad or too_large(self._least_parameters(), sizes))
        return self

    def _shape_contradictions(self) -> list[str]:
        """Lists that do not fit the number of levels."""
        levels, made = len(self.widths), self._made
        bad = [f"{made}: a width must be at least 1, not {w}" for w in self.widths if w < 1]
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
        for name, wanted in {"attentions": levels, "downs": levels - 1, "ups": levels - 1}.items():
            given = getattr(self, name)
            if given is not None and len(given) != wanted:
                bad.append(f"{name} names {len(given)} parts but {levels} levels ({made}) have {wanted}")
        rates = getattr(self.block, "rates", None)
        if rates and (len(rates) != levels or min(rates) < 1):
            bad.append(f"block.rates must be {levels} whole numbers ({made}) of at least 1, not {list(rates)}")
        return bad

    def _width_contradictions(self) -> list[str]:
        """Widths that groups or heads do not divide."""
        made, bad = self._made, []
        keys = dict.fromkeys(self.widths, made)
        keys.setdefault(self.stem_width, "stem_channels" if self.stem_channels else "base_channels")
        for width in sorted(keys):
            groups = self.block.groups_of(width)
            if width % groups:
                bad.append(f"a width of {width} channels is not divisible by block.groups = {groups} ({keys[width]})")
        attended = set(self.attention_levels)
        if self.attention_in_mid:
            attended.add(len(self.widths) - 1)
        for level in sorted(attended):
            width, key = self.widths[level], f"attentions.{level}" if self.attentions else "attention"
            for option in self.attention_at(level).problems(width):
                bad.append(f"a width of {width} channels is not divisible by {key}.{option} ({made})")
        return list(dict.fromkeys(bad))

    def _operator_contradictions(self) -> list[str]:
        bad = []
        for level in range(len(self.widths) - 1):
            down, up = self.down_at(level).kind, self.up_at(level).kind
            if (down == "none") != (up == "none"):
                bad.append(f"down = '{down}' and up = '{up}': where one is 'none' the other must be")
            if "in_block" in (down, up) and not self.block.resamples:
                bad.append(
                    f"down = '{down}' and up = '{up}': 'in_block' needs a block that resamples, "
                    f"which block = '{self.block.kind}' does not"
                )
            if down == "none":
                pyramids = [name for name in ("input_pyramid", "output_pyramid") if getattr(self, name)]
                bad += [f"{name} needs a down operator between all levels, but down = 'none'" for name in pyramids]
        return list(dict.fromkeys(bad))

    def _condition_contradictions(self) -> list[str]:
        bad, needs = [], f"needs a time embedding with an MLP, which time = '{self.time.kind}' has not"
        if self.checkpoint_levels and self.block.norm == "batch":
            bad.append("checkpoint_levels with block.norm = 'batch' would count each batch twice; use norm = 'group'")
        if self.null_class and self.num_classes is None:
            bad.append("null_class needs num_classes")
        if not self.time.mlp and self.vector_channels:
            bad.append(f"vector_channels {needs}")
        if not self.time.mlp and self.num_classes and self.class_embedding.before_mlp:
            bad.append(f"class_embedding = '{self.class_embedding.kind}' {needs}")
        if isinstance(self.time, NoTime) and self.divide_by_time:
            bad.append("divide_by_time needs a time, but time = 'none'")
        return bad

    def _least_parameters(self) -> int:
        """A lower bound: the convolutions from a level's own width to its own width, and what holds the classes."""
        squares = 4 * self.widths[-1] ** 2  # mid
        for level, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            # two a block, the first of all comes from another width; on the way up count only the second, and one
            # block more where an operator, or at the top the stem, has left a skip too
            arrives = level == 0 or self.down_at(level - 1).kind != "none"
            squares += (3 * depth - 1 + arrives) * width**2
        row = self.base_channels if self.class_embedding.before_mlp else self.embed_channels
        return squares * self.block.kernel_values(self.dims) + (self.num_classes or 0) * row


class ClassicUNetConfig(Spec):
    """The segmentation U-Net of 2015 (1505.04597): one skip per level, two convolutions a level.

    `valid` convolutions lose a border of one at each, as in the paper (572 in, 388 out); `same` keep the size.
    """

    kind: Literal["classic"] = "classic"
    dims: Literal[1, 2, 3] = 2
    in_channels: Channels = 1
    out_channels: Channels = 2
    base_channels: Width = 64
    levels: Annotated[int, Field(ge=1, le=MAX_LEVELS)] = 5
    channels: Widths | None = Field(
        None, min_length=1, max_length=MAX_LEVELS, description=f"width {PER_LEVEL} base x 1, 2, 4, ..."
    )
    padding: Literal["valid", "same"] = "valid"
    padding_mode: PaddingMode = "zeros"
    block: Annotated[DoubleConvBlock, ByName] = DoubleConvBlock()
    down: DownConfig = MaxPool()
    up: UpConfig = TransposedConv()
    skip: SkipConfig = CropSkip()
    time: TimeConfig = NoTime()

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return self.channels or tuple(self.base_channels * 2**level for level in range(self.levels))

    @property
    def embed_channels(self) -> int:
        """Channels of the time embedding; 0 where the network is not told the time."""
        if isinstance(self.time, NoTime):
            return 0
        return self.time.width * self.base_channels if self.time.width else max(self.widths)

    @model_validator(mode="after")
    def _check(self) -> ClassicUNetConfig:
        made = "channels" if self.channels else "base_channels or levels"
        bad = [f"{made}: a width must be at least 1, not {w}" for w in self.widths if w < 1]
        groups = {w: self.block.groups_of(w) for w in self.widths}
        bad += [f"a width of {w} is not divisible by block.groups = {n} ({made})" for w, n in groups.items() if w % n]
        for name in ("down", "up"):
            if (kind := getattr(self, name).kind) in ("in_block", "none"):
                bad.append(f"{name} = '{kind}' is for 'unet' networks; the classic one pools and lifts by operators")
        # the second convolution of each level; the way up has more
        contradictions(bad or too_large(sum(w * w * 3**self.dims for w in self.widths), made))
        return self


NetworkConfig = Annotated[UNetConfig | ClassicUNetConfig, Field(discriminator="kind")]
