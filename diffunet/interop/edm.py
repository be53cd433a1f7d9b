"""EDM (NVlabs): `SongUNet` (DDPM++, NCSN++) and `DhariwalUNet` (ADM), by their state dict, with or without `model.`.

Parts are named after the side of the image that they were made for, so that writing a state dict needs that side. A
joined map of attention holds q, k and v of one channel next to each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffunet import spec
from diffunet.errors import CheckpointError, ConfigError
from diffunet.interop.essence import changed, same_network, wide
from diffunet.interop.names import Names, State, from_theirs, to_theirs
from diffunet.nn import UNet
from diffunet.nn.filters import binomial

PROJECT = "EDM"
LEAVES = {
    "norm_in": "norm0",
    "conv_in": "conv0",
    "embed": "affine",
    "norm_out": "norm1",
    "conv_out": "conv1",
    "shortcut": "skip",
    "norm": "norm2",
    "out": "proj",
}


def places(config: spec.UNetConfig, side: int, song: bool) -> dict[str, str]:
    """Where their networks hold what ours do; attention is part of the block before it."""
    sides, last = [side >> level for level in range(len(config.widths))], len(config.widths) - 1
    found = {
        "conditioning.time.mlp_in": "map_layer0",
        "conditioning.time.mlp_out": "map_layer1",
        "conditioning.time.frequencies": "map_noise.freqs",
        "conditioning.vector": "map_augment",
        "conditioning.classes.linear": "map_label",
        "conditioning.classes": "map_label",
        "stem": f"enc.{side}x{side}_conv",
        "norm": f"dec.{side}x{side}_aux_norm" if song else "out_norm",
        "head": f"dec.{side}x{side}_aux_conv" if song else "out_conv",
    }
    for level, s in enumerate(sides):
        stage = last - level
        blocks = {f"down.{level}.blocks.{i}.parts": f"enc.{s}x{s}_block{i}" for i in range(config.depths[level])}
        blocks |= {
            f"up.{stage}.blocks.{i}.body.parts": f"dec.{s}x{s}_block{i}" for i in range(config.depths[level] + 1)
        }
        found |= {f"{ours}.{part}": theirs for ours, theirs in blocks.items() for part in range(2)}
        if level < last:
            found[f"down.{level}.resample.block"] = f"enc.{s // 2}x{s // 2}_down"
            found[f"up.{stage - 1}.resample.block"] = f"dec.{s}x{s}_up"
            kind = getattr(config.input_pyramid, "kind", "")
            found[f"down.{level}.pyramid.conv"] = f"enc.{s // 2}x{s // 2}_aux_{kind}"
        if level:
            found[f"up.{stage}.pyramid.norm"] = f"dec.{s}x{s}_aux_norm"
            found[f"up.{stage}.pyramid.conv"] = f"dec.{s}x{s}_aux_conv"
    deepest = f"dec.{sides[-1]}x{sides[-1]}_in"
    return found | {"mid.parts.0": f"{deepest}0", "mid.parts.1": f"{deepest}0", "mid.parts.2": f"{deepest}1"}


def filters(config: spec.UNetConfig, side: int) -> dict[str, Tensor]:
    """Their fixed filters, which stand in the state dict of everything that resamples."""
    found: dict[str, Tensor] = {}
    for level in range(len(config.widths) - 1):
        s, half, down, up = side >> level, side >> level + 1, config.down_at(level), config.up_at(level)
        resampled: dict[str, Any] = {f"enc.{half}x{half}_down.{part}": down for part in ("conv0", "skip")}
        resampled |= {f"dec.{s}x{s}_up.{part}": up for part in ("conv0", "skip")}
        if config.input_pyramid:
            part = {"skip": "down", "residual": "residual"}[config.input_pyramid.kind]
            resampled[f"enc.{half}x{half}_aux_{part}"] = config.input_pyramid
        if config.output_pyramid:
            resampled[f"dec.{s}x{s}_aux_up"] = config.output_pyramid
        for name, operator in resampled.items():
            found[f"{name}.resample_filter"] = binomial(getattr(operator, "taps", 2), torch.zeros(1, 1, 1, 1))
    return {name: value.contiguous() for name, value in found.items()}


def names(config: spec.UNetConfig, side: int) -> Names:
    """Where their networks hold what ours do, for images of `side` pixels."""
    song = config.block.rescale
    return Names(
        PROJECT,
        places(config, side, song),
        LEAVES,
        rows="heads c three",
        ones=2,
        transposed=r"$." if song else r"^map_label\.weight$",
        extra=filters(config, side),
    )


def sides(state: State) -> list[int]:
    """Sides of the levels, in the names of their parts."""
    found = state.numbers(r"enc\.(\d+)x\d+_")[::-1]
    if not found or found != [found[0] >> level for level in range(len(found))]:
        raise CheckpointError(f"the weights are of no {state.project} network: their sides {found} do not halve")
    return found


def taps(state: State, pattern: str) -> int:
    """Taps of the filters whose names match; 2 where there is none."""
    return max((value.shape[-1] for name, value in state.items() if re.search(pattern, name)), default=2)


def levels(state: State, last: str) -> dict[str, Any]:
    """What the names of EDM and EDM2 share: widths, depth and levels of attention; `last` is a block's last map."""
    found = sides(state)
    blocks = [state.numbers(rf"enc\.{s}x{s}_block(\d+)\.") for s in found]
    widths = [state.size(f"enc.{s}x{s}_block0.{last}.weight") for s in found]
    attends = [any(name.startswith(f"enc.{s}x{s}_block0.") and "qkv" in name for name in state) for s in found]
    return {
        "blocks_per_level": len(blocks[0]),
        "attention_levels": [level for level, here in enumerate(attends) if here],
        "widths": widths,
    }


