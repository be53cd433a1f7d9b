"""Our UNet as diffusers' UNet2DModel and back, with exact weights: one table of options, one table of names.

What the other side cannot say is refused by its name, never dropped: an option of ours that does not survive the way
there and back, an option of theirs that the tables below do not hold. One private entry, which diffusers keeps and does
not read, says what its options cannot: `_diffunet_null_class` (the last row of the class table means "no class").
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from diffunet import compat, spec
from diffunet.errors import CheckpointError, ConfigError
from diffunet.interop.options import Options, their_value
from diffunet.nn import UNet
from diffunet.weights import load_exactly

# values of their options: what we call them
CONDITIONS = {"default": "shift", "scale_shift": "scale_shift"}
PADS = {1: "symmetric", 0: "asymmetric"}
ORDERS = {False: "sin_cos", True: "cos_sin"}
SHIFTS = {0: 0, 1: 1}
DOWN_ATTENDS = {"DownBlock2D": False, "AttnDownBlock2D": True}
UP_ATTENDS = {"UpBlock2D": False, "AttnUpBlock2D": True}

# options of theirs that our UNet has in these values only
FIXED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "class_embed_type": (None,),
}
# parts of ours whose options their tables can say
PARTS: dict[str, type[spec.Spec]] = {
    "time": spec.SinusoidalTime,
    "block": spec.ResidualBlock,
    "attention": spec.SelfAttention,
    "down": spec.StridedConv,
    "up": spec.NearestConv,
    "skip": spec.ConcatSkip,
}
# options of ours that change how one trains and starts, not what the network computes
UNSAID = {"checkpoint_levels", "block.zero_init"}

# our name of a weight becomes theirs by these substitutions, one after the other
RENAMES = (
    (r"^conditioning\.time\.mlp_in\.", "time_embedding.linear_1."),
    (r"^conditioning\.time\.mlp_out\.", "time_embedding.linear_2."),
    (r"^conditioning\.classes\.", "class_embedding."),
    (r"^(down|up)\.(\d+)\.blocks\.(\d+)\.(?:body\.)?parts\.0\.", r"\1_blocks.\2.resnets.\3."),
    (r"^(down|up)\.(\d+)\.blocks\.(\d+)\.(?:body\.)?parts\.1\.", r"\1_blocks.\2.attentions.\3."),
    (r"^(down|up)\.(\d+)\.resample\.", r"\1_blocks.\2.\1samplers.0."),
    (r"^mid\.parts\.0\.", "mid_block.resnets.0."),
    (r"^mid\.parts\.1\.(?=(?:norm|qkv|out)\.)", "mid_block.attentions.0."),
    (r"^mid\.parts\.[12]\.", "mid_block.resnets.1."),
    (r"(?<=\.)norm_in\.", "norm1."),
    (r"(?<=\.)conv_in\.", "conv1."),
    (r"(?<=\.)embed\.", "time_emb_proj."),
    (r"(?<=\.)norm_out\.", "norm2."),
    (r"(?<=\.)conv_out\.", "conv2."),
    (r"(?<=\.)shortcut\.", "conv_shortcut."),
    (r"(?<=\.)norm\.", "group_norm."),
    (r"(?<=\.)out\.", "to_out.0."),
    (r"^stem\.", "conv_in."),
    (r"^norm\.", "conv_norm_out."),
    (r"^head\.", "conv_out."),
)


def their_names(name: str) -> tuple[str, ...]:
    """Names in diffusers of one weight of ours; our fused qkv is three of theirs, one above the other."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return tuple(name.replace(".qkv.", f".to_{part}.") for part in "qkv") if ".qkv." in name else (name,)


def read_heads(options: Options, widths: Collection[int]) -> spec.SelfAttention:
    """Their attention_head_dim is the channels of one head; None is one head at every width."""
    dim = options["attention_head_dim"]
    if dim is not None and (dim < 1 or any(width % dim for width in widths)):
        # diffusers rounds the number of heads down and so narrows the attention without a word
        raise options.refusal("attention_head_dim", f"it does not divide the attended widths {sorted(set(widths))}")
    return spec.SelfAttention(head_channels=dim)


def read_levels(options: Options) -> tuple[int, ...]:
    """Levels with attention, which must be the same on the way down and up."""
    downs = [options.ours("down_block_types", DOWN_ATTENDS, kind) for kind in options["down_block_types"]]
    ups = [options.ours("up_block_types", UP_ATTENDS, kind) for kind in options["up_block_types"]]
    if ups[::-1] != downs:
        raise options.refusal("up_block_types", "down_block_types has attention on other levels")
    return tuple(level for level, attends in enumerate(downs) if attends)


