"""improved-diffusion and guided-diffusion (ADM): `UNetModel` and `SuperResModel`, by their state dict.

Their tensors do not show how many heads attention has, nor the order of its joined map: `legacy` (improved-diffusion,
and guided-diffusion unless told otherwise) holds q, k and v of one head next to each other, `new` all q first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from diffunet import spec
from diffunet.errors import ConfigError
from diffunet.interop.essence import changed, same_network, wide
from diffunet.interop.names import Names, State, from_theirs, to_theirs
from diffunet.nn import UNet
from diffunet.table import Table

PROJECT = "guided-diffusion"
# order of attention's rows, in the words of their flag
ROWS = Table("attention order", {"legacy": "heads three c", "new": "three heads c"})
Order = Literal["legacy", "new"]
FLAGS = "(of `diffunet convert`: --heads, --head-channels, --attention-order; or --preset)"
LEAVES = {
    "norm_in": "in_layers.0",
    "conv_in": "in_layers.2",
    "embed": "emb_layers.1",
    "norm_out": "out_layers.0",
    "conv_out": "out_layers.3",
    "shortcut": "skip_connection",
    "out": "proj_out",
}


def names(config: spec.UNetConfig, attention_order: Order) -> Names:
    """Where their networks hold what ours do."""
    places = {
        "conditioning.time.mlp_in": "time_embed.0",
        "conditioning.time.mlp_out": "time_embed.2",
        "conditioning.classes": "label_emb",
        "stem": "input_blocks.0.0",
        "mid.parts": "middle_block",
        "norm": "out.0",
        "head": "out.2",
    }
    block, last = 1, len(config.widths) - 1
    for level, depth in enumerate(config.depths):
        for i in range(depth):
            places[f"down.{level}.blocks.{i}.parts"] = f"input_blocks.{block + i}"
        block += depth
        if level < last:
            places[f"down.{level}.resample.block"] = f"input_blocks.{block}.0"
            places[f"down.{level}.resample.conv"] = f"input_blocks.{block}.0.op"
            block += 1
    block = 0
    for stage, level in enumerate(reversed(range(last + 1))):
        for i in range(config.depths[level] + 1):
            places[f"up.{stage}.blocks.{i}.body.parts"] = f"output_blocks.{block + i}"
        block += config.depths[level] + 1
        member = f"output_blocks.{block - 1}.{1 + (level in config.attention_levels)}"
        places |= {f"up.{stage}.resample.block": member, f"up.{stage}.resample.conv": f"{member}.conv"}
    return Names(PROJECT, places, LEAVES, rows=ROWS[attention_order], ones=1)


def depth(state: State) -> int:
    """Blocks of each level on the way down: what stands before the first operator."""
    blocks = state.numbers(r"input_blocks\.(\d+)\.")
    ends = state.numbers(r"output_blocks\.(\d+)\.[12]\.(?:conv|in_layers)\.")
    gaps = sorted(set(range(max(blocks, default=0))) - set(blocks))  # an operator without weights leaves no name
    if ends:
        return ends[0]
    return gaps[0] - 1 if gaps else len(state.numbers(r"output_blocks\.(\d+)\.")) - 1


def resampling(state: State, first: int) -> dict[str, Any]:
    """The operators between levels; the first on the way down is the input block `first`."""
    if f"input_blocks.{first}.0.op.weight" in state:
        return {}
    if f"input_blocks.{first}.0.in_layers.0.weight" in state:
        return {"down": spec.InBlock(), "up": spec.InBlock()}
    return {"down": spec.AvgPool(), "up": spec.Nearest()}


def detect(state: State, cond: int | None = None) -> dict[str, Any]:
    """What names and shapes say of the network: fields of UNetConfig. `cond` channels of the stem are a condition."""
    if state.has("out.") and not state.has("output_blocks."):
        raise ConfigError("these are the weights of guided-diffusion's classifier (half a U-Net), which is no denoiser")
    stem, base, blocks = "input_blocks.0.0.weight", state.size("time_embed.0.weight", 1), depth(state)
    levels = len(state.numbers(r"output_blocks\.(\d+)\.")) // (blocks + 1)
    firsts = [1 + level * (blocks + 1) for level in range(levels)]
    widths = [state.size(f"input_blocks.{first}.0.out_layers.3.weight") for first in firsts]
    image, out = state.size(stem, 1), state.size("out.2.weight")
    if cond is None:
        cond = out if image == 2 * out else 0  # SuperResModel, which sees the small image beside the noisy one
    scales = state.size("input_blocks.1.0.emb_layers.1.weight") == 2 * widths[0]
    if (dims := state[stem].ndim - 2) == 3:
        raise ConfigError("guided-diffusion's networks of three dimensions resample two of them only, ours all three")
    return {
        "dims": dims,
        "in_channels": image - cond,
        "out_channels": min(out, image - cond),
        "cond_channels": cond,
        "learned_variance": out == 2 * (image - cond),
        **wide(base, widths),
        "stem_channels": width if (width := state.size(stem)) != base else None,
        "blocks_per_level": blocks,
        "attention_levels": [i for i, first in enumerate(firsts) if f"input_blocks.{first}.1.qkv.weight" in state],
        "num_classes": state.size("label_emb.weight") if "label_emb.weight" in state else None,
        "time": {
            "kind": "sinusoidal",
            "order": "cos_sin",
            "shift": 0,
            "width": state.size("time_embed.0.weight") // base,
        },
        "block": spec.ResidualBlock(condition="scale_shift" if scales else "shift", eps=1e-5),
        **resampling(state, blocks + 1),
    }


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are this project's."""
    return "input_blocks.0.0.weight" in state


def from_state(
    state: Mapping[str, Tensor],
    heads: int | None = None,
    head_channels: int | None = None,
    attention_order: Order | None = None,
    **changes: Any,
) -> UNet:
    """The UNet that computes what a UNetModel with this state dict does.

    Args:
        state: tensors by guided-diffusion's names.
        heads: their --num_heads (their default is 4 in the scripts); or
        head_channels: their --num_head_channels.
        attention_order: legacy, or new where they were given --use_new_attention_order; of one head both are the same.
        changes: fields of UNetConfig that the tensors do not show (`block={"dropout": 0.1}`), or show wrongly:
            `cond_channels=3` for an upsampler that also learned a variance.

    Raises:
        ConfigError: heads or order are not said.
        CheckpointError: the tensors are no such network.
    """
    theirs = State(state, PROJECT)
    if (heads is None) == (head_channels is None):
        raise ConfigError(f"the weights do not show attention's heads: give heads or head_channels {FLAGS}")
    if attention_order is None and heads != 1:
        raise ConfigError(f"the weights do not show attention's order: give attention_order, legacy or new {FLAGS}")
    detected = detect(theirs, changes.get("cond_channels"))
    attention = spec.SelfAttention(heads=heads, head_channels=head_channels)
    config = changed(detected | {"attention": attention}, changes)
    return from_theirs(theirs, config, names(config, attention_order or "new"))


def to_state(net: UNet, attention_order: Order = "legacy") -> dict[str, Tensor]:
    """The state dict with which guided-diffusion's UNetModel computes what `net` does.

    Raises:
        ConfigError: `net` has an option that UNetModel has not; the message names it.
    """
    state = to_theirs(net, names(net.config, attention_order))
    back = State(state, PROJECT)
    same_network(
        net.config,
        lambda: detect(back, net.config.cond_channels),
        PROJECT,
        ("attention.heads", "attention.head_channels"),
    )
    return state
