"""A drawing of the U: a row for each level, a slab for each block, with sizes, widths, skips and attention."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from diffunet.analysis.cost import Summary
from diffunet.analysis.figures import INK, PALE, new_figure
from diffunet.analysis.parts import Part

COLOURS = {
    "block": "#4f86c6",
    "attention": "#f2a541",
    "stem and head": "#b9c4ce",
    "skip": "#8a97a5",
    "down": "#d1495b",
    "up": "#3d9970",
}
LINES: dict[str, Any] = {"skip": (0, (4, 2))}
# between slabs, between rows, of a step inwards, least length of a skip
GAP, BETWEEN, STAIR, SKIP = 0.05, 0.5, 0.4, 1.7
NARROW, WIDE, LOW, HIGH = 0.12, 0.34, 0.3, 1.1  # of slabs


@dataclass(frozen=True)
class Group:
    """The slabs of one level on one way, (kind, width) in a row, where they stand, and what is said of them.

    `resamples` says whether an operator lies between this level and the one below.
    """

    slabs: tuple[tuple[str, float], ...]
    x: float
    y: float
    height: float
    channels: str
    sides: str
    resamples: bool

    @property
    def right(self) -> float:
        """Right end."""
        return self.x + _length(self.slabs)


def _length(slabs: tuple[tuple[str, float], ...]) -> float:
    return sum(width for _, width in slabs) + GAP * max(0, len(slabs) - 1)


class Layout:
    """Where everything stands: the way down at the left, the way up at the right, the bottom below them."""

    def __init__(self, summary: Summary) -> None:
        self.summary = summary
        of = [part for part in summary.shapes if part.level is not None]
        self.widest = max(summary.shapes[part].gives[0] for part in of)
        self.finest = max(summary.shapes[part].gives[1] for part in of)
        rows = sorted({part.level or 0 for part in of if part.way == "up" and part.role == "blocks"})
        last = 1 + max(rows, default=-1)
        # the deepest level has either blocks on both ways and more at the bottom, or is the bottom itself
        bottom = ("mid", last - 1) if self._part("mid", last - 1) else ("down", last)
        middle = self._slabs(*bottom)
        pairs = [(self._slabs("down", level), self._slabs("up", level)) for level in rows]
        needed = [_length(a) + _length(b) + SKIP + 2 * STAIR * i for i, (a, b) in enumerate(pairs)]
        self.width = max([*needed, _length(middle) + 2 * STAIR * (len(pairs) + 1)])
        self.down, self.up, y = [], [], 0.0
        for level, (a, b) in enumerate(pairs):
            height = max(self._height("down", level), self._height("up", level))
            y -= height / 2
            self.down.append(self._group(a, STAIR * level, y, "down", level))
            self.up.append(self._group(b, self.width - STAIR * level - _length(b), y, "up", level))
            y -= height / 2 + BETWEEN
        y -= self._height(*bottom) / 2
        self.bottom = self._group(middle, (self.width - _length(middle)) / 2, y, *bottom)
        self.depth = y - self.bottom.height / 2

    def _part(self, way: str, level: int, role: str = "blocks") -> Part | None:
        wanted = (way, level, role)
        return next((p for p in self.summary.shapes if (p.way, p.level, p.role) == wanted), None)

    def _slabs(self, way: str, level: int) -> tuple[tuple[str, float], ...]:
        """Blocks in a row, attention behind those that have it: behind all, between two, or behind the last."""
        blocks, attention = self._part(way, level), self._part(way, level, "attention")
        if blocks is None:
            return ()
        shape = self.summary.shapes[blocks]
        block = ("block", NARROW + WIDE * (shape.gives[0] / self.widest) ** 0.5)
        looks = self.summary.shapes[attention].modules if attention else 0
        behind = [
            looks == shape.modules or (looks > 0 and i == (0 if way == "mid" else shape.modules - 1))
            for i in range(shape.modules)
        ]
        return tuple(slab for looked in behind for slab in ([block, ("attention", NARROW)] if looked else [block]))

    def _height(self, way: str, level: int) -> float:
        blocks = self._part(way, level)
        return LOW + HIGH * (self.summary.shapes[blocks].gives[1] / self.finest) ** 0.6 if blocks else 0.0

    def _group(self, slabs: tuple[tuple[str, float], ...], x: float, y: float, way: str, level: int) -> Group:
        blocks = self._part(way, level)
        assert blocks is not None, "a row is made of blocks"
        rung = next(r for r in self.summary.ladder if (r.way, r.level) == (way, level))
        sides = [rung.sides[0], rung.sides[-1]] if rung.sides[0] != rung.sides[-1] else rung.sides[:1]
        channels = str(self.summary.shapes[blocks].gives[0])
        text = " to ".join("x".join(map(str, side)) for side in sides)
        resamples = any((p.role, p.level) == (way, level) for p in self.summary.shapes)
        return Group(slabs, x, y, self._height(way, level), channels, text, resamples)


def draw_network(summary: Summary, title: str, subtitle: str, notes: dict[str, str]) -> Any:
    """The U of a summary as a figure.

    Args:
        summary: of the network at one size.
        title, subtitle: what stands above it.
        notes: of `down`, `up`, `skip` those that there are -> what the legend says.
    """
    layout = Layout(summary)
    figure = new_figure(1.25 * (layout.width + 3.2), 1.25 * (1.6 - layout.depth))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-1.6, layout.width + 1.6)
    axes.set_ylim(layout.depth - 0.75, 0.95)
    axes.set_aspect("equal")
    axes.set_axis_off()
    for group in (*layout.down, *layout.up, layout.bottom):
        _draw_slabs(axes, group)
    _draw_labels(axes, layout)
    _draw_skips(axes, layout)
    _draw_ways(axes, layout)
    _draw_ends(axes, layout)
    middle = layout.width / 2
    axes.text(middle, 0.78, title, ha="center", va="bottom", fontsize=15, color=INK, weight="bold")
    axes.text(middle, 0.66, subtitle, ha="center", va="top", fontsize=9.5, color=PALE)
    _draw_legend(axes, layout, notes)
    return figure


def _draw_slabs(axes: Any, group: Group) -> None:
    from matplotlib.patches import FancyBboxPatch

    x = group.x
    for kind, width in group.slabs:
        shape = "round,pad=0,rounding_size=0.04"
        place = (x, group.y - group.height / 2)
        axes.add_patch(
            FancyBboxPatch(place, width, group.height, boxstyle=shape, facecolor=COLOURS[kind], edgecolor="none")
        )
        x += width + GAP


def _draw_labels(axes: Any, layout: Layout) -> None:
    """Channels and sides beside each row, outside the U."""
    for group, x, where in [
        *((g, g.x - 0.12, "right") for g in (*layout.down, layout.bottom)),
        *((g, g.right + 0.12, "left") for g in layout.up),
    ]:
        axes.text(x, group.y + 0.02, group.channels, ha=where, va="bottom", fontsize=10, color=INK, weight="bold")
        axes.text(x, group.y - 0.02, group.sides, ha=where, va="top", fontsize=8, color=PALE)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str, style: Any = "-") -> None:
    look = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.6, "linestyle": style, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=end, xytext=start, arrowprops=look | {"mutation_scale": 11})


def _draw_skips(axes: Any, layout: Layout) -> None:
    for level, (left, right) in enumerate(zip(layout.down, layout.up, strict=True)):
        _arrow(axes, (left.right + 0.08, left.y), (right.x - 0.08, right.y), COLOURS["skip"], LINES["skip"])
        count = len(layout.summary.joins.get(level, ()))
        text = f"{count} skip{'s' * (count != 1)}"
        axes.text((left.right + right.x) / 2, left.y + 0.06, text, ha="center", va="bottom", fontsize=8, color=PALE)


def _draw_ways(axes: Any, layout: Layout) -> None:
    """Arrows between the rows, each where both ends have a slab; grey where the size stays."""
    for way, groups in (("down", [*layout.down, layout.bottom]), ("up", [*layout.up, layout.bottom])):
        for above, below in pairwise(groups):
            low, high = max(above.x, below.x), min(above.right, below.right)
            top, bottom = above.y - above.height / 2 - 0.05, below.y + below.height / 2 + 0.05
            if low < high:
                ends = [((low + high) / 2, top), ((low + high) / 2, bottom)]
            else:  # the bottom stands in the middle: a slanting arrow to its nearer end
                near = below.x if above.right <= below.x else below.right
                ends = [((above.x + above.right) / 2, top), (near, bottom)]
            start, end = ends if way == "down" else ends[::-1]
            _arrow(axes, start, end, COLOURS[way if above.resamples else "stem and head"])


def _draw_ends(axes: Any, layout: Layout) -> None:
    shapes = layout.summary.shapes
    first = next(shape for part, shape in shapes.items() if part.role in ("stem", "blocks"))
    given = "x".join(map(str, first.reads[0]))
    gives = "x".join(map(str, layout.summary.gives))
    left, right = (layout.down or [layout.bottom])[0], (layout.up or [layout.bottom])[0]
    y, grey = left.y + left.height / 2 + 0.32, COLOURS["stem and head"]
    x_in, x_out = left.x + 0.1, right.right - 0.1
    axes.text(x_in - 0.55, y, given, ha="right", va="center", fontsize=9, color=INK)
    axes.text(x_out + 0.55, y, gives, ha="left", va="center", fontsize=9, color=INK)
    for start, end in (
        ((x_in - 0.5, y), (x_in, y - 0.27)),
        ((x_out, y - 0.27), (x_out + 0.5, y)),
    ):
        _arrow(axes, start, end, grey)


def _draw_legend(axes: Any, layout: Layout, notes: dict[str, str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    looks = any(kind == "attention" for g in (*layout.down, *layout.up, layout.bottom) for kind, _ in g.slabs)
    handles: list[Any] = [Patch(color=COLOURS["block"], label="block")]
    handles += [Patch(color=COLOURS["attention"], label="attention")] * looks
    for kind, text in notes.items():
        handles.append(Line2D([], [], color=COLOURS[kind], linestyle=LINES.get(kind, "-"), linewidth=1.6, label=text))
    axes.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
