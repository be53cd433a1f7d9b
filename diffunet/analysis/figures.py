"""Pictures: making and writing them, and where a gradient comes from."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from diffunet.analysis.probes import EffectiveField
from diffunet.errors import UserError
from diffunet.storage import write_file

INK, PALE = "#27313b", "#7c8894"


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures need matplotlib: pip install 'diffunet[plot]', or leave out --out") from None
    return Figure(figsize=(width, height), facecolor="white")


def write_figure(figure: Any, path: Path) -> Path:
    """Write a figure in the format of its suffix, whole or not at all; the same figure gives the same bytes."""
    import matplotlib

    buffer, suffix = io.BytesIO(), path.suffix[1:]
    # neither date nor version, so that equal networks give equal files
    unsaid = {"svg": {"Date": None}, "png": {"Software": None}}[suffix]
    with matplotlib.rc_context({"svg.hashsalt": "diffunet"}):
        figure.savefig(buffer, format=suffix, dpi=160, bbox_inches="tight", pad_inches=0.25, metadata=unsaid)
    write_file(path, buffer.getvalue())
    return path


def draw_field(field: EffectiveField, title: str, reach: int) -> Any:
    """A picture of an effective receptive field: the map in 2-D (and, summed over depth, 3-D), a curve in 1-D.

    Args:
        field: the measured one.
        title: name of the network.
        reach: width of the receptive field by construction.
    """
    figure = new_figure(6.4, 5.4)
    axes = figure.add_subplot()
    (DRAWINGS[min(field.share.ndim, 2)])(axes, field, reach)
    axes.set_title(f"{title}: effective receptive field", color=INK, fontsize=12, pad=12)
    for spine in axes.spines.values():
        spine.set_color(PALE)
    axes.tick_params(colors=PALE, labelsize=8)
    return figure


def _curve(axes: Any, field: EffectiveField, reach: int) -> None:
    share = field.share
    positions = torch.arange(len(share)) - len(share) // 2
    axes.fill_between(positions, share, color="#4f86c6", alpha=0.35, linewidth=0)
    axes.plot(positions, share, color="#4f86c6", linewidth=1.2)
    for part, radius in field.radii.items():
        for end in (-radius, radius):
            axes.axvline(end, color=CIRCLES[part], linewidth=1.2)
        axes.plot([], [], color=CIRCLES[part], label=f"{part:.0%} within {radius:.3g}")
    axes.set_xlabel(f"positions from the centre; by construction {reach}", color=INK)
    axes.set_ylabel("share of the gradient", color=INK)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)


def _map(axes: Any, field: EffectiveField, reach: int) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Circle, Rectangle

    share = field.share.sum(dim=tuple(range(field.share.ndim - 2))) if field.share.ndim > 2 else field.share
    share = share / share.max()
    height, width = share.shape
    extent = (-(width // 2) - 0.5, width - width // 2 - 0.5, height - height // 2 - 0.5, -(height // 2) - 0.5)
    shown = share.clamp(min=LOWEST)
    image = axes.imshow(shown, cmap="magma", norm=LogNorm(LOWEST, 1), extent=extent, interpolation="nearest")
    for part, radius in field.radii.items():
        axes.add_patch(Circle((0, 0), radius + 0.5, fill=False, color=CIRCLES[part], linewidth=1.6))
        axes.plot([], [], color=CIRCLES[part], label=f"{part:.0%} of the gradient within {radius:.3g}")
    if reach <= min(height, width):
        corner = -(reach // 2) - 0.5
        axes.add_patch(
            Rectangle((corner, corner), reach, reach, fill=False, color="white", linestyle=":", linewidth=1.4)
        )
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])
    axes.plot([], [], color=PALE, linestyle=":", label=f"by construction {reach} x {reach}")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=1, frameon=False, fontsize=9, labelcolor=INK)
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("size of the gradient, largest = 1", color=INK, fontsize=9)
    bar.ax.tick_params(colors=PALE, labelsize=8)
    bar.outline.set_visible(False)


LOWEST = 1e-4
CIRCLES = {0.5: "#38d39f", 0.95: "#4fb3ff"}
DRAWINGS = {1: _curve, 2: _map}
