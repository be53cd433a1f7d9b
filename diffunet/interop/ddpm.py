"""ermongroup/ddim and the other PyTorch ports of DDPM: `Model`, by its state dict.

Nothing of the network is hidden: attention has one head, the sinusoids are DDPM's, the stride pads right and bottom.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffunet import spec
from diffunet.errors import ConfigError
from diffunet.interop.essence import changed, same_network, wide
from diffunet.interop.names import Names, State, from_theirs, to_theirs
from diffunet.nn import UNet

PROJECT = "ermongroup/ddim"
LEAVES = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "embed": "temb_proj",
    "norm_out": "norm2",
    "conv_out": "conv2",
    "shortcut": "nin_shortcut",
    "out": "proj_out",
}


def names(config: spec.UNetConfig) -> Names:
    """Where their networks hold what ours do; their way up counts levels from the top too."""
    places = {
        "conditioning.time.mlp_in": "temb.dense.0",
        "conditioning.time.mlp_out": "temb.dense.1",
        "stem": "conv_in",
        "mid.parts.0": "mid.block_1",
        "mid.parts.1": "mid.attn_1",
        "mid.parts.2": "mid.block_2",
        "norm": "norm_out",
        "head": "conv_out",
    }
    last = len(config.widths) - 1
    for level, depth in enumerate(config.depths):
        stage = last - level
        places |= {f"down.{level}.resample": f"down.{level}.downsample"}
        places |= {f"up.{stage}.resample": f"up.{level}.upsample"}
        for i in range(depth + 1):
            places[f"down.{level}.blocks.{i}.parts.0"] = f"down.{level}.block.{i}"
            places[f"down.{level}.blocks.{i}.parts.1"] = f"down.{level}.attn.{i}"
            places[f"up.{stage}.blocks.{i}.body.parts.0"] = f"up.{level}.block.{i}"
            places[f"up.{stage}.blocks.{i}.body.parts.1"] = f"up.{level}.attn.{i}"
    return Names(PROJECT, places, LEAVES, qkv=("q", "k", "v"), ones=2)


def detect(state: State) -> dict[str, Any]:
    """What names and shapes say of the network: fields of UNetConfig."""
    levels = len(state.numbers(r"down\.(\d+)\."))
    widths = [state.size(f"down.{level}.block.0.conv2.weight") for level in range(levels)]
    base, image, out = state.size("conv_in.weight"), state.size("conv_in.weight", 1), state.size("conv_out.weight")
    if any(".conv_shortcut." in name for name in state):
        raise ConfigError(f"conv_shortcut of {PROJECT} (a 3x3 convolution beside a block) has no counterpart here")
    pools = levels > 1 and "down.0.downsample.conv.weight" not in state
    return {
        "in_channels": image,
        "out_channels": min(out, image),
        "learned_variance": out == 2 * image,
        **wide(base, widths),
        "blocks_per_level": len(state.numbers(r"down\.0\.block\.(\d+)\.")),
        "attention_levels": state.numbers(r"down\.(\d+)\.attn\."),
        "time": {"kind": "sinusoidal", "width": state.size("temb.dense.0.weight") // base},
        "down": spec.AvgPool() if pools else spec.StridedConv(pad="asymmetric"),
        "up": spec.Nearest() if pools else spec.NearestConv(),
    }


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are this project's."""
    return "temb.dense.0.weight" in state


def from_state(state: Mapping[str, Tensor], **changes: Any) -> UNet:
    """The UNet that computes what their Model with this state dict does.

    Args:
        state: tensors by ermongroup/ddim's names.
        changes: fields of UNetConfig that the tensors do not show: `block={"dropout": 0.1}`.

    Raises:
        CheckpointError: the tensors are no such network.
    """
    theirs = State(state, PROJECT)
    config = changed(detect(theirs), changes)
    return from_theirs(theirs, config, names(config))


def to_state(net: UNet) -> dict[str, Tensor]:
    """The state dict with which their Model computes what `net` does.

    Raises:
        ConfigError: `net` has an option that Model has not; the message names it.
    """
    state = to_theirs(net, names(net.config))
    same_network(net.config, lambda: detect(State(state, PROJECT)), PROJECT)
    return state
