"""Our UNet as diffusers' UNet2DModel and back, with exact weights.

What the other side cannot say is refused by its name, never dropped: see `unet2d_read` for their options and
`unet2d_write` for ours. Here stand the names of weights and the two conversions.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

from diffunet import compat, spec
from diffunet.errors import CheckpointError, ConfigError
from diffunet.interop.names import Names, to_theirs
from diffunet.interop.options import Options
from diffunet.interop.unet2d_read import to_config
from diffunet.interop.unet2d_write import to_options
from diffunet.nn import UNet
from diffunet.weights import load_exactly

PROJECT = "UNet2DModel"
PLACES = {
    "conditioning.time.mlp_in": "time_embedding.linear_1",
    "conditioning.time.mlp_out": "time_embedding.linear_2",
    "conditioning.time.table": "time_proj",
    "conditioning.time.frequencies": "time_proj.weight",
    "conditioning.classes": "class_embedding",
    "stem": "conv_in",
    "norm": "conv_norm_out",
    "head": "conv_out",
}
LEAVES = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "embed": "time_emb_proj",
    "norm_out": "norm2",
    "conv_out": "conv2",
    "shortcut": "conv_shortcut",
    "norm": "group_norm",
    "out": "to_out.0",
}


def names(config: spec.UNetConfig) -> Names:
    """Where a UNet2DModel holds what ours does."""
    fir, places = config.block.rescale, dict(PLACES)
    mid = ["resnets.0", "attentions.0", "resnets.1"] if config.attention_in_mid else ["resnets.0", "resnets.1"]
    places |= {f"mid.parts.{i}": f"mid_block.{part}" for i, part in enumerate(mid)}
    for (way, body), level in product((("down", "parts"), ("up", "body.parts")), range(len(config.widths))):
        ours, theirs = f"{way}.{level}", f"{way}_blocks.{level}"
        for i in range(config.depths[0] + 1):
            places[f"{ours}.blocks.{i}.{body}.0"] = f"{theirs}.resnets.{i}"
            # on the way up the Skip types attend once, behind the last block
            places[f"{ours}.blocks.{i}.{body}.1"] = f"{theirs}.attentions.{0 if fir and way == 'up' else i}"
        places[f"{ours}.resample"] = f"{theirs}.{way}samplers.0"
        places[f"{ours}.resample.block"] = f"{theirs}.resnet_{way}" if fir else f"{theirs}.{way}samplers.0"
        places |= {f"{ours}.pyramid.{part}": f"{theirs}.skip_{part}" for part in ("norm", "conv")}
    return Names(PROJECT, places, LEAVES, qkv=("to_q", "to_k", "to_v"))


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
    try:
        with torch.device("meta"):  # no time spent on, and no random numbers drawn for, values that are replaced
            model = compat.diffusers().UNet2DModel(**options, sample_size=sample_size)
    except ValueError as error:  # the Skip types have 32 groups at sums of widths that 32 does not divide
        raise ConfigError(f"diffusers cannot make a UNet2DModel of the widths {net.config.widths}: {error}") from None
    model.load_state_dict(to_theirs(net, names(net.config)), assign=True)
    return model.train(net.training)


def network(options: Options, state: Mapping[str, Tensor]) -> UNet:
    """The UNet of a UNet2DModel's options and weights.

    Raises:
        ConfigError: an option that a UNet cannot say.
        CheckpointError: the weights are not those of the options.
    """
    with torch.device("meta"):
        net = UNet(to_config(options))
    theirs = names(net.config)
    groups = {name: theirs.theirs(name) for name in net.state_dict()}
    wanted = {name for group in groups.values() for name in group}
    wrong = [f"{name} is missing" for name in sorted(wanted - state.keys())]
    wrong += [f"{name} is not part of it" for name in sorted(state.keys() - wanted)]
    if wrong:
        raise CheckpointError(
            f"the weights of {options.where} do not fit its options ({len(wrong)} differences): {'; '.join(wrong[:5])}"
        )
    load_exactly(net, {name: torch.cat([state[n] for n in group]) for name, group in groups.items()}, options.where)
    return net


def from_unet2d(model: Any) -> UNet:
    """The UNet that computes the same as a diffusers UNet2DModel, with a copy of its weights.

    A class table becomes `num_classes` rows without a null class, and output channels are those of an image without a
    learned variance, unless the model came from `to_unet2d`.

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
