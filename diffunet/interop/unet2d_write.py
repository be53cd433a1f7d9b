"""A UNetConfig, written as the options of diffusers' UNet2DModel.

The nearest options are written and read back: what did not survive is what UNet2DModel cannot say, and is refused by
its name, never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

from diffunet import compat, spec
from diffunet.errors import ConfigError
from diffunet.interop.options import Options, their_value
from diffunet.interop.unet2d_read import CONDITIONS, DOWN, FIR, ORDERS, PADS, UP, to_config

# parts of ours that their options can say, by kind
KINDS: dict[str, tuple[str, ...]] = {
    "time": ("sinusoidal", "fourier", "learned"),
    "class_embedding": ("table",),
    "block": ("residual",),
    "attention": ("self",),
    "down": ("strided_conv", "in_block"),
    "up": ("nearest_conv", "in_block"),
    "skip": ("concat",),
}
# their names of our operators, where blocks choose none of their own
OPERATORS = {"strided_conv": "conv", "nearest_conv": "conv", "in_block": "resnet"}
# options of ours that change how one trains and starts, not what the network computes, or that are said otherwise
UNSAID = {"checkpoint_levels", "channel_multipliers", "block.zero_init", "block.group_channels"}
UNSAID |= {"time.scale", "time.trained"}
PER_LEVEL = {"attention", "attentions", "down", "downs", "up", "ups"}
# what is said of the time
TIMES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "sinusoidal": lambda time: {
        "time_embedding_type": "positional",
        "flip_sin_to_cos": their_value(ORDERS, time.order),
        "freq_shift": time.shift,
    },
    "fourier": lambda time: {"time_embedding_type": "fourier"},
    "learned": lambda time: {"time_embedding_type": "learned", "num_train_timesteps": time.steps},
}


def attended_levels(config: spec.UNetConfig) -> list[int]:
    """Levels with attention, the last one also where only mid has it."""
    return sorted({*config.attention_levels, *([len(config.widths) - 1] if config.attention_in_mid else [])})


def head_counts(config: spec.UNetConfig) -> dict[int, int]:
    """Attended level -> number of heads."""
    parts = {level: cast(spec.SelfAttention, config.attention_at(level)) for level in attended_levels(config)}
    return {level: part.count(config.widths[level]) for level, part in parts.items()}


def essence(config: spec.UNetConfig) -> dict[str, Any]:
    """What decides the function of a network, and dropout, by dotted names, with equal ways to say it made the same."""
    flat: dict[str, Any] = {}
    for name, value in config.model_dump(exclude=PER_LEVEL).items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    widths, above = config.widths, range(len(config.widths) - 1)
    norms = {*widths, *(a + b for a in widths for b in widths)}  # the skips stand beside what comes from below
    said = {name: value for name, value in flat.items() if name not in UNSAID}
    return said | {
        "channels": widths,
        "stem_channels": config.stem_width,
        "blocks_per_level": config.depths,
        "attention_levels": sorted(set(config.attention_levels)),
        # of what is not there nothing is said
        "attention_up": config.attention_up if config.attention_levels else None,
        "mid_attention_norm": config.mid_attention_norm or not config.attention_in_mid,
        "class_embedding.kind": config.class_embedding.kind if config.num_classes else None,
        "block.groups": {width: config.block.groups_of(width) for width in sorted(norms)},
        "attention.heads": head_counts(config),
        "down": [config.down_at(level).model_dump() for level in above],
        "up": [config.up_at(level).model_dump() for level in above],
    }


def other_kinds(config: spec.UNetConfig) -> list[str]:
    """Parts of other kinds than theirs."""
    above = range(len(config.widths) - 1)
    parts: list[tuple[str, Any]] = [("time", config.time), ("block", config.block), ("skip", config.skip)]
    parts += [("class_embedding", config.class_embedding)] if config.num_classes else []
    parts += [("attention", config.attention_at(level)) for level in attended_levels(config)]
    parts += [("down", config.down_at(level)) for level in above] + [("up", config.up_at(level)) for level in above]
    return list(dict.fromkeys(f"{name} = '{part.kind}'" for name, part in parts if part.kind not in KINDS[name]))


def write_heads(config: spec.UNetConfig) -> int | None:
    """Channels of one head, or None for one head at every width."""
    counts, widths = head_counts(config), {level: config.widths[level] for level in attended_levels(config)}
    sizes = {width // counts[level] for level, width in widths.items()}
    if set(counts.values()) <= {1}:
        return None
    if len(sizes) > 1:
        raise ConfigError(
            f"diffusers cannot say attention.heads = {[*counts.values()]} at the widths {[*widths.values()]}: "
            "its heads have one size everywhere; use attention.head_channels"
        )
    return sizes.pop()


def is_skip_family(config: spec.UNetConfig) -> bool:
    """Whether the Skip types come nearest."""
    above = range(len(config.widths) - 1)
    operators = {config.down_at(level) for level in above} | {config.up_at(level) for level in above}
    return config.block.rescale and operators <= {FIR}


def write_levels(config: spec.UNetConfig, fir: bool) -> dict[str, Any]:
    """Types of levels, and their operators."""
    levels = range(len(config.widths))
    attends = [level in config.attention_levels for level in levels]
    downs = [config.down_at(level) for level in levels[:-1]]
    ups = [config.up_at(level) for level in levels[:-1]]
    pads = [part.pad for part in downs if isinstance(part, spec.StridedConv)]

    def named(parts: list[Any]) -> list[str]:
        # at the end of a way nothing follows, and the name says only the family
        return ["fir"] * len(levels) if fir else [*(OPERATORS[part.kind] for part in parts), "conv"]

    return {
        **DOWN.write(attends, named(downs)),
        **UP.write(attends[::-1], named(ups[::-1])),
        "downsample_padding": their_value(PADS, pads[0]) if pads else 1,
    }


def write_options(config: spec.UNetConfig) -> dict[str, Any]:
    """The UNet2DModel options nearest to a UNetConfig; what they miss shows on the way back."""
    time, block = cast(spec.SinusoidalTime, config.time), cast(spec.ResidualBlock, config.block)
    if getattr(time, "shift", 0) and config.base_channels in (2, 3):
        raise ConfigError(f"diffusers divides by zero in time.shift = 1 with base_channels = {config.base_channels}")
    fir = is_skip_family(config)
    mid_groups = block.groups_of(config.widths[-1]) if config.mid_attention_norm else None
    return {
        "in_channels": config.in_channels,
        "out_channels": config.head_channels,
        "block_out_channels": config.widths,
        "layers_per_block": config.depths[0],
        "add_attention": config.attention_in_mid,
        "attention_head_dim": write_heads(config),
        "time_embedding_dim": time.width * config.widths[0],
        "resnet_time_scale_shift": their_value(CONDITIONS, block.condition),
        "dropout": block.dropout,
        "norm_num_groups": None if fir else block.groups,
        # left to itself diffusers drops this norm where the condition is scale_shift
        "attn_norm_num_groups": mid_groups,
        "norm_eps": block.eps,
        "mid_block_scale_factor": math.sqrt(2) if fir else 1,
        "num_class_embeds": None if config.num_classes is None else config.num_classes + config.null_class,
        **({"_diffunet_null_class": True} if config.null_class else {}),
        **({"_diffunet_learned_variance": True} if config.learned_variance else {}),
        **TIMES[time.kind](time),
        **write_levels(config, fir),
    }


def to_options(config: spec.UNetConfig) -> dict[str, Any]:
    """The options of the UNet2DModel that computes the same.

    Raises:
        ConfigError: there is none; the message names our options that diffusers cannot say.
    """
    if kinds := other_kinds(config):
        raise ConfigError(f"diffusers' UNet2DModel cannot say {', '.join(kinds)}")
    options = write_options(config)
    try:
        back = essence(to_config(Options(options, compat.diffusers().UNet2DModel, "the nearest one")))
    except ConfigError as error:
        raise ConfigError(f"diffusers' UNet2DModel cannot say this network: {error}") from None
    lost = [f"{name} = {value}" for name, value in essence(config).items() if back.get(name) != value]
    if lost:
        raise ConfigError(f"diffusers' UNet2DModel cannot say {', '.join(lost)}")
    return options
