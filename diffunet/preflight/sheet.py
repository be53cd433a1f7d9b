"""The pictures of the preflight: a batch as the network sees it, with words beside and above."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffunet.denoiser import Denoiser
from diffunet.drawing import tiles, to_uint8
from diffunet.pictures import overlay

PAPER, INK = 255, 0
SMALLEST = 96  # pixels of a tile's longer side, so that words fit above it
LINE, GAP, LEFT = 14, 3, 100


def enlarged(tile: np.ndarray) -> np.ndarray:
    """A tile (H, W, c) uint8 in RGB, small ones a whole number of times larger."""
    colour = np.broadcast_to(tile[..., :3], (*tile.shape[:2], 3))
    times = max(1, -(-SMALLEST // max(tile.shape[:2])))
    return colour.repeat(times, axis=0).repeat(times, axis=1)


def sheet(rows: Sequence[Sequence[np.ndarray]], beside: Sequence[str], above: Sequence[str]) -> np.ndarray:
    """Tiles of one size, (H, W, c) uint8, in rows as one RGB picture; a word beside each row, lines above each column.

    Args:
        rows: the tiles.
        beside: one word a row.
        above: the text above each column; lines end in a newline.
    """
    large = [[enlarged(tile) for tile in row] for row in rows]
    height, width = large[0][0].shape[:2]
    top = LINE * (1 + max(text.count("\n") for text in above)) + GAP
    size = (LEFT + len(above) * (width + GAP), top + len(rows) * (height + GAP))
    page = Image.new("RGB", size, (PAPER, PAPER, PAPER))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default()
    for column, text in enumerate(above):
        pen.multiline_text((LEFT + column * (width + GAP), 1), text, fill=(INK, INK, INK), font=font, spacing=2)
    for number, (row, word) in enumerate(zip(large, beside, strict=True)):
        down = top + number * (height + GAP)
        pen.text((2, down + height // 2 - LINE // 2), word[: LEFT // 6], fill=(INK, INK, INK), font=font)
        for column, tile in enumerate(row):
            page.paste(Image.fromarray(tile), (LEFT + column * (width + GAP), down))
    return np.asarray(page)


def at_levels(den: Denoiser, x0: Tensor, eps: Tensor, times: Tensor, words: Sequence[str]) -> np.ndarray:
    """Images x0 (B, C, *S) with noise eps in one row each: clean first, then at every time, as one RGB picture.

    x_t is divided by alpha + 2 sigma, so that the images and two deviations of the noise fit into [-1, 1] on every
    schedule.

    Args:
        den: says alpha and sigma.
        x0, eps: the batch.
        times: (K,) in [0, 1].
        words: one for each image.
    """
    columns, above = [tiles(x0)], ["clean\n"]
    for t in times:
        _, alpha, sigma = den.levels(t, x0)
        columns.append(tiles((alpha * x0 + sigma * eps) / (alpha + 2 * sigma)))
        logsnr = den.schedule.logsnr(t)
        above.append(f"t = {float(t):.3f}\nlogSNR {float(logsnr):.1f}")
    return sheet([list(row) for row in zip(*columns, strict=True)], words, above)


def with_classes(images: Tensor, classes: Tensor) -> np.ndarray:
    """Crops (B, C, H, W) in [-1, 1] and their classes (B, H', W') laid over the middle of them, as one RGB picture."""
    shown = [p[..., :1] if p.shape[-1] == 2 else p[..., :3] for p in to_uint8(images)]
    rows = []
    for picture, label in zip(shown, classes.cpu().numpy(), strict=True):
        rim = [(a - b) // 2 for a, b in zip(picture.shape[:2], label.shape, strict=True)]
        inside = tuple(slice(r, r + side) for r, side in zip(rim, label.shape, strict=True))
        coloured = np.array(np.broadcast_to(picture, (*picture.shape[:2], 3)))
        coloured[inside] = overlay(picture[inside], label)
        rows.append([picture, coloured])
    return sheet(rows, [f"crop {i}" for i in range(len(rows))], ["image", "classes"])


def words_of(labels: Tensor | None, classes: Sequence[str] | None, count: int) -> list[str]:
    """The class name of each image; the row beyond the classes is the null one."""
    if labels is None or classes is None:
        return [str(i) for i in range(count)]
    return [(*classes, "(no class)")[int(label)] for label in torch.as_tensor(labels)[:count]]
