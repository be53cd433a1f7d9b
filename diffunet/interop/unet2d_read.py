"""The options of diffusers' UNet2DModel, read as a UNetConfig: one table a family of values.

An option that the tables do not hold is refused by its name, never dropped. Two private entries, which diffusers keeps
and does not read, say what its options cannot: `_diffunet_null_class` (the last row of the class table means "no
class") and `_diffunet_learned_variance` (the second half of the output is a variance).

Their types of levels come in two families. The blocks of the Skip types (NCSN++, 2011.13456) divide each sum by
sqrt(2), choose their own groups and stand beside pyramids of the image; the others do none of this. A network of both
has no counterpart here, where those are properties of the whole network. KDownBlock2D and KUpBlock2D (GELU, adaptive
norms) and the types of text-to-image networks are of neither family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffunet import spec
from diffunet.interop.options import Options, their_value

# values of their options: what we call them
CONDITIONS = {"default": "shift", "scale_shift": "scale_shift"}
PADS = {1: "symmetric", 0: "asymmetric"}
ORDERS = {False: "sin_cos", True: "cos_sin"}
SHIFTS = {0: 0, 1: 1}
CHOICES = {"conv": "conv", "resnet": "resnet"}

# options of theirs that our UNet has in these values only; to centre the sample is no change of the first convolution's
# weights, since its border stays zero
FIXED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "mid_block_type": ("UNetMidBlock2D",),
    "act_fn": ("silu", "swish"),
    "class_embed_type": (None,),
}
# what the Skip types hold fixed
FIR = spec.InBlock(taps=4, project=True)
PYRAMID = spec.SkipPyramid(taps=4)
IMAGE = 3
ATTENTION_GROUPS = 32


@dataclass(frozen=True)
class Way:
    """Their levels on the way down or up.

    Args:
        option: names the type of each level.
        choice: says the operator of the levels with attention.
        types: type -> whether it has attention, and its operator (None: what `choice` says).
    """

    option: str
    choice: str
    types: Mapping[str, tuple[bool, str | None]]

    def read(self, options: Options) -> list[tuple[bool, str]]:
        """Attention and operator of each level, in their order."""
        choice = options.ours(self.choice, CHOICES)
        # the first versions of diffusers wrote UNetResDownBlock2D, and it still reads that
        plain = [kind.removeprefix("UNetRes") if isinstance(kind, str) else kind for kind in options[self.option]]
        return [(attends, op or choice) for attends, op in (options.ours(self.option, self.types, k) for k in plain)]

    def write(self, attends: Sequence[bool], operators: Sequence[str]) -> dict[str, Any]:
        """Their options nearest to attention and operators of levels in their order; the last has no operator."""
        fir = operators[-1] == "fir"
        said = [(True, None) if here and not fir else (here, op) for here, op in zip(attends, operators, strict=True)]
        chosen = [op for here, op in zip(attends[:-1], operators[:-1], strict=True) if here and not fir]
        return {
            self.option: tuple(their_value(self.types, kind) for kind in said),
            self.choice: chosen[0] if chosen else "conv",
        }


DOWN = Way(
    "down_block_types",
    "downsample_type",
    {
        "DownBlock2D": (False, "conv"),
        "AttnDownBlock2D": (True, None),
        "ResnetDownsampleBlock2D": (False, "resnet"),
        "SkipDownBlock2D": (False, "fir"),
        "AttnSkipDownBlock2D": (True, "fir"),
    },
)
UP = Way(
    "up_block_types",
    "upsample_type",
    {
        "UpBlock2D": (False, "conv"),
        "AttnUpBlock2D": (True, None),
        "ResnetUpsampleBlock2D": (False, "resnet"),
        "SkipUpBlock2D": (False, "fir"),
        "AttnSkipUpBlock2D": (True, "fir"),
    },
)


@dataclass(frozen=True)
class Levels:
    """What their types of levels say: the levels with attention, the family, and the operators by name."""

    attended: tuple[int, ...]
    fir: bool
    downs: tuple[str, ...]
    ups: tuple[str, ...]


def read_levels(options: Options) -> Levels:
    """Levels with attention, which must be the same on the way down and up, and operators."""
    for name in (DOWN.option, UP.option):
        if len(options[name]) != (levels := len(options["block_out_channels"])):
            raise options.refusal(name, f"block_out_channels has {levels} levels")
    downs, ups = DOWN.read(options), UP.read(options)[::-1]
    if [attends for attends, _ in ups] != [attends for attends, _ in downs]:
        raise options.refusal("up_block_types", "down_block_types has attention on other levels")
    families = {operator == "fir" for _, operator in downs + ups}
    if len(families) > 1:
        raise options.refusal("down_block_types", "all levels must be of the Skip types, down and up, or none")
    attended = tuple(level for level, (attends, _) in enumerate(downs) if attends)
    return Levels(attended, True in families, tuple(op for _, op in downs[:-1]), tuple(op for _, op in ups[1:]))


def each(name: str, parts: Sequence[spec.Spec]) -> dict[str, Any]:
    """A part for all levels, or one for each where they differ."""
    return {name: parts[0]} if len(set(parts)) == 1 else {f"{name}s": tuple(parts)} if parts else {}


def read_operators(options: Options, levels: Levels) -> dict[str, Any]:
    """The operators between levels."""
    conv = spec.StridedConv(pad=options.ours("downsample_padding", PADS))
    down = {"conv": conv, "resnet": spec.InBlock(), "fir": FIR}
    up = {"conv": spec.NearestConv(), "resnet": spec.InBlock(), "fir": FIR}
    return each("down", [down[name] for name in levels.downs]) | each("up", [up[name] for name in levels.ups])


def read_heads(options: Options, widths: Collection[int]) -> spec.SelfAttention:
    """Their attention_head_dim is the channels of one head; None is one head at every width."""
    dim = options["attention_head_dim"]
    if dim is not None and (dim < 1 or any(width % dim for width in widths)):
        # diffusers rounds the number of heads down and so narrows the attention without a word
        raise options.refusal("attention_head_dim", f"it does not divide the attended widths {sorted(set(widths))}")
    return spec.SelfAttention(head_channels=dim)


def read_groups(options: Options, levels: Levels) -> dict[str, Any]:
    """Groups of the norms; the Skip types choose their own, with which those of mid and head must agree."""
    given, widths = options["norm_num_groups"], options["block_out_channels"]
    if not levels.fir:
        if given is None:
            raise options.refusal("norm_num_groups", "only the Skip types choose their own groups")
        return {"groups": given}
    block = spec.ResidualBlock(groups=ATTENTION_GROUPS, group_channels=4)
    for width in (widths[0], widths[-1]):
        if given not in (None, groups := block.groups_of(width)):
            raise options.refusal("norm_num_groups", f"the Skip types have {groups} at {width} channels")
    for width in (widths[level] for level in levels.attended):
        if (groups := block.groups_of(width)) != ATTENTION_GROUPS:
            why = f"at {width} channels the attention has {ATTENTION_GROUPS} groups, the blocks beside it {groups}"
            raise options.refusal("down_block_types", why)
    return {"groups": block.groups, "group_channels": block.group_channels}


def read_block(options: Options, levels: Levels) -> spec.ResidualBlock:
    """Condition, dropout, norms, and what each sum is divided by."""
    factor = math.sqrt(2) if levels.fir else 1
    if not math.isclose(options["mid_block_scale_factor"], factor, rel_tol=1e-6):
        raise options.refusal("mid_block_scale_factor", f"the blocks of these down_block_types have {factor:.6g}")
    return spec.ResidualBlock(
        condition=options.ours("resnet_time_scale_shift", CONDITIONS),
        dropout=options["dropout"],
        eps=options["norm_eps"],
        rescale=levels.fir,
        **read_groups(options, levels),
    )


def read_mid(options: Options, block: spec.ResidualBlock) -> dict[str, Any]:
    """The attention in mid. Where nothing is said it has the norm of the blocks, or none if they scale and shift."""
    wanted = block.groups_of(options["block_out_channels"][-1])
    norm = options["attn_norm_num_groups"] or (wanted if block.condition == "shift" else None)
    if options["add_attention"] and norm not in (None, wanted):
        raise options.refusal("attn_norm_num_groups", f"the norm of mid has {wanted} groups, like all others")
    return {"attention_in_mid": options["add_attention"], "mid_attention_norm": norm is not None}


def positional(options: Options, width: int) -> spec.SinusoidalTime:
    """Sinusoids, the order of sines and cosines, and the shift of the frequencies."""
    order, shift = options.ours("flip_sin_to_cos", ORDERS), options.ours("freq_shift", SHIFTS)
    return spec.SinusoidalTime(order=order, shift=shift, width=width)


def fourier(options: Options, width: int) -> spec.FourierTime:
    """Random frequencies of log t, fixed."""
    return spec.FourierTime(log=True, features=2, width=width)


def learned(options: Options, width: int) -> spec.LearnedTime:
    """A row for each index."""
    return spec.LearnedTime(steps=options["num_train_timesteps"], width=width)


TIMES: dict[str, Callable[[Options, int], spec.TimeConfig]] = {
    "positional": positional,
    "fourier": fourier,
    "learned": learned,
}


def read_time(options: Options) -> spec.TimeConfig:
    """What is told of the time, and the width of the embedding."""
    base = options["block_out_channels"][0]
    channels = options["time_embedding_dim"] or 4 * base
    if channels % base:
        raise options.refusal("time_embedding_dim", f"it must be a multiple of block_out_channels[0] = {base}")
    return options.ours("time_embedding_type", TIMES)(options, channels // base)


def read_ends(options: Options, levels: Levels) -> dict[str, Any]:
    """Image in and out, and the pyramids beside the levels."""
    variance = bool(options.get("_diffunet_learned_variance", False))
    channels = {"in_channels": options["in_channels"], "out_channels": options["out_channels"]}
    pyramids = {"input_pyramid": PYRAMID, "output_pyramid": PYRAMID} if levels.fir and levels.downs else {}
    for name in channels:
        if pyramids and channels[name] != IMAGE:
            raise options.refusal(name, f"the pyramids of the Skip types have {IMAGE} channels")
    if variance and channels["out_channels"] % 2:
        raise options.refusal("out_channels", "half of them must be a learned variance")
    channels["out_channels"] //= 1 + variance
    return channels | {"learned_variance": variance} | pyramids


def to_config(options: Options) -> spec.UNetConfig:
    """The UNetConfig of a UNet2DModel's options.

    Raises:
        ConfigError: an option that a UNet cannot say, by its name and value.
    """
    with options.reading():
        if options.unknown:
            raise options.refusal(options.unknown[0], "this version of diffusers does not know it either")
        options.check(FIXED)
        widths, levels = tuple(options["block_out_channels"]), read_levels(options)
        block, time = read_block(options, levels), read_time(options)
        attended = [widths[level] for level in levels.attended] + ([widths[-1]] if options["add_attention"] else [])
        rows, null = options["num_class_embeds"], options.get("_diffunet_null_class", False)
        return spec.UNetConfig(
            base_channels=widths[0],
            channels=widths,
            blocks_per_level=options["layers_per_block"],
            attention_levels=levels.attended,
            # the Skip types attend once, behind the last block of the way up
            attention_up="last" if levels.fir else "every",
            num_classes=None if rows is None else rows - null,
            null_class=null,
            time=time,
            # their networks of random frequencies are told sigma itself and guess the score
            divide_by_time=isinstance(time, spec.FourierTime),
            block=block,
            attention=read_heads(options, attended),
            **read_ends(options, levels),
            **read_mid(options, block),
            **read_operators(options, levels),
        )
