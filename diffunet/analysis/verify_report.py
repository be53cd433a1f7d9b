"""What `diffunet verify` says: a table of samplers, what is off, notes on a run, and a picture of errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from diffunet.analysis.figures import INK, PALE, new_figure
from diffunet.analysis.report import table
from diffunet.analysis.verify import Curve, Row, Verification
from diffunet.denoiser import Denoiser
from diffunet.predictions import PREDICTIONS

HEADS = ("sampler", "claims", "shows", "calls", "own grid", "best grid", "worst grid")
ALL_HEADS = ("sampler", "prediction", "spacing", "claims", "shows", "calls", "error", "with fewer steps", "")
SAME = 1e-6  # relative; curves that differ by less are one line
BAD = "#c2410c"


def as_json(results: Sequence[Verification]) -> dict[str, Any]:
    """All rows and curves as plain values."""
    return {
        "passed": all(result.passed for result in results),
        "rows": [asdict(row) for result in results for row in result.rows],
        "curves": [
            {"schedule": result.schedule.config.kind} | asdict(curve) for result in results for curve in result.curves
        ],
        "left_out": {result.schedule.config.kind: result.left_out for result in results if result.left_out},
        "coarse": {result.schedule.config.kind: list(result.coarse) for result in results if result.coarse},
    }


def text(result: Verification, everything: bool = False) -> str:
    """One schedule: a line for each sampler, or for each row; and what is off."""
    rows, off = result.rows, [row for row in result.rows if row.wrong]
    samplers, predictions, spacings = (
        list(dict.fromkeys(getattr(row, key) for row in rows)) for key in ("sampler", "prediction", "spacing")
    )
    verdict = f"{len(off)} of {len(rows)} rows are OFF" if off else f"all {len(rows)} rows are right"
    begins = {name: float(result.schedule.grid(result.effort.many, name)[0]) for name in spacings}
    late = [f"{name} (at {t:.3g})" for name, t in begins.items() if t < 1]
    head = [
        f"{result.schedule}: {verdict} ({result.seconds:.0f} s)",
        f"{len(samplers)} samplers; from {', '.join(predictions)}; over {', '.join(spacings)}",
        *(f"left out: {why}" for why in result.left_out.values()),
        *([f"begins below t = 1, though from pure noise: {', '.join(late)}"] if late else []),
        *([f"coarse here, and so not held against a sampler: {', '.join(result.coarse)}"] if result.coarse else []),
        "",
    ]
    body = every_row(result) if everything else summary(result, samplers)
    return "\n".join([*head, body, *complaints(off, predictions, spacings)])


def summary(result: Verification, samplers: Sequence[str]) -> str:
    """A line for each sampler: its order, and its error on its own, its best and its worst grid."""
    lines = []
    for name in samplers:
        # a row from each grid; predictions differ by rounding only, and where not, that is a complaint
        of = {row.spacing: row for row in result.rows if row.sampler == name}
        ranked = sorted(of.values(), key=lambda row: row.error)
        own = of.get(result.own_spacing(name), ranked[0])
        cells = [f"{row.error:.1e} {row.spacing}" for row in (own, ranked[0], ranked[-1])]
        lines.append([name, claim(own), shown(own), str(own.calls), *cells])
    explained = (
        "claims, shows: order of convergence. own, best, worst grid: error after "
        f"{result.effort.many} steps, in units of the data,\n"
        "which is the distance to the probability flow (on a Gaussian and a mixture) or, of samplers\n"
        "with noise, the distance of the Gaussian that they make to the right one."
    )
    return f"{table(HEADS, lines, left=len(HEADS))}\n\n{explained}"


def every_row(result: Verification) -> str:
    """A line for each row."""
    lines = [
        [
            *(row.sampler, row.prediction, row.spacing, claim(row), shown(row), str(row.calls)),
            *(f"{row.error:.1e}", f"{row.before:.1e}", "OFF" if row.wrong else ""),
        ]
        for row in result.rows
    ]
    return table(ALL_HEADS, lines, left=3)


def claim(row: Row) -> str:
    """The order that a sampler claims."""
    return "-" if row.order_declared is None else str(row.order_declared)


def shown(row: Row) -> str:
    """The order that it shows."""
    return "-" if row.order_measured is None else f"{row.order_measured:.2f}"


def complaints(off: Sequence[Row], predictions: Sequence[str], spacings: Sequence[str]) -> list[str]:
    """What is off: a line for each sampler and kind of fault, with where it was seen."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in off:
        for kind in row.wrong:
            groups.setdefault((row.sampler, kind), []).append(row)
    lines = []
    for (sampler, kind), rows in groups.items():
        worst = max(rows, key=lambda row: row.error)
        seen = [
            among("predictions", [row.prediction for row in rows], predictions),
            among("spacings", [row.spacing for row in rows], spacings),
        ]
        lines.append(f"  {sampler}: {worst.wrong[kind]} ({', '.join(seen)})")
    return ["", "OFF:", *lines] if lines else []


