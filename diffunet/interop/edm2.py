"""EDM2 (NVlabs): `UNet`, or `Precond` around it, by their state dict.

`Precond` adds the learned log variance of the loss. Balances, heads of 64 channels and the clipping of activations are
options of theirs that the tensors do not show and that every published network leaves as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffunet import spec
from diffunet.errors import ConfigError
from diffunet.interop.edm import levels, sides
from diffunet.interop.essence import changed, same_network, wide
from diffunet.interop.names import Names, State, from_theirs, to_theirs
from diffunet.nn import UNet

PROJECT = "EDM2"
ASSUMED = (
    *("attention.head_channels", "attention.heads", "attention.balance", "skip.balance", "class_embedding.balance"),
    *("block.balance", "block.clip"),
)
LEAVES = {
    "conv_in": "conv_res0",
    "embed": "emb_linear",
    "gain": "emb_gain",
    "conv_out": "conv_res1",
    "shortcut": "conv_skip",
    "out": "attn_proj",
    "frequencies": "freqs",
}


def names(config: spec.UNetConfig, side: int) -> Names:
    """Where their networks hold what ours do, for images (or latents) of `side` pixels."""
    last = len(config.widths) - 1
    places = {
        "conditioning.time.fourier": "emb_fourier",
        "conditioning.time.linear": "emb_noise",
        "conditioning.classes.linear": "emb_label",
        "stem": f"enc.{side}x{side}_conv",
        "head": "out_conv",
        "head.gain": "out_gain",
    }
    for level, depth in enumerate(config.depths):
        s, stage = f"{side >> level}x{side >> level}", last - level
        blocks = {f"down.{level}.blocks.{i}.parts": f"enc.{s}_block{i}" for i in range(depth)}
        blocks |= {f"up.{stage}.blocks.{i}.body.parts": f"dec.{s}_block{i}" for i in range(depth + 1)}
        places |= {f"{ours}.{part}": theirs for ours, theirs in blocks.items() for part in range(2)}
        if level:
            places[f"down.{level - 1}.resample.block"] = f"enc.{s}_down"
        if level < last:
            places[f"up.{stage - 1}.resample.block"] = f"dec.{s}_up"
        else:
            places |= {"mid.parts.0": f"dec.{s}_in0", "mid.parts.1": f"dec.{s}_in0", "mid.parts.2": f"dec.{s}_in1"}
    if config.uncertainty_channels:
        places = {ours: f"unet.{theirs}" for ours, theirs in places.items()}
        places |= {"uncertainty.fourier": "logvar_fourier", "uncertainty.linear": "logvar_linear"}
    return Names(PROJECT, places, LEAVES, qkv=("attn_qkv",))


def detect(state: State) -> dict[str, Any]:
    """What names and shapes say of the network: fields of UNetConfig."""
    uncertainty = state.size("logvar_fourier.freqs") if "logvar_fourier.freqs" in state else 0
    state = inner(state)
    fields, top = levels(state, "conv_res1"), f"{sides(state)[0]}x{sides(state)[0]}"
    widths, base = fields.pop("widths"), state.size(f"enc.{top}_conv.weight")
    embed, features = state.size("emb_noise.weight"), state.size("emb_fourier.freqs")
    label = "emb_label.weight" in state
    return fields | {
        "in_channels": state.size(f"enc.{top}_conv.weight", 1) - 1,
        "out_channels": state.size("out_conv.weight"),
        **wide(base, widths),
        "num_classes": state.size("emb_label.weight", 1) if label else None,
        "uncertainty_channels": uncertainty,
        "time": {"kind": "magnitude_preserving", "width": embed // base, "features": features // base},
        "class_embedding": spec.ClassBalanced(),
        "block": spec.MagnitudeBlock(),
        "attention": spec.CosineAttention(head_channels=64),
        "down": spec.InBlock(),
        "up": spec.InBlock(),
        "skip": spec.BalancedSkip(),
    }


def inner(state: State) -> State:
    """The names within `Precond`."""
    found = {name.removeprefix("unet."): value for name, value in state.items() if not name.startswith("logvar_")}
    return State(found, PROJECT)


def image_size(state: Mapping[str, Tensor]) -> int:
    """Side of the images, or latents, that a network was made for, in pixels."""
    return sides(inner(State(state, PROJECT)))[0]


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are this project's."""
    return any(name in state for name in ("emb_fourier.freqs", "unet.emb_fourier.freqs"))


def from_state(state: Mapping[str, Tensor], **changes: Any) -> UNet:
    """The UNet that computes what their UNet with this state dict does.

    Args:
        state: tensors by EDM2's names, of a Precond or of the UNet in it.
        changes: fields of UNetConfig that the tensors do not show: `null_class=True` makes their "no label", a vector
            of zeros, a class of its own.

    Raises:
        CheckpointError: the tensors are no such network.
    """
    theirs = State(state, PROJECT)
    config = changed(detect(theirs), changes)
    return from_theirs(theirs, config, names(config, image_size(theirs)))


def to_state(net: UNet, size: int) -> dict[str, Tensor]:
    """The state dict with which their Precond (or UNet, without a log variance) computes what `net` does.

    Args:
        net: a network of theirs.
        size: of the images or latents, in pixels (`img_resolution`): the names hold it.

    Raises:
        ConfigError: `net` has an option that their networks have not, or too many levels for the size.
    """
    if size % 2 ** (len(net.config.widths) - 1):
        raise ConfigError(f"images of {size} pixels do not halve {len(net.config.widths) - 1} times")
    state = to_theirs(net, names(net.config, size))
    same_network(net.config, lambda: detect(State(state, PROJECT)), PROJECT, ASSUMED)
    return state
