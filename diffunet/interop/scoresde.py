"""score_sde_pytorch: `DDPM` and `NCSNpp`, whose modules are counted through in the order of the forward pass.

Their maps of single pixels are `NIN`s, whose matrices stand the other way round. The table of noise levels (`sigmas`)
in their state dict is made anew from its ends, which belong to the training and not to the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffunet import spec
from diffunet.errors import CheckpointError
from diffunet.interop.essence import changed, same_network, wide
from diffunet.interop.names import Names, State, from_theirs, to_theirs
from diffunet.nn import UNet

PROJECT = "score_sde"
# what the tensors of an NCSNpp do not show, and all configs that its authors published agree on
ASSUMED = ("block.rescale", "down.taps", "up.taps", "input_pyramid.taps", "output_pyramid.taps", "divide_by_time")
LEAVES = {
    "norm": "GroupNorm_0",
    "norm_in": "GroupNorm_0",
    "conv_in": "Conv_0",
    "embed": "Dense_0",
    "norm_out": "GroupNorm_1",
    "conv_out": "Conv_1",
    "shortcut": "NIN_0",
    "out": "NIN_3",
    "conv": "Conv_0",
}
ENDINGS = ((r"(NIN_\d)\.weight$", r"\1.W"), (r"(NIN_\d)\.bias$", r"\1.b"))


def order(config: spec.UNetConfig) -> Iterator[str]:
    """Places of our parts in the order of their modules; a part that they do not make is no place of ours."""
    if config.time.kind == "fourier":
        yield "conditioning.time.frequencies"
    yield from ("conditioning.time.mlp_in", "conditioning.time.mlp_out", "stem")
    last = len(config.widths) - 1
    for level, depth in enumerate(config.depths):
        attends = level in config.attention_levels
        for i in range(depth):
            yield from [f"down.{level}.blocks.{i}.parts.{part}" for part in range(1 + attends)]
        if level < last:
            yield f"down.{level}.resample"
            if config.input_pyramid:
                yield f"down.{level}.pyramid"
    yield from [f"mid.parts.{part}" for part in range(3)]
    for stage, level in enumerate(reversed(range(last + 1))):
        for i in range(config.depths[level] + 1):
            yield f"up.{stage}.blocks.{i}.body.parts.0"
        if level in config.attention_levels:
            yield f"up.{stage}.blocks.{config.depths[level]}.body.parts.1"
        if config.output_pyramid and level:
            yield from (f"up.{stage}.pyramid.norm", f"up.{stage}.pyramid.conv")
        if level:
            yield f"up.{stage}.resample"
    yield from ("norm", "head")


def names(config: spec.UNetConfig) -> Names:
    """Where their networks hold what ours do."""
    places = {place: f"all_modules.{i}" for i, place in enumerate(order(config))}
    inner = {f"{place}.block": module for place, module in places.items() if place.endswith(".resample")}
    first = places.get("conditioning.time.frequencies")
    frequencies = {"conditioning.time.frequencies": f"{first}.W"} if first else {}
    leaves = LEAVES | ({"shortcut": "Conv_2"} if config.down.kind == "in_block" else {})
    # a convolution that filters too has a name of its own
    pyramid = config.input_pyramid
    filtered = pyramid is not None and pyramid.kind == "residual" and pyramid.taps > 2
    pyramids = {f"{p}.conv": f"{m}.Conv2d_0" for p, m in places.items() if filtered and p.endswith(".pyramid")}
    return Names(
        PROJECT,
        places | inner | frequencies | pyramids,
        leaves,
        qkv=("NIN_0", "NIN_1", "NIN_2"),
        transposed=r"\.W$",
        endings=ENDINGS,
        ignored=r"^sigmas$|^pyramid_(up|down)sample\.",
    )


def kinds(state: State) -> list[str]:
    """What each of their modules is."""
    parts: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        if match := re.match(r"all_modules\.(\d{1,5})\.(\w+)", name):
            module = parts.setdefault(int(match[1]), {})
            module[match[2]] = value if name.endswith(".weight") else module.get(match[2], value)
    numbers = state.numbers(r"all_modules\.(\d+)\.")
    return [kind(parts.get(number, {})) for number in range(max(numbers, default=0) + 1)]


def kind(parts: Mapping[str, Tensor]) -> str:
    """What a module with these weights is."""
    conv = parts.get("Conv2d_0", parts.get("Conv_0"))
    if "GroupNorm_1" in parts:
        halves = "Conv_2" in parts and conv is not None and conv.shape[:1] == conv.shape[1:2]
        return "operator" if halves else "block"
    if "NIN_3" in parts or "W" in parts:
        return "attention" if "NIN_3" in parts else "fourier"
    if conv is not None:
        return "combine" if conv.shape[-1:] == (1,) else "conv"
    sides = parts["weight"].ndim if "weight" in parts else 0
    return {0: "empty", 1: "norm", 2: "linear"}.get(sides, "end")


def detect(state: State) -> dict[str, Any]:
    """What names and shapes say of the network: fields of UNetConfig."""
    modules = kinds(state)
    blocks = [i for i, kind in enumerate(modules) if kind == "block"]
    biggan = "operator" in modules
    operators = [i for i, kind in enumerate(modules) if kind in (("operator",) if biggan else ("conv", "empty"))]
    depth = sum(i < operators[0] for i in blocks) if operators else (len(blocks) - 3) // 2
    levels = len(operators) // 2 + 1
    first = modules[: modules.index("end")] if "end" in modules else []
    if first not in (["linear"] * 2, ["fourier", *["linear"] * 2]) or depth < 1 or len(blocks) < levels * depth:
        raise CheckpointError(f"the weights are of no {PROJECT} network: its modules are not in their order")
    firsts = [blocks[level * depth] for level in range(levels)]
    widths = [state.size(f"all_modules.{i}.Conv_0.weight") for i in firsts]
    stem, fourier = len(first), "fourier" in first
    base, image = state.size(f"all_modules.{stem}.weight"), state.size(f"all_modules.{stem}.weight", 1)
    features = state.size(f"all_modules.{stem - 2}.weight", 1) // base
    joined = modules[operators[0] + 1] if biggan else ""
    taps = 4 if fourier or any(".Conv2d_0." in name for name in state) else 2
    pools = "empty" in modules
    fields = {
        "in_channels": image,
        "out_channels": image,
        **wide(base, widths),
        "blocks_per_level": depth,
        "attention_levels": [level for level, i in enumerate(firsts) if modules[i + 1] == "attention"],
        "attention_up": "last",
        "time": {"features": features} | ({"kind": "fourier", "log": True} if fourier else {"kind": "sinusoidal"}),
        "down": spec.AvgPool() if pools else spec.StridedConv(pad="asymmetric"),
        "up": spec.Nearest() if pools else spec.NearestConv(),
    }
    if not biggan:
        return fields
    return fields | {
        "divide_by_time": fourier,
        "block": spec.ResidualBlock(group_channels=4, rescale=True),
        "down": spec.InBlock(project=True, taps=taps),
        "up": spec.InBlock(project=True, taps=taps),
        "input_pyramid": {"combine": spec.SkipPyramid(taps=taps), "conv": spec.ResidualPyramid(taps=taps)}.get(joined),
        "output_pyramid": spec.SkipPyramid(taps=taps) if modules.count("norm") > 1 else None,
    }


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are this project's."""
    return any(re.match(r"all_modules\.\d+\.", name) for name in state)


