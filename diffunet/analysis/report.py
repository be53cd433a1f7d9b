"""What `diffunet inspect` says: sections, each as text and as JSON values, made one by one from a subject."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

from diffunet.analysis.cost import Cost, Rung, Saving, Summary, as_json, bottleneck, share, summarize
from diffunet.analysis.diagram import draw_network
from diffunet.analysis.parts import Part
from diffunet.analysis.probes import Probe
from diffunet.analysis.trace import ROLES
from diffunet.spec import NetworkConfig


@dataclass(frozen=True)
class Subject:
    """What is inspected.

    Args:
        name: how it was asked for.
        probe: config, sides of an image, and the trained network if there is one.
        batch: images at once.
        seeds: how many random inputs (and weights) an effective receptive field is averaged over.
        time: also measure seconds where a section can.
    """

    name: str
    probe: Probe
    batch: int = 1
    seeds: int = 4
    time: bool = False


@dataclass(frozen=True)
class Section:
    """One answer: text for people, values for programs, and how to draw pictures (file name -> figure)."""

    text: str
    values: Any
    pictures: dict[str, Callable[[], Any]] = field(default_factory=dict)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns with aligned ends; the first `left` of them begin, the others end together."""
    cells = [list(heads), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def size(shape: Sequence[int]) -> str:
    """(3, 32, 32) as 3x32x32."""
    return "x".join(map(str, shape)) if shape else "-"


def mega(value: float) -> str:
    """Millions."""
    return f"{value / 1e6:,.1f}"


def percent(value: int, total: int) -> str:
    """Share with one decimal."""
    return f"{share(value, total):.1f}"


# --- cost ------------------------------------------------------------------------------------------------------------


def summary_of(subject: Subject) -> Summary:
    """The counted network of a subject."""
    return summarize(subject.probe.config, subject.batch, subject.probe.sides)


def cost(subject: Subject, summary: Summary) -> Section:
    """Parts, roles and the ladder of sizes."""
    config, total = subject.probe.config, summary.total
    shape = (config.in_channels, *subject.probe.sides)
    head = [
        f"{subject.name}: {config.kind}, {config.dims}-D, {total.parameters:,} parameters",
        f"{size(shape)} in, {size(summary.gives)} out: {total.macs // subject.batch:,} multiply-accumulates (MACs)",
        f"batch of {subject.batch}: {total.macs:,} MACs, {2 * total.macs:,} flops; "
        f"{mega(total.kept)} MB of activations kept for the backward pass",
    ]
    parts = [_part_row(part, cost, summary) for part, cost in summary.parts.items()]
    parts.append(["total", "", "", *_cost_cells(total, total)])
    roles = [[ROLES[role], *_cost_cells(cost, total)[:4]] for role, cost in summary.roles.items()]
    text = [
        *head,
        "",
        table(PART_HEADS, parts, left=3),
        "",
        table(["what they are for", *PART_HEADS[3:7]], roles),
        "",
        "sizes     " + _ladder(summary.ladder, lambda rung: [_side(sides) for sides in rung.sides]),
        "channels  " + _ladder(summary.ladder, lambda rung: [str(width) for width in rung.channels]),
    ]
    values = as_json(summary) | {"name": subject.name, "batch": subject.batch, "takes": list(shape)}
    subtitle = f"{total.parameters:,} parameters, {mega(total.macs / subject.batch)} M multiply-accumulates an image"
    drawing = partial(draw_network, summary, subject.name, subtitle, _operators(config))
    return Section("\n".join(text), values, {"diagram.svg": drawing, "diagram.png": drawing})


def _operators(config: NetworkConfig) -> dict[str, str]:
    """What the legend calls the operators; those that a network has not are left out."""
    kinds = {
        way: [part.kind for part in getattr(config, f"{way}s", None) or (getattr(config, way),)]
        for way in ("down", "up")
    } | {
        "skip": [config.skip.kind],
    }
    said = {way: ", ".join(dict.fromkeys(k for k in names if k != "none")) for way, names in kinds.items()}
    return {way: f"{way}: {names.replace('_', ' ')}" for way, names in said.items() if names}


PART_HEADS = ("part", "in", "out", "parameters", "%", "MACs / 10^6", "%", "kept MB", "%")


def _part_row(part: Part, cost: Cost, summary: Summary) -> list[str]:
    shape = summary.shapes.get(part)
    reads = " + ".join([size(s[:1]) for s in shape.reads[:-1]] + [size(shape.reads[-1])]) if shape else "-"
    return [part.name, reads, size(shape.gives) if shape else "-", *_cost_cells(cost, summary.total)]


def _cost_cells(cost: Cost, total: Cost) -> list[str]:
    return [
        f"{cost.parameters:,}",
        percent(cost.parameters, total.parameters),
        mega(cost.macs),
        percent(cost.macs, total.macs),
        mega(cost.kept),
        percent(cost.kept, total.kept),
    ]


def _side(sides: tuple[int, ...]) -> str:
    return str(sides[0]) if len(set(sides)) == 1 else size(sides)


def _ladder(rungs: list[Rung], of: Callable[[Rung], list[str]]) -> str:
    """Each rung once through its values; values that repeat are said once."""
    return " / ".join(" ".join(text for text, _ in groupby(of(rung))) for rung in rungs)


# --- skips -----------------------------------------------------------------------------------------------------------


def joins(subject: Subject, summary: Summary) -> Section:
    """What a bottleneck behind each join saves."""
    savings = bottleneck(subject.probe.config, subject.batch, subject.probe.sides, summary)
    if not savings:
        return Section("no skips", [])
    narrow = subject.probe.config.skip.kind == "bottleneck"
    total = Saving(-1, (), sum((s.wide for s in savings), Cost()), sum((s.narrow for s in savings), Cost()))
    rows = [[f"level {s.level}", " ".join(map(str, s.joins)), *_saving_cells(s)] for s in savings]
    rows.append(["total", "", *_saving_cells(total)])
    saved = total.wide - total.narrow
    text = [
        f"joins of the way up: {'the bottlenecks save' if narrow else 'a 1x1 bottleneck behind each would save'} "
        f"{saved.macs:,} MACs and {saved.parameters:,} parameters",
        "(the 3x3 behind a join reads 2C channels, 18 C^2; with 2C to C by 1x1 before it, 2 C^2 + 9 C^2)",
        table(["up", "channels joined", "parameters", "narrow", "MACs / 10^6", "narrow", "saved %"], rows, left=2),
    ]
    values = [
        {"level": s.level, "joins": list(s.joins)}
        | {name: {"parameters": c.parameters, "macs": c.macs} for name, c in (("wide", s.wide), ("narrow", s.narrow))}
        for s in savings
    ]
    return Section("\n".join(text), {"levels": values, "saved": {"parameters": saved.parameters, "macs": saved.macs}})


def _saving_cells(saving: Saving) -> list[str]:
    wide, narrow = saving.wide, saving.narrow
    return [
        f"{wide.parameters:,}",
        f"{narrow.parameters:,}",
        mega(wide.macs),
        mega(narrow.macs),
        percent(wide.macs - narrow.macs, wide.macs),
    ]
