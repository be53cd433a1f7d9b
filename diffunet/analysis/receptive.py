"""Receptive field: how far a network can see by construction, and how far its gradient shows that it does.

By construction: one NaN in the input makes NaN of exactly those outputs that depend on it, whatever the weights. The
network is built in one dimension with two channels (axes and channels change nothing), and NaN enters at every phase of
the coarsest grid. Parts that look everywhere (group norm's statistics, self-attention, gates from a mean) are found in
the same pass, listed, and passed by, so that what remains is the reach of kernels, strides and dilations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from diffunet.analysis.parts import Part, parts_of
from diffunet.analysis.weightless import inputs
from diffunet.nn import ATTENTIONS, NETWORKS
from diffunet.spec import NetworkConfig

LINE = 128  # positions of the coarsest level at the start
POSITIONS = 2**20  # of all lines together, at most


@dataclass(frozen=True)
class Reach:
    """What one position of a part's output depends on.

    Args:
        part: the part.
        stride: input positions from one output position to the next.
        smallest, largest: width of the receptive field over all output positions, in input positions.
    """

    part: Part
    stride: int
    smallest: int
    largest: int


@dataclass(frozen=True)
class ReceptiveField:
    """Receptive field of a network and of each of its parts on the way.

    Args:
        reaches: of each part's output, in the order in which they run; the last is the network's.
        everywhere: class names of the modules that see the whole image, with how many of each there are.
        exact: every phase of the coarsest grid was tried.
    """

    reaches: list[Reach]
    everywhere: dict[str, int]
    exact: bool

    @property
    def size(self) -> int:
        """The network's largest, without the parts that see everything."""
        return self.reaches[-1].largest


def thin(config: NetworkConfig) -> NetworkConfig:
    """The same network in one dimension with two channels everywhere and nothing that it is told but the time."""

    def thinner(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: THIN.get(k, lambda old: thinner(old))(v) for k, v in value.items()}
        return [thinner(v) for v in value] if isinstance(value, list) else value

    levels = len(config.widths)
    table = thinner(config.model_dump(mode="json")) | {"channels": [2] * levels}
    return TypeAdapter(NetworkConfig).validate_python(table)


# what thinning makes of a key, wherever it stands in a config
THIN: dict[str, Callable[[Any], Any]] = {
    "dims": lambda _: 1,
    **dict.fromkeys(("in_channels", "out_channels"), lambda _: 1),
    **dict.fromkeys(("cond_channels", "vector_channels", "uncertainty_channels"), lambda _: 0),
    **dict.fromkeys(("self_conditioning", "learned_variance", "null_class"), lambda _: False),
    **dict.fromkeys(("num_classes", "stem_channels", "group_channels", "heads", "head_channels"), lambda _: None),
    "base_channels": lambda _: 2,
    "groups": lambda _: 1,
    "checkpoint_levels": lambda _: [],
}


class TooShort(Exception):
    """NaN came so far that what is local cannot be told from what is not."""


