"""What every part of a network costs, from one trace: parameters, multiplications, memory; by part and by role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from diffunet.analysis.parts import Part
from diffunet.analysis.trace import ROLES, Shape, Trace
from diffunet.analysis.weightless import inputs, weightless
from diffunet.spec import BottleneckSkip, ConcatSkip, NetworkConfig


@dataclass(frozen=True)
class Cost:
    """Costs of one part, or of several.

    Args:
        parameters: trained values.
        macs: multiply-accumulates of one forward pass of the batch.
        kept: bytes that a training forward pass leaves alive for the backward pass.
    """

    parameters: int = 0
    macs: int = 0
    kept: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.macs + other.macs, self.kept + other.kept)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.parameters - other.parameters, self.macs - other.macs, self.kept - other.kept)


@dataclass(frozen=True)
class Rung:
    """One level on one way: sides and channels as they change from convolution to convolution."""

    way: str
    level: int
    sides: tuple[tuple[int, ...], ...]
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Summary:
    """A network at one size.

    Args:
        gives: (C, *S) of the output.
        parts: cost of each part, in the order in which they run.
        shapes: what each part reads and gives.
        roles: cost of each role of ROLES.
        joins: level -> channels of each of its joins.
        ladder: of each level on each way its sides and widths from convolution to convolution.
    """

    gives: tuple[int, ...]
    parts: dict[Part, Cost]
    shapes: dict[Part, Shape]
    roles: dict[str, Cost]
    joins: dict[int, tuple[int, ...]]
    ladder: list[Rung]

    @property
    def total(self) -> Cost:
        """Sum over all parts, and over all roles."""
        return sum(self.parts.values(), Cost())

    def way_up(self, level: int) -> Cost:
        """Cost of the joins and blocks of one level on the way up."""
        return sum((c for p, c in self.parts.items() if p.level == level and p.role in UP and p.way == "up"), Cost())


def summarize(config: NetworkConfig, batch: int, sides: tuple[int, ...]) -> Summary:
    """Count a network without allocating it.

    Args:
        config: of a UNet or ClassicUNet.
        batch: images in the batch.
        sides: of the input, one number for each of the config's dims.

    Raises:
        ValueError: the network cannot take images of these sides.
    """
    with weightless(config) as net:
        told = inputs(config, batch, sides)
        with Trace(net).watching(told) as trace:
            out = net(**told)
        gives, parts, roles = tuple(out.shape[1:]), _parts(net, trace), _roles(net, trace)
    joins = {level: tuple(channels) for level, channels in trace.joins.items()}
    return Summary(gives, parts, trace.shapes, roles, joins, _ladder(trace))


def _parts(net: nn.Module, trace: Trace) -> dict[Part, Cost]:
    costs = {part: Cost() for part in trace.shapes}
    owned = [(trace.owner(name), Cost(parameters=p.numel())) for name, p in net.named_parameters()]
    multiplied = [(op.part, Cost(macs=op.macs)) for op in trace.ops]
    for part, cost in [*owned, *multiplied, *((part, Cost(kept=size)) for part, size in trace.kept().items())]:
        costs[part] = costs.get(part, Cost()) + cost
    return costs


def _roles(net: nn.Module, trace: Trace) -> dict[str, Cost]:
    """Costs by role; parameters go where the first operation of their module goes, norms with the features."""
    role_of = {op.path: op.role for op in reversed(trace.ops)}
    costs = {role: Cost() for role in ROLES}
    for op in trace.ops:
        costs[op.role] += Cost(macs=op.macs)
    for name, parameter in net.named_parameters():
        role = trace.owner(name).role
        rest = REST.get(role, role)
        costs[role_of.get(name.rpartition(".")[0], rest)] += Cost(parameters=parameter.numel())
    return {role: cost for role, cost in costs.items() if cost != Cost()}


UP = ("skips", "blocks")
# where the parameters of a part belong that multiply nothing by a matrix (norms, gains)
REST = {"blocks": "features", "skips": "skip fusion", "attention": "1x1"}


def _ladder(trace: Trace) -> list[Rung]:
    rungs: list[Rung] = []
    for part, shape in trace.shapes.items():
        if part.role != "blocks" or part.level is None:
            continue
        seen = [op for op in trace.ops if op.part == part and op.kernel > 1]
        sides = [shape.reads[0][1:], *(op.sides for op in seen)]
        channels = [shape.reads[0][0], *(op.gives for op in seen)]
        rungs.append(Rung(part.way, part.level, tuple(sides), tuple(channels)))
    return rungs


# --- what a bottleneck behind each join would save -------------------------------------------------------------------


@dataclass(frozen=True)
class Saving:
    """One level of the way up with joined channels read by a 3x3 convolution, and with a 1x1 to half of them before.

    Args:
        level: 0 is full resolution.
        joins: channels of each join.
        wide: cost of its joins and blocks with plain joins; narrow: with bottlenecks.
    """

    level: int
    joins: tuple[int, ...]
    wide: Cost
    narrow: Cost


def bottleneck(config: NetworkConfig, batch: int, sides: tuple[int, ...], summary: Summary) -> list[Saving]:
    """What a 1x1 convolution from 2C to C channels behind each join saves; both networks are really built.

    Where the joined 2C channels go into a 3x3 convolution to C that is 18 C^2 multiplications a position; with a
    bottleneck it is 2 C^2 + 9 C^2, and the residual shortcut, 2 C^2 before, needs no convolution any more.

    Args:
        config, batch, sides: as for `summarize`.
        summary: of this config; one that has a bottleneck is held against plain concatenation.
    """
    narrow = config.skip.kind == "bottleneck"
    other = config.model_copy(update={"skip": ConcatSkip() if narrow else BottleneckSkip()})
    pair = [summary, summarize(other, batch, sides)]
    wide, narrowed = reversed(pair) if narrow else pair
    return [
        Saving(level, wide.joins[level], wide.way_up(level), narrowed.way_up(level))
        for level in sorted(wide.joins, reverse=True)
    ]


def share(value: int, total: int) -> float:
    """Per cent."""
    return 100 * value / total if total else 0.0


def as_json(summary: Summary) -> dict[str, Any]:
    """The summary as JSON values."""

    def row(cost: Cost) -> dict[str, Any]:
        return {"parameters": cost.parameters, "macs": cost.macs, "kept_bytes": cost.kept}

    return {
        "gives": list(summary.gives),
        "total": row(summary.total),
        "parts": [
            {
                "name": part.name,
                "role": part.role,
                "reads": [list(s) for s in summary.shapes[part].reads] if part in summary.shapes else [],
                "gives": list(summary.shapes[part].gives) if part in summary.shapes else [],
                **row(cost),
            }
            for part, cost in summary.parts.items()
        ],
        "roles": {role: row(cost) for role, cost in summary.roles.items()},
        "ladder": [vars(rung) for rung in summary.ladder],
    }
