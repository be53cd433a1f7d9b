"""The drawings of a report: SVG text that takes its colours from the page, so that light and dark both fit.

Matplotlib draws with stand-in colours, which are then replaced by `currentColor` and CSS variables.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from diffunet.report.curves import Series, column, running_median, thinned
from diffunet.report.overfit import Verdict
from diffunet.report.reading import Run, number, table
from diffunet.report.words import plain

INK, FAINT = "#010101", "#010102"
COLOURS = {INK: "currentColor", FAINT: "var(--faint)"}
COLOURS |= {f"#0201{i:02x}": f"var(--c{i})" for i in range(4)} | {f"#0202{i:02x}": f"var(--b{i})" for i in range(10)}
C = [f"#0201{i:02x}" for i in range(4)]  # of different things
B = [f"#0202{i:02x}" for i in range(10)]  # of the ten bins, in order
MIB = 2**20
WIDE, NARROW = (9.2, 3.0), (4.5, 2.4)  # inches


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    curve: Series
    colour: str
    label: str | None = None
    width: float = 1.4
    alpha: float = 1.0
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """A drawing that is still to be made.

    Attributes:
        title: what is shown.
        lines: its curves; the empty ones are left out.
        size: width and height in inches.
        marks: step -> what happened there.
        ratio: whether equal ratios look equal (a logarithmic axis), where the values allow it.
        note: a sentence below.
    """

    title: str
    lines: tuple[Line, ...]
    size: tuple[float, float] = NARROW
    marks: dict[int, str] = field(default_factory=dict)
    ratio: bool = False
    note: str = ""

    @property
    def known(self) -> tuple[Line, ...]:
        """The curves that have values."""
        return tuple(line for line in self.lines if len(line.curve))


def matplotlib() -> ModuleType | None:
    """The library (extra `plot`), where it is installed."""
    try:
        import matplotlib.figure
    except ImportError:
        return None
    return matplotlib


def charts_of(run: Run, verdict: Verdict) -> list[Chart]:
    """Every drawing that the metrics of a run allow."""
    found = [chart for make in CHARTS for chart in make(run, verdict)]
    return [chart for chart in found if chart.known]


def _loss(run: Run, verdict: Verdict) -> list[Chart]:
    raw = column(run.records, "loss")
    held_out, seen = (column(run.records, name, "loss") for name in ("held_out", "seen"))
    gap = Series(held_out.step, held_out.value - seen.at(held_out.step)) if len(seen) else seen
    since = verdict.since
    marks = {} if since is None or verdict.best is None else {verdict.best: "least", since: "over-fits"}
    main = Chart(
        "Loss",
        (
            Line(thinned(raw), C[0], "each step", 0.6, 0.3),
            Line(running_median(raw), C[0], "its running median"),
            Line(thinned(held_out), C[1], "held-out images", 1.6, dots=True),
            Line(thinned(seen), C[2], "as many training images", 1.6, dots=True),
        ),
        WIDE,
        marks,
        ratio=True,
    )
    note = "The held-out loss less the loss on as many training images, with the same noises and times."
    return [main, Chart("Gap", (Line(thinned(gap), C[1], dots=True),), marks=marks, note=note)]


def _bins(run: Run, verdict: Verdict) -> list[Chart]:
    titles = {"held_out": "Held-out loss by noise", "seen": "Loss on training images by noise"}
    found = []
    for name, title in titles.items():
        curves = [thinned(column(run.records, name, "bins", b)) for b in range(10)]
        words = {0: "least noise", 9: "most noise"}
        lines = tuple(Line(curve, B[b], words.get(b), 1.2) for b, curve in enumerate(curves))
        found.append(Chart(title, lines, ratio=True, note="One line for each tenth of the training times."))
    return found


def _dice(run: Run, verdict: Verdict) -> list[Chart]:
    newest = next((table(r["held_out"]) for r in reversed(run.records) if "held_out" in r), {})
    names = list(table(newest.get("dice")))[:10]
    lines = tuple(Line(thinned(column(run.records, "held_out", "dice", n)), B[i], n) for i, n in enumerate(names))
    error = thinned(column(run.records, "held_out", "pixel_error"))
    return [Chart("Dice of held-out images", lines), Chart("Pixel error of held-out images", (Line(error, C[1]),))]


def _engine(run: Run, verdict: Verdict) -> list[Chart]:
    records = run.records
    rate, norm = column(records, "lr"), column(records, "grad_norm")
    took, waited = column(records, "seconds"), column(records, "data_seconds")
    batch = number(table(run.config.get("train")).get("batch_size"))
    positive = took.value > 0
    images = Series(took.step[positive], batch / took.value[positive])
    images = images if np.isfinite(batch) else Series(images.step[:0], images.value[:0])
    shares = Series(took.step[positive], np.clip(100 * waited.at(took.step[positive]) / took.value[positive], 0, 100))
    shares = shares if len(waited) else Series(images.step[:0], images.value[:0])
    memory, noise = column(records, "memory"), column(records, "noise_scale")
    memory = Series(memory.step, memory.value / MIB)
    smooth = running_median
    return [
        Chart("Learning rate", (Line(thinned(rate, 400), C[0]),)),
        Chart(
            "Gradient norm",
            (Line(thinned(norm, 400), C[0], None, 0.6, 0.3), Line(smooth(norm), C[0])),
            ratio=True,
        ),
        Chart("Images a second", (Line(thinned(smooth(images)), C[2]),), note="Running median over the steps alone."),
        Chart("Share of the time that waited for data (%)", (Line(thinned(smooth(shares)), C[3]),)),
        Chart("Peak memory (MiB)", (Line(thinned(memory), C[3]),)),
        Chart("Gradient noise scale", (Line(smooth(noise), C[2]),), ratio=True),
    ]


CHARTS: tuple[Callable[[Run, Verdict], list[Chart]], ...] = (_loss, _bins, _dice, _engine)


def draw(chart: Chart, name: str) -> str:
    """The SVG element of a chart; `name` must differ among the charts of a page."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with rc_context(RC), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names in scripts that its own fonts lack: the browser's are used
        figure = Figure(figsize=chart.size, layout="constrained")
        axes = figure.add_subplot()
        for line in chart.known:
            axes.plot(
                line.curve.step,
                line.curve.value,
                color=line.colour,
                # a name that begins with an underscore would be left out of the legend
                label=f" {plain(line.label, 40)}" if line.label else "_",
                linewidth=line.width,
                alpha=line.alpha,
                marker="o" if line.dots and len(line.curve) < 40 else None,
                markersize=2.5,
            )
        _dress(axes, chart)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _for_page(buffer.getvalue(), name)


