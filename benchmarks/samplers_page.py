"""The page of benchmarks/samplers.py: tables, winners, and a picture of error against network calls."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from diffunet import compat

matplotlib.use("Agg")
from matplotlib import pyplot

Cells = dict[str, dict[int, dict[str, list[float]]]]  # sampler -> budget -> metric -> values
DEFAULT = "arc"
TITLES = {
    ("mixture", "distribution"): "sliced Wasserstein distance to the truth",
    ("mixture", "flow"): "distance from the exact flow",
    ("model", "distribution"): "Frechet distance (random_conv features)",
    ("model", "flow"): "distance from a fine solution",
}


def title(target: str, metric: str) -> str:
    """What a table shows."""
    return f"{target}: {TITLES['mixture' if target.startswith('mixtures') else 'model', metric]}"


def value(target: str, metric: str, values: list[float]) -> float:
    """The figure of a cell: the Frechet distance of all images, or a mean over mixtures or images."""
    resampled = metric == "distribution" and not target.startswith("mixtures")
    return values[0] if resampled else float(np.mean(values))


def behind(target: str, metric: str, one: list[float], other: list[float]) -> float:
    """By how many standard errors of the paired difference `one` is larger than `other`."""
    difference = np.array(one) - np.array(other)
    if metric == "distribution" and not target.startswith("mixtures"):
        mean, error = difference[0], difference[1:].std(ddof=1)
    else:
        mean, error = difference.mean(), difference.std(ddof=1) / math.sqrt(len(difference))
    return 0.0 if mean <= 0 else float(mean / max(error, 1e-300))


def column(cells: Cells, budget: int, metric: str) -> dict[str, list[float]]:
    """Sampler -> values of one column, without the floor and whatever has no such figure."""
    rows = {name: row[budget][metric] for name, row in cells.items() if name != "floor" and budget in row}
    return {name: values for name, values in rows.items() if values and np.isfinite(values).all()}


def standing(target: str, metric: str, rows: dict[str, list[float]]) -> tuple[str, dict[str, float]]:
    """The best of a column, and how many standard errors each is behind it."""
    best = min(rows, key=lambda name: value(target, metric, rows[name]))
    return best, {name: behind(target, metric, values, rows[best]) for name, values in rows.items()}


def number(x: float) -> str:
    """Three digits."""
    return f"{x:.3g}" if x < 1000 else f"{x:.0f}"


def table(target: str, metric: str, cells: Cells, budgets: tuple[int, ...]) -> list[str]:
    """One table: the best of each column bold, what is within two standard errors of it marked ~."""
    columns = {b: column(cells, b, metric) for b in budgets}
    standings = {b: standing(target, metric, rows) for b, rows in columns.items() if rows}
    names = [name for name in cells if any(name in rows for rows in columns.values())]
    lines = [f"### {title(target, metric)}", ""]
    if metric == "distribution":
        floor = value(target, metric, cells["floor"][0][metric])
        lines += [f"Floor: {number(floor)}.", ""]
    lines += ["| sampler | " + " | ".join(map(str, budgets)) + " |", "|---" * (len(budgets) + 1) + "|"]
    for name in names:
        row = []
        for b in budgets:
            if name not in columns[b]:
                row.append("-")
                continue
            best, far = standings[b]
            text = number(value(target, metric, columns[b][name]))
            row.append(f"**{text}**" if name == best else f"{text} ~" if far[name] < 2 else text)
        lines.append(f"| {name.replace('Scheduler', '')} | " + " | ".join(row) + " |")
    return [*lines, ""]


def reached(target: str, metric: str, cells: Cells, ours: float) -> str:
    """Words for a distance to the data that is no larger than what real data, or the exact flow, leave."""
    if metric != "distribution":
        return ""
    floor = value(target, metric, cells["floor"][0][metric])
    return f", below the floor of {number(floor)}" if ours <= floor else f", floor {number(floor)}"


def winners(tables: dict[str, Cells], budgets: tuple[int, ...]) -> list[str]:
    """Who is first in each column, and where the default stands."""
    lines = ["| column | " + " | ".join(map(str, budgets)) + " |", "|---" * (len(budgets) + 1) + "|"]
    for target, cells in tables.items():
        for metric in ("distribution", "flow"):
            row = []
            for b in budgets:
                rows = column(cells, b, metric)
                best, far = standing(target, metric, rows)
                ours, least = (value(target, metric, rows[name]) for name in (DEFAULT, best))
                place = "" if far[DEFAULT] == 0 else f" (arc within noise, x{ours / least:.2f})"
                if far[DEFAULT] >= 2:
                    beyond = f"{far[DEFAULT]:.1f} standard errors" + reached(target, metric, cells, ours)
                    place = f" (arc x{ours / least:.2f}, {beyond})"
                row.append(best.replace("Scheduler", "") + place)
            lines.append(f"| {title(target, metric)} | " + " | ".join(row) + " |")
    return lines


def picture(tables: dict[str, Cells], budgets: tuple[int, ...], path: Path) -> None:
    """Both metrics of every target against network calls: the default, ours, theirs."""
    figure, axes = pyplot.subplots(2, len(tables), figsize=(4 * len(tables), 7), dpi=110, layout="constrained")
    for (target, cells), pair in zip(tables.items(), np.reshape(axes, (2, -1)).T, strict=True):
        for metric, axis in zip(("distribution", "flow"), pair, strict=True):
            for name in cells:
                points = [(b, rows[name]) for b in budgets if name in (rows := column(cells, b, metric))]
                if not points:
                    continue
                theirs = "Scheduler" in name
                style: dict[str, Any] = {"color": "0.75" if theirs else "tab:blue", "linewidth": 0.7}
                if name == DEFAULT:
                    style = {"color": "tab:red", "linewidth": 2.2, "zorder": 3, "label": "arc (the default)"}
                axis.plot([b for b, _ in points], [value(target, metric, v) for _, v in points], **style)
            if metric == "distribution":
                axis.axhline(value(target, metric, cells["floor"][0][metric]), color="k", linestyle=":", label="floor")
            axis.set(xscale="log", yscale="log", title=title(target, metric).replace(": ", "\n"))
            axis.set_xticks(budgets, [str(b) for b in budgets], minor=False)
            axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
            axis.grid(alpha=0.3)
    for axis in np.reshape(axes, (2, -1))[1]:
        axis.set_xlabel("network calls")
    first = np.reshape(axes, (2, -1))[0, 0]
    first.plot([], [], color="tab:blue", label="others of ours")
    first.plot([], [], color="0.75", label="diffusers")
    first.legend(frameon=False, fontsize=8)
    figure.savefig(path)
    pyplot.close(figure)


def rounded(numbers: Any) -> Any:
    """The same tables with five digits of every number."""
    if isinstance(numbers, dict):
        return {key: rounded(value) for key, value in numbers.items()}
    return [float(f"{x:.5g}") for x in numbers]


def write(tables: dict[str, Cells], budgets: tuple[int, ...], folder: Path, **facts: Any) -> None:
    """samplers.md, samplers.png and samplers.json in a folder; facts fill the gaps of samplers_intro.md."""
    summary = "\n".join(winners(tables, budgets))
    picture(tables, budgets, folder / "samplers.png")
    (folder / "samplers.json").write_text(json.dumps(rounded(tables), separators=(",", ":")) + "\n")
    versions = f"torch {torch.__version__}, diffusers {compat.diffusers().__version__}, {platform.machine()}"
    text = (Path(__file__).parent / "samplers_intro.md").read_text().format(versions=versions, **facts)
    lines = [text.rstrip(), "", "## Who is first", "", summary, "", "## Every sampler", ""]
    for target, cells in tables.items():
        for metric in ("distribution", "flow"):
            lines += table(target, metric, cells, budgets)
    (folder / "samplers.md").write_text("\n".join(lines).rstrip() + "\n")