class Spread:
    """Forward hooks that note where NaN goes, and stop what spreads it everywhere."""

    def __init__(self, net: nn.Module) -> None:
        # a part with two convolutions reaches so far at most: what fills as many clean positions sees everything
        self.reach = max([LINE // 2, *(4 * m.dilation[0] * (m.kernel_size[0] - 1) for m in convolutions(net))])
        self.everywhere: dict[str, int] = {}
        self.seen: dict[Part, Tensor] = {}
        looks: dict[str, nn.Module] = {path: m for path, m in net.named_modules() if type(m) in ATTENTIONS.values()}
        for module in looks.values():
            if looks_everywhere(module, self.reach):
                self._note(module)
                module.forward = nn.Identity().forward  # its cost would be the square of the line
        for path, part in parts_of(net).items():
            if not path.startswith(tuple(f"{look}." for look in looks)):  # within an attention the axes are others
                net.get_submodule(path).register_forward_hook(partial(self._leave, part))

    def _note(self, module: nn.Module) -> None:
        name = type(module).__name__
        self.everywhere[name] = self.everywhere.get(name, 0) + 1

    def _leave(self, part: Part, module: nn.Module, args: Any, out: Any) -> Tensor | None:
        if not isinstance(out, Tensor) or out.ndim != 3:
            return None
        before, behind = hit(args[0]), hit(out)
        if (~before).sum(dim=-1).min() < self.reach:
            raise TooShort
        passed = None
        if behind.all():
            self._note(module)
            behind = before
            passed = torch.where(before, torch.nan, torch.ones_like(out))
        self.seen[part] = behind
        return passed


def convolutions(net: nn.Module) -> list[Any]:
    """The convolutions of a network."""
    return [module for module in net.modules() if isinstance(module, nn.modules.conv._ConvNd)]


def looks_everywhere(module: nn.Module, reach: int) -> bool:
    """Whether one NaN in the middle of a line of two channels comes out at every position."""
    x = torch.ones(1, 2, 1 + reach)
    x[..., reach // 2] = torch.nan
    return bool(hit(module(x)).all())


def hit(x: Tensor) -> Tensor:
    """Positions (B, 1, L) of x (B, C, L) where any channel is NaN."""
    return x.sum(dim=1, keepdim=True).isnan()


def receptive_field(config: NetworkConfig) -> ReceptiveField:
    """The receptive field of a network by construction.

    Of very deep networks (more than seven levels) only some phases are tried; the largest may be a little larger then.
    """
    line, period = thin(config), 2 ** (len(config.widths) - 1)
    length = LINE * period
    while True:
        try:
            return _spread(line, period, length)
        except TooShort:
            length *= 2


@torch.no_grad()
def _spread(line: NetworkConfig, period: int, least: int) -> ReceptiveField:
    """NaN at each phase of the middle of a line.

    Raises:
        TooShort: a longer line is needed.
    """
    net: nn.Module = NETWORKS.build(line).eval()
    spread = Spread(net)
    length = _length(line, period, max(least, 4 * spread.reach))
    phase = torch.arange(0, period, max(1, period * length // POSITIONS))
    told = inputs(line, len(phase), (length,))
    told["x"][torch.arange(len(phase)), :, length // 2 + phase] = torch.nan
    net(**told)
    reaches = [_reach(part, hits[:, 0], phase, period, length) for part, hits in spread.seen.items() if hits.any()]
    return ReceptiveField(reaches, spread.everywhere, exact=len(phase) == period)


def _length(line: NetworkConfig, period: int, least: int) -> int:
    """A length of at least so many that stays even on the way down, where valid convolutions take their borders."""
    border = 4 if getattr(line, "padding", "") == "valid" else 0
    return least + (-least) % period + sum(border * 2**level for level in range(len(line.widths) - 1))


def _reach(part: Part, hits: Tensor, phase: Tensor, period: int, length: int) -> Reach:
    """Widths of what the positions of an output see.

    Args:
        part: what gave the output.
        hits: (phases, L) positions of the output that see the input position of each phase.
        phase: those input positions; period: of the coarsest grid; length: of the input.
    """
    out_length = hits.shape[1]
    first = hits.int().argmax(dim=1)
    last = out_length - 1 - hits.flip(1).int().argmax(dim=1)
    if first.min() == 0 or last.max() == out_length - 1:
        raise TooShort
    stride = 2 ** round(math.log2(length / out_length))
    repeats = period // stride  # in positions of the output; what happens repeats
    # input position phase + period * m reaches output positions first + repeats * m to last + repeats * m
    position = torch.arange(repeats)[:, None]
    earliest = phase + period * torch.ceil((position - last) / repeats).long()
    latest = phase + period * torch.floor((position - first) / repeats).long()
    widths = latest.amax(dim=1) - earliest.amin(dim=1) + 1
    return Reach(part, stride, int(widths.min()), int(widths.max()))