RC: Any = {  # Any: matplotlib types every name of a setting
    "svg.fonttype": "none",
    "svg.hashsalt": "diffunet",
    "font.size": 8,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.4,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def _dress(axes: Any, chart: Chart) -> None:
    """Axes, marks and names of a chart."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    values = np.concatenate([line.curve.value for line in chart.known])
    if chart.ratio and values.min() > 0 and values.max() > 8 * values.min():
        axes.set_yscale("log")
        few = values.max() < 1000 * values.min()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for step, word in chart.marks.items():
        axes.axvline(step, color=INK, linewidth=0.8, linestyle=":")
        axes.annotate(word, (step, 1), xycoords=("data", "axes fraction"), fontsize=7, xytext=(2, -7),
                      textcoords="offset points", color=INK)  # fmt: skip
    if any(line.label for line in chart.known):
        axes.legend(fontsize=7, loc="best" if len(values) < 500 else "upper right", handlelength=1.4)


def _for_page(svg: str, name: str) -> str:
    """An SVG file as an element of a page: no header, names of its own, the page's colours, as wide as it may be."""
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"#0[12]0[0-9a-f]{3}\b", lambda match: COLOURS.get(match[0], match[0]), text)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)  # it would rule the whole page
    return re.sub(r"font-family: [^;\"]*; ?", "", text)
