"""One picture for each sample, whatever its number of sides: curves of a signal, an image, three slices of a volume.

Samples are (N, C, *S) in [-1, 1]; what lies outside is clipped. Tiles are (N, H, W, c) uint8, c = 1, 3 or 4.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
COLOURS = np.array(
    [[214, 39, 40], [31, 119, 180], [44, 160, 44], [255, 127, 14], [148, 103, 189], [23, 190, 207], [227, 119, 194]]
)
HEIGHT, WIDTH = 72, 144  # of the picture of a signal
_FINER = 4  # times larger while it is drawn, so that slanted lines come out smooth
_PAPER, _AXIS = (243, 243, 243), (205, 205, 205)


def to_uint8(images: Tensor) -> np.ndarray:
    """Values of (N, C, *S) in [-1, 1] as (N, *S, C) uint8; -1 is 0 and 1 is 255."""
    levels = ((images.float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    return np.ascontiguousarray(np.moveaxis(levels, 1, -1))


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether a sample of shape (C, *S) is a picture as it stands, so that its tile holds all of its values."""
    return len(shape) == 3 and shape[0] in MODES


def _signal(values: np.ndarray) -> np.ndarray:
    """(C, L) in [-1, 1] as curves over a line at 0, one colour a channel; every tile has the same scale."""
    height, width = HEIGHT * _FINER, WIDTH * _FINER
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.line([(0, height / 2), (width, height / 2)], fill=_AXIS, width=_FINER)
    across = np.linspace(0, width - 1, values.shape[1]) if values.shape[1] > 1 else np.array([0.0, width - 1.0])
    down = (1 - np.clip(values, -1, 1)) / 2 * (height - 1)
    for channel, curve in enumerate(np.broadcast_to(down, (len(values), len(across)))):
        colour = COLOURS[(channel + 1) % len(COLOURS)]  # a single curve is blue
        pen.line([*zip(across.tolist(), curve.tolist(), strict=True)], fill=tuple(colour.tolist()), width=_FINER + 2)
    return np.asarray(sheet.reduce(_FINER))


def _signals(samples: Tensor) -> np.ndarray:
    """(N, C, L) as curves."""
    return np.stack([_signal(sample) for sample in samples.float().cpu().numpy()])


def _images(samples: Tensor) -> np.ndarray:
    """(N, C, H, W) as it stands, or its channels side by side in grey where no picture has so many."""
    levels = to_uint8(samples)
    return levels if samples.shape[1] in MODES else rearrange(levels, "n h w c -> n h (c w) 1")


def _volumes(samples: Tensor) -> np.ndarray:
    """(N, C, D, H, W) as the slices through its middle across depth, height and width side by side; a row a channel."""
    levels = to_uint8(samples)
    depth, height, width = (side // 2 for side in levels.shape[1:4])
    slices = [levels[:, depth], levels[:, :, height], levels[:, :, :, width]]
    tall = max(part.shape[1] for part in slices)
    padded = [np.pad(part, [(0, 0), (0, tall - part.shape[1]), (0, 0), (0, 0)]) for part in slices]
    return rearrange(np.concatenate(padded, axis=2), "n h w c -> n (c h) w 1")


# by the number of sides
DRAWERS: dict[int, Callable[[Tensor], np.ndarray]] = {1: _signals, 2: _images, 3: _volumes}


def tiles(samples: Tensor) -> np.ndarray:
    """Pictures (N, H, W, c) uint8 of samples (N, C, *S) in [-1, 1] with one to three sides, c = 1, 3 or 4."""
    return DRAWERS[samples.ndim - 2](samples)