def among(what: str, seen: Sequence[str], known: Sequence[str]) -> str:
    """The names seen, or that it is all of them."""
    names = list(dict.fromkeys(seen))
    return f"all {what}" if len(names) == len(known) > 1 else " ".join(names)


def notes(den: Denoiser) -> list[str]:
    """What a model's own process means for its samples: what the network is told, where sampling starts, the threshold.

    Args:
        den: of a run; its network is not called.
    """
    schedule, data = den.schedule, torch.linspace(-1, 1, 101)[None]
    times = torch.linspace(schedule.t_min, 1, 1000, dtype=torch.float64)
    told = schedule.network_time(times)
    falls = "" if bool((told.diff() > 0).all()) else "; NOT in rising order, so that it cannot tell times apart"
    left = schedule.alpha(1.0) / schedule.sigma(1.0)
    alpha, sigma = (torch.tensor(level, dtype=torch.float64) for level in (schedule.alpha(1.0), schedule.sigma(1.0)))
    factor = float(PREDICTIONS[den.prediction]().x0_weight(alpha, sigma).sqrt())
    cut = float((den.threshold(data) - data).abs().max())
    start = (
        f"sampling starts from pure noise; a signal of 1 would have left {left:.2g} of the noise's size there"
        if left
        else "sampling starts from pure noise, where the process ends (no signal is left)"
    )
    threshold = {
        True: "no threshold" if den.clip is None else "the threshold leaves images in [-1, 1] as they are",
        False: f"the threshold CHANGES images in [-1, 1] by up to {cut:.2g}: samples cannot be like the data",
    }[cut < 1e-6]
    return [
        f"the network guesses {den.prediction} and is told {float(told[0]):.4g} to {float(told[-1]):.4g} for the times "
        f"{schedule.t_min:.4g} to 1{falls}",
        f"{start} (logSNR {-math.inf if left == 0 else 2 * math.log(left):.3g})",
        f"an error of its guess at t = 1 is {factor:.3g} times as large in the clean estimate; {threshold}",
    ]


# --- the picture -----------------------------------------------------------------------------------------------------


def merged(curves: Sequence[Curve]) -> list[tuple[str, Curve]]:
    """Curves under their names; samplers that are one method here share a line."""
    groups: list[tuple[list[str], Curve]] = []
    for curve in curves:
        for names, known in groups:
            if curve.calls == known.calls and all(
                math.isclose(a, b, rel_tol=SAME) for a, b in zip(curve.errors, known.errors, strict=True)
            ):
                names.append(curve.sampler)
                break
        else:
            groups.append(([curve.sampler], curve))
    return [(" = ".join(names), curve) for names, curve in groups]


def draw(results: Sequence[Verification]) -> Any:
    """Error against calls of the network, both logarithmic: a panel for each schedule.

    Raises:
        UserError: matplotlib is missing.
    """
    import matplotlib

    columns = min(3, len(results))
    lines = -(-len(results) // columns)
    figure = new_figure(*((8.6, 5.4) if len(results) == 1 else (4.4 * columns + 2.6, 3.7 * lines)))
    figure.set_layout_engine("constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    names = list(dict.fromkeys(curve.sampler for result in results for curve in result.curves))
    colours = dict(
        zip(names, matplotlib.colormaps["turbo"].resampled(max(2, len(names)))(range(len(names))), strict=True)
    )
    drawn: dict[str, Any] = {}
    for axes, result in zip(grid, results, strict=False):
        _panel(axes, result, colours, drawn)
    for axes in grid[len(results) :]:
        axes.set_visible(False)
    figure.legend(
        *(list(drawn.values()), list(drawn)), loc="outside right upper", frameon=False, fontsize=8, labelcolor=INK
    )
    return figure


def _panel(axes: Any, result: Verification, colours: dict[str, Any], drawn: dict[str, Any]) -> None:
    curves = merged(result.curves)
    for place, (label, curve) in enumerate(curves):
        style = {"color": colours[curve.sampler], "linestyle": "--" if curve.noisy else "-"}
        mark = {"marker": MARKS[place % len(MARKS)], "markersize": 3.5}
        (line,) = axes.plot(curve.calls, curve.errors, **style, **mark, linewidth=1.2)
        drawn.setdefault(f"{label}{' (noise)' if curve.noisy else ''}", line)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(result.schedule.config.kind, color=INK if result.passed else BAD, fontsize=11)
    axes.set_xlabel("calls of the network", color=INK, fontsize=9)
    axes.set_ylabel("error of what comes out, data = 1", color=INK, fontsize=9)
    axes.grid(True, which="major", color=PALE, alpha=0.25, linewidth=0.6)
    axes.tick_params(colors=PALE, labelsize=8, which="both")
    ticks = [4, 8, 16, 32, 64, 128, 256]
    axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    for spine in axes.spines.values():
        spine.set_color(PALE)


MARKS = "os^vD"