def detect(state: State) -> dict[str, Any]:
    """What names and shapes say of the network: fields of UNetConfig."""
    fields, top = levels(state, "conv1"), f"{sides(state)[0]}x{sides(state)[0]}"
    song, widths = f"dec.{top}_aux_norm.weight" in state, fields.pop("widths")
    image = state.size(f"enc.{top}_conv.weight", 1)
    out = state.size(f"dec.{top}_aux_conv.weight" if song else "out_conv.weight")
    stem, embed = state.size(f"enc.{top}_conv.weight"), state.size("map_layer0.weight")
    features = state.size("map_layer0.weight", 1)
    fourier, label = "map_noise.freqs" in state, "map_label.weight" in state
    base = stem if song else features  # SongUNet may have twice the features; DhariwalUNet may have a wider stem
    width, multiple = embed // base, features // base
    deepest = f"enc.{sides(state)[-1]}x{sides(state)[-1]}_aux_"
    joined = next((kind for kind in ("skip", "residual") if state.has(f"{deepest}{kind}")), None)
    time: dict[str, Any] = {"kind": "fourier" if fourier else "sinusoidal", "features": multiple, "width": width}
    if not song:
        time |= {"order": "cos_sin", "shift": 0}
    scales = state.size(f"enc.{top}_block0.affine.weight") == 2 * widths[0]
    block = spec.ResidualBlock(
        group_channels=4, rescale=song, eps=1e-6 if song else 1e-5, condition="scale_shift" if scales else "shift"
    )
    operator = {"kind": "in_block", "project": song, "taps": taps(state, r"_(down|up)\..*resample_filter$")}
    pyramid = {"taps": taps(state, r"_aux_.*resample_filter$")}
    return fields | {
        "in_channels": image,
        "out_channels": min(out, image),
        "learned_variance": out == 2 * image,
        **wide(base, widths),
        "stem_channels": stem if stem != base else None,
        "attention_up": "last" if song else "every",
        "num_classes": state.size("map_label.weight", 1) if label else None,
        "vector_channels": state.size("map_augment.weight", 1) if "map_augment.weight" in state else 0,
        "time": time,
        "class_embedding": spec.ClassLinear() if song else spec.ClassTable(),
        "block": block,
        "attention": spec.SelfAttention(heads=1) if song else spec.SelfAttention(head_channels=64),
        "down": operator,
        "up": operator,
        "input_pyramid": {"kind": joined} | pyramid if joined else None,
        "output_pyramid": {"kind": "skip"} | pyramid if state.has(f"dec.{top}_aux_up") else None,
    }


def bare(state: Mapping[str, Tensor], prefix: str = "model.") -> dict[str, Tensor]:
    """The weights of the network alone, where those of its preconditioning stand around it."""
    inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return inner or dict(state)


def image_size(state: Mapping[str, Tensor]) -> int:
    """Side of the images that a network was made for, in pixels."""
    return sides(State(bare(state), PROJECT))[0]


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are this project's."""
    return any(re.match(r"(model\.)?map_layer0\.weight$", name) for name in state)


def from_state(state: Mapping[str, Tensor], **changes: Any) -> UNet:
    """The UNet that computes what a SongUNet or DhariwalUNet with this state dict does.

    Args:
        state: tensors by EDM's names: `net.state_dict()`, or `net.model.state_dict()`.
        changes: fields of UNetConfig that the tensors do not show: `null_class=True` makes EDM's "no label", a vector
            of zeros, a class of its own.

    Raises:
        CheckpointError: the tensors are no such network.
    """
    theirs = State(bare(state), PROJECT)
    config = changed(detect(theirs), changes)
    if config.null_class and "map_label.weight" in theirs and config.class_embedding.kind == "table":
        theirs["map_label.weight"] = torch.nn.functional.pad(theirs["map_label.weight"], (0, 1))
    return from_theirs(theirs, config, names(config, image_size(theirs)))


def to_state(net: UNet, size: int) -> dict[str, Tensor]:
    """The state dict with which their network computes what `net` does.

    Args:
        net: a network of theirs.
        size: of the images, in pixels (`img_resolution`): the names hold it.

    Raises:
        ConfigError: `net` has an option that their networks have not, or too many levels for the size.
    """
    if size % 2 ** (len(net.config.widths) - 1):
        raise ConfigError(f"images of {size} pixels do not halve {len(net.config.widths) - 1} times")
    state = to_theirs(net, names(net.config, size))
    if net.config.null_class and net.config.class_embedding.kind == "table":
        state["map_label.weight"], null = state["map_label.weight"].split([net.config.num_classes, 1], dim=1)
        if null.any():
            raise ConfigError(f"{PROJECT} cannot say null_class = True: its 'no label' is a vector of zeros")
    same_network(net.config, lambda: detect(State(state, PROJECT)), PROJECT, ("null_class",))
    return state