def from_state(state: Mapping[str, Tensor], **changes: Any) -> UNet:
    """The UNet that computes what their DDPM or NCSNpp with this state dict does.

    Args:
        state: tensors by score_sde's names.
        changes: fields of UNetConfig that the tensors do not show. Of their options these are `skip_rescale`
            (`block={"rescale": ...}`), `fir` (`down={"taps": 4 or 2}`, likewise up and pyramids) and `scale_by_sigma`
            (`divide_by_time`); unset they are as in the published configs. A network that is not `centered` sees
            2x - 1 of images in [0, 1], so ours is fed [-1, 1] in every case.

    Raises:
        CheckpointError: the tensors are no such network.
    """
    theirs = State(state, PROJECT)
    config = changed(detect(theirs), changes)
    return from_theirs(theirs, config, names(config))


def to_state(net: UNet, sigma_min: float = 0.01, sigma_max: float = 50.0, num_scales: int = 1000) -> dict[str, Tensor]:
    """The state dict with which their DDPM or NCSNpp computes what `net` does.

    Args:
        net: a network of theirs.
        sigma_min, sigma_max, num_scales: their table of noise levels, which only their training reads.

    Raises:
        ConfigError: `net` has an option that their networks have not; the message names it.
    """
    state = to_theirs(net, names(net.config))
    same_network(net.config, lambda: detect(State(state, PROJECT)), PROJECT, ASSUMED)
    levels = np.exp(np.linspace(np.log(sigma_max), np.log(sigma_min), num_scales))
    return {"sigmas": torch.from_numpy(levels), **state}
