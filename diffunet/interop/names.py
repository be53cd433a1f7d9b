"""One network under two sets of names: ours, and those of the project that its weights come from.

A project's module says where its parts stand (`places`: the beginning of our names -> the beginning of theirs), what
the parts of a part are called (`leaves`), and how the rows of attention are ordered; everything here works both ways.
Weights are matched exactly: a name too few or too many is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor

from diffunet.errors import CheckpointError, ConfigError
from diffunet.nn import UNet
from diffunet.spec import UNetConfig
from diffunet.weights import load_exactly

# a word of our names -> the option that made the part, for messages
OPTIONS = {
    "skip": "skip",
    "pyramid": "input_pyramid or output_pyramid",
    "uncertainty": "uncertainty_channels",
    "vector": "vector_channels",
    "resample": "down or up",
    "classes": "num_classes",
    "time": "time",
}


class State(dict[str, Tensor]):
    """Weights under a project's names; one that is missing is the user's error, not ours."""

    def __init__(self, tensors: Mapping[str, Tensor], project: str) -> None:
        super().__init__(tensors)
        self.project = project

    def __missing__(self, name: str) -> Tensor:
        raise CheckpointError(f"the weights have no '{name[:200]}', which every whole {self.project} network has")

    def size(self, name: str, dim: int = 0) -> int:
        """One side of a tensor."""
        shape = self[name].shape
        if dim >= len(shape) or shape[dim] < 1:
            raise CheckpointError(f"'{name[:200]}' has the shape {tuple(shape)}, which no {self.project} network has")
        return shape[dim]

    def has(self, beginning: str) -> bool:
        """Whether some name begins so."""
        return any(name.startswith(beginning) for name in self)

    def numbers(self, pattern: str) -> list[int]:
        """What the first group of a pattern is, over all names, sorted; each at most 65536."""
        found = {match[1] for name in self if (match := re.match(pattern, name))}
        if any(len(number) > 5 or int(number) > 65536 for number in found):
            raise CheckpointError(f"the weights number their parts as no {self.project} network does")
        return sorted(map(int, found))


@dataclass(frozen=True)
class Names:
    """How a project writes one network.

    Args:
        project: its name, for messages.
        places: beginning of our names -> beginning of theirs.
        leaves: a word of ours in the rest of a name -> theirs.
        qkv: their name of attention's joined map, or three for q, k and v.
        rows: order of the joined map's rows.
        ones: sides of 1 that their maps of attention have behind (out, in).
        transposed: which of their names hold a matrix the other way round.
        endings: substitutions in a whole name of theirs, the last step.
        extra: what else belongs to their state dict: names -> values that follow from the config.
        ignored: which further names may stand there and say nothing of the network.
    """

    project: str
    places: Mapping[str, str]
    leaves: Mapping[str, str]
    qkv: tuple[str, ...] = ("qkv",)
    rows: str = "three heads c"
    ones: int = 0
    transposed: str = r"$."
    endings: tuple[tuple[str, str], ...] = ()
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    ignored: str = r"$."

    def theirs(self, name: str) -> tuple[str, ...]:
        """Their names of one weight of ours.

        Raises:
            ConfigError: their networks have no such part.
        """
        words = name.split(".")
        for cut in range(len(words), 0, -1):
            place = self.places.get(".".join(words[:cut]))
            if place is not None:
                rest = words[cut:]
                break
        else:
            option = next((f" ({option})" for word, option in OPTIONS.items() if word in words), "")
            raise ConfigError(f"{self.project} has no part like '{name}'{option}")
        kinds = self.qkv if "qkv" in rest else ("",)
        changed = [[kind if word == "qkv" else self.leaves.get(word, word) for word in rest] for kind in kinds]
        return tuple(self._ended(".".join([place, *end])) for end in changed)

    def _ended(self, name: str) -> str:
        for pattern, replacement in self.endings:
            name = re.sub(pattern, replacement, name)
        return name


def attention_heads(net: UNet, name: str) -> int:
    """Heads of the attention that a weight belongs to."""
    return net.get_submodule(name.partition(".qkv.")[0]).heads  # type: ignore[return-value]


def to_theirs(net: UNet, names: Names) -> dict[str, Tensor]:
    """A copy of the network's weights under a project's names."""
    state: dict[str, Tensor] = {name: value.clone() for name, value in names.extra.items()}
    for ours, value in net.state_dict().items():
        value, targets = value.detach(), names.theirs(ours)
        if ".qkv." in ours:
            heads = attention_heads(net, ours)
            value = rearrange(value, f"(three heads c) ... -> ({names.rows}) ...", three=3, heads=heads)
        for target, part in zip(targets, value.chunk(len(targets)) if len(targets) > 1 else [value], strict=True):
            if re.search(names.transposed, target) and part.ndim > 1:
                part = part.flatten(1).T
            elif part.ndim == 2 and re.search(r"\.(qkv|out)\.weight$", ours):
                part = part[(...,) + (None,) * names.ones]
            state[target] = part.clone(memory_format=torch.contiguous_format)
    return state


def _part(tensor: Tensor, name: str, shape: tuple[int, ...], names: Names) -> Tensor:
    """A tensor of theirs in our shape, from which it may differ by sides of 1 behind, or by being turned."""
    turned = len(shape) > 1 and bool(re.search(names.transposed, name))
    found = tuple(tensor.shape[::-1] if turned else tensor.shape)
    if _core(found) != _core(shape) or not tensor.is_floating_point():
        kind = f"{tuple(tensor.shape)} of {tensor.dtype}"
        raise CheckpointError(f"{name} has the shape {kind}, which does not fit {shape} of floating point here")
    return (tensor.T if turned else tensor).float().reshape(shape)


def _core(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the sides of 1 behind it."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def from_theirs(state: Mapping[str, Tensor], config: UNetConfig, names: Names) -> UNet:
    """The network of a config with a project's weights, in float32 and eval mode.

    Raises:
        CheckpointError: a weight is missing, has another shape, or is no part of the network.
    """
    with torch.device("meta"):
        net = UNet(config)
    wanted = {ours: names.theirs(ours) for ours in net.state_dict()}
    known = {name for group in wanted.values() for name in group} | names.extra.keys()
    wrong = [f"{name} is missing" for name in sorted(known - state.keys() - names.extra.keys())]
    wrong += [f"{name} is not part of it" for name in sorted(set(state) - known) if not re.search(names.ignored, name)]
    if wrong:
        raise CheckpointError(
            f"the weights are not those of the {names.project} network that they look like "
            f"({len(wrong)} differences): {'; '.join(line[:200] for line in wrong[:5])}"
        )
    tensors: dict[str, Tensor] = {}
    for ours, value in net.state_dict().items():
        shape = (value.shape[0] // len(wanted[ours]), *value.shape[1:]) if value.ndim else ()
        parts = [_part(state[name], name, shape, names) for name in wanted[ours]]
        joined = torch.cat(parts) if len(parts) > 1 else parts[0]
        if ".qkv." in ours:
            pattern = f"({names.rows}) ... -> (three heads c) ..."
            joined = rearrange(joined, pattern, three=3, heads=attention_heads(net, ours))
        tensors[ours] = joined.clone(memory_format=torch.contiguous_format)
    load_exactly(net, tensors, names.project)  # type: ignore[arg-type]
    return net.eval()