def read_block(options: Options) -> spec.ResidualBlock:
    """Condition, dropout and norms; the attention in mid must have the same norm."""
    condition, groups = options.ours("resnet_time_scale_shift", CONDITIONS), options["norm_num_groups"]
    mid = options["attn_norm_num_groups"] or (groups if condition == "shift" else None)
    if options["add_attention"] and mid != groups:
        raise options.refusal("attn_norm_num_groups", f"the norm of mid has {groups} groups, like all others")
    return spec.ResidualBlock(condition=condition, dropout=options["dropout"], groups=groups, eps=options["norm_eps"])


def read_time(options: Options) -> spec.SinusoidalTime:
    """Order and shift of the sinusoids, and the width of the embedding."""
    base = options["block_out_channels"][0]
    channels = options["time_embedding_dim"] or 4 * base
    if channels % base:
        raise options.refusal("time_embedding_dim", f"it must be a multiple of block_out_channels[0] = {base}")
    order, shift = options.ours("flip_sin_to_cos", ORDERS), options.ours("freq_shift", SHIFTS)
    return spec.SinusoidalTime(order=order, shift=shift, width=channels // base)


def to_config(options: Options) -> spec.UNetConfig:
    """The UNetConfig of a UNet2DModel's options.

    Raises:
        ConfigError: an option that a UNet cannot say, by its name and value.
    """
    with options.reading():
        if options.unknown:
            raise options.refusal(options.unknown[0], "this version of diffusers does not know it either")
        options.check(FIXED)
        widths, levels, mid = tuple(options["block_out_channels"]), read_levels(options), options["add_attention"]
        attended = [widths[level] for level in levels] + ([widths[-1]] if mid else [])
        rows, null = options["num_class_embeds"], options.get("_diffunet_null_class", False)
        return spec.UNetConfig(
            in_channels=options["in_channels"],
            out_channels=options["out_channels"],
            base_channels=widths[0],
            channels=widths,
            blocks_per_level=options["layers_per_block"],
            attention_levels=levels,
            attention_in_mid=mid,
            num_classes=None if rows is None else rows - null,
            null_class=null,
            time=read_time(options),
            block=read_block(options),
            attention=read_heads(options, attended),
            down=spec.StridedConv(pad=options.ours("downsample_padding", PADS)),
        )


def head_counts(config: spec.UNetConfig) -> dict[int, int]:
    """Attended width -> number of heads."""
    levels = {*config.attention_levels, *([len(config.widths) - 1] if config.attention_in_mid else [])}
    return {config.widths[level]: config.attention.count(config.widths[level]) for level in sorted(levels)}


def essence(config: spec.UNetConfig) -> dict[str, Any]:
    """What decides the function of a network, by dotted names, with equal ways to say it made the same."""
    flat: dict[str, Any] = {}
    for name, value in config.model_dump().items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    flat |= {"channels": config.widths, "channel_multipliers": None, "blocks_per_level": config.depths}
    flat |= {"attention_levels": sorted(set(config.attention_levels)), "attention.head_channels": None}
    flat |= {"attention.heads": head_counts(config)}
    return {name: value for name, value in flat.items() if name not in UNSAID}


def write_options(config: spec.UNetConfig) -> dict[str, Any]:
    """The UNet2DModel options nearest to a UNetConfig; what they miss shows on the way back."""
    if config.time.shift and config.base_channels in (2, 3):
        raise ConfigError(f"diffusers divides by zero in time.shift = 1 with base_channels = {config.base_channels}")
    attends = [level in config.attention_levels for level in range(len(config.widths))]
    heads = head_counts(config)
    sizes = {width // count for width, count in heads.items()}
    one_head = set(heads.values()) <= {1}
    if not one_head and len(sizes) > 1:
        raise ConfigError(
            f"diffusers cannot say attention.heads = {config.attention.heads} at the widths {list(heads)}: "
            "its heads have one size everywhere; use attention.head_channels"
        )
    return {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": config.widths,
        "layers_per_block": config.depths[0],
        "down_block_types": tuple(their_value(DOWN_ATTENDS, here) for here in attends),
        "up_block_types": tuple(their_value(UP_ATTENDS, here) for here in reversed(attends)),
        "add_attention": config.attention_in_mid,
        "attention_head_dim": None if one_head else sizes.pop(),
        "time_embedding_dim": config.time.width * config.widths[0],
        "flip_sin_to_cos": their_value(ORDERS, config.time.order),
        "freq_shift": config.time.shift,
        "resnet_time_scale_shift": their_value(CONDITIONS, config.block.condition),
        "dropout": config.block.dropout,
        "norm_num_groups": config.block.groups,
        # left to itself diffusers drops this norm where the condition is scale_shift
        "attn_norm_num_groups": config.block.groups,
        "norm_eps": config.block.eps,
        "downsample_padding": their_value(PADS, config.down.pad),
        "num_class_embeds": None if config.num_classes is None else config.num_classes + config.null_class,
        **({"_diffunet_null_class": True} if config.null_class else {}),
    }


def to_options(config: spec.UNetConfig) -> dict[str, Any]:
    """The options of the UNet2DModel that computes the same.

    Raises:
        ConfigError: there is none; the message names our options that diffusers cannot say.
    """
    kinds = [n for n, part in PARTS.items() if not isinstance(getattr(config, n), part)]
    if kinds:
        said = ", ".join(f"{name} = '{getattr(config, name).kind}'" for name in kinds)
        raise ConfigError(f"diffusers' UNet2DModel cannot say {said}")
    options = write_options(config)
    back = essence(to_config(Options(options, compat.diffusers().UNet2DModel, "the UNet2DModel")))
    lost = [f"{name} = {value}" for name, value in essence(config).items() if back[name] != value]
    if lost:
        raise ConfigError(f"diffusers' UNet2DModel cannot say {', '.join(lost)}")
    return options


def to_unet2d(net: UNet, sample_size: int | tuple[int, ...] | None = None) -> Any:
    """The diffusers UNet2DModel that computes the same as `net`, with a copy of its weights.

    Args:
        net: a UNet in two dimensions; `checkpoint_levels` is not carried.
        sample_size: side, or (height, width), that the pipelines of diffusers make. UNet2DModel runs only on sides that
            divide by 2 for each level but the last, where ours takes any.

    Returns:
        UNet2DModel in the dtype, on the device and in the mode (train or eval) of `net`.

    Raises:
        ConfigError: `net` has an option that UNet2DModel cannot say; the message names it.
    """
    if not isinstance(net, UNet):
        raise ConfigError(f"only a UNet becomes a UNet2DModel, not a {type(net).__name__}")
    options = to_options(net.config)
    with torch.device("meta"):  # no time spent on, and no random numbers drawn for, values that are replaced
        model = compat.diffusers().UNet2DModel(**options, sample_size=sample_size)
    state: dict[str, Tensor] = {}
    for name, value in net.state_dict().items():
        names = their_names(name)
        state |= dict(zip(names, (part.clone() for part in value.chunk(len(names))), strict=True))
    model.load_state_dict(state, assign=True)
    return model.train(net.training)


def network(options: Options, state: Mapping[str, Tensor]) -> UNet:
    """The UNet of a UNet2DModel's options and weights.

    Raises:
        ConfigError: an option that a UNet cannot say.
        CheckpointError: the weights are not those of the options.
    """
    with torch.device("meta"):
        net = UNet(to_config(options))
    names = {name: their_names(name) for name in net.state_dict()}
    wanted = {name for group in names.values() for name in group}
    wrong = [f"{name} is missing" for name in sorted(wanted - state.keys())]
    wrong += [f"{name} is not part of it" for name in sorted(state.keys() - wanted)]
    if wrong:
        raise CheckpointError(
            f"the weights of {options.where} do not fit its options ({len(wrong)} differences): {'; '.join(wrong[:5])}"
        )
    load_exactly(net, {name: torch.cat([state[n] for n in group]) for name, group in names.items()}, options.where)
    return net


def from_unet2d(model: Any) -> UNet:
    """The UNet that computes the same as a diffusers UNet2DModel, with a copy of its weights.

    A class table becomes `num_classes` rows without a null class, unless the model came from `to_unet2d`.

    Returns:
        UNet in the dtype, on the device and in the mode (train or eval) of `model`.

    Raises:
        ConfigError: not a UNet2DModel, or one with an option that a UNet cannot say; the message names it.
        CheckpointError: the model's weights are not those of its options (adapters, fused projections).
    """
    owner = compat.diffusers().UNet2DModel
    if not isinstance(model, owner):
        raise ConfigError(f"only a UNet2DModel becomes a UNet, not a {type(model).__name__}")
    net = network(Options(model.config, owner, "the UNet2DModel"), model.state_dict())
    return net.train(model.training)
