"""From samples in [-1, 1] to pictures: grids, PNG and GIF files. What one sample looks like is in drawing.py."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from diffunet.drawing import COLOURS, MODES, tiles, to_uint8
from diffunet.errors import ConfigError
from diffunet.storage import write_file

__all__ = ["beside", "grid", "overlay", "picture", "png", "save_gif", "save_mask", "save_png", "to_uint8"]


def picture(image: np.ndarray) -> Image.Image:
    """A Pillow image of (H, W, C) uint8.

    Raises:
        ConfigError: a number of channels that no picture has.
    """
    channels = image.shape[-1]
    if image.ndim != 3 or channels not in MODES:
        raise ConfigError(f"an array of shape {image.shape} is no picture (1, 3 or 4 channels); write .npz instead")
    return Image.fromarray(image[..., 0] if channels == 1 else image, MODES[channels])


def grid(images: Tensor, columns: int | None = None, gap: int = 1) -> np.ndarray:
    """Lay (N, C, *S) in [-1, 1] out as one (H', W', c) uint8 picture, row by row; small images are enlarged.

    Signals are drawn as curves and volumes as three slices: see `diffunet.drawing.tiles`.
    """
    drawn = tiles(images)
    n, height, width, channels = drawn.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, dtype=np.uint8)
    for i, tile in enumerate(drawn):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    scale = max(1, min(8, 512 // max(sheet.shape[:2])))
    return sheet.repeat(scale, axis=0).repeat(scale, axis=1)


def png(image: np.ndarray) -> bytes:
    """(H, W, C) uint8 as PNG bytes."""
    buffer = io.BytesIO()
    picture(image).save(buffer, format="PNG")
    return buffer.getvalue()


def save_png(image: np.ndarray, path: Path) -> None:
    """Write (H, W, C) uint8 as one PNG file, complete or not at all."""
    write_file(path, png(image))


def save_mask(values: np.ndarray, path: Path) -> None:
    """Write label values (H, W), uint8 or uint16, as one grey PNG file that keeps them as they are."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    write_file(path, buffer.getvalue())


def save_gif(frames: Sequence[np.ndarray], path: Path, milliseconds: int = 80) -> None:
    """Write frames (H, W, C) uint8 as an endless GIF that rests on its last frame."""
    pictures = [picture(frame) for frame in frames]
    buffer = io.BytesIO()
    durations = [milliseconds] * (len(pictures) - 1) + [1500]
    pictures[0].save(
        buffer, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, disposal=2
    )
    write_file(path, buffer.getvalue())


def overlay(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """A picture (H, W, C) uint8 of 1 or 3 channels with each class (H, W) laid over it in a colour of its own."""
    colour = COLOURS[classes % len(COLOURS)]
    return (0.6 * np.broadcast_to(image, colour.shape) + 0.4 * colour).round().astype(np.uint8)


def beside(rows: Sequence[Sequence[np.ndarray]], gap: int = 2) -> np.ndarray:
    """Lay pictures (H, W, 1 or 3) out in rows as one RGB picture; they may differ in size."""
    sides = [(max(p.shape[0] for p in row), sum(p.shape[1] + gap for p in row)) for row in rows]
    sheet = np.full((sum(h + gap for h, _ in sides), max(w for _, w in sides), 3), 255, dtype=np.uint8)
    top = 0
    for row, (height, _) in zip(rows, sides, strict=True):
        left = 0
        for p in row:
            sheet[top : top + p.shape[0], left : left + p.shape[1]] = p
            left += p.shape[1] + gap
        top += height + gap
    return sheet
