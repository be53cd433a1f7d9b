"""Crops of a picture, flipped, turned and bent, as one table of coordinates, so that each pixel is sampled once.

Beyond the picture's edge it goes on mirrored (the edge pixel itself is not repeated), as in 1505.04597.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import ndimage

from diffunet.spec import AugmentConfig, ElasticConfig


@lru_cache(maxsize=8)
def _spline(side: int, points: int) -> np.ndarray:
    """The matrix (side, points) that draws a cubic spline through evenly spaced values (mirrored at both ends)."""
    place = np.linspace(0, points - 1, side)
    columns = [ndimage.map_coordinates(row, [place], order=3, mode="mirror") for row in np.eye(points)]
    return np.stack(columns, axis=1)


def displacement(random: np.random.Generator, side: int, config: ElasticConfig) -> np.ndarray:
    """A smooth displacement (2, side, side) in pixels: normal at the points of a grid, a cubic spline between them."""
    points = max(2, round(side / config.spacing) + 1)
    spline = _spline(side, points)
    return spline @ (random.standard_normal((2, points, points)) * config.sigma) @ spline.T


def coordinates(
    random: np.random.Generator, size: tuple[int, int], side: int, rim: int, config: AugmentConfig
) -> np.ndarray:
    """Where in a picture of `size` the pixels (2, side, side) of one random crop lie.

    The inner square, without `rim` pixels on each side, lies inside the picture where that is large enough: for valid
    convolutions it is what the network answers for, and the rim is what it sees beyond.
    """
    inner = side - 2 * rim
    starts = [random.integers(min(0, n - inner), max(0, n - inner), endpoint=True) - rim for n in size]
    offsets = np.arange(side) - (side - 1) / 2
    grid = np.stack(np.meshgrid(offsets, offsets, indexing="ij"))
    if config.elastic is not None:
        grid = grid + displacement(random, side, config.elastic)
    turns, flip = random.integers(4), random.integers(2)
    if config.rotate:
        for _ in range(turns):
            grid = np.stack([grid[1], -grid[0]])
    if config.flip and flip:
        grid = np.stack([grid[0], -grid[1]])
    centre = np.array([start + (side - 1) / 2 for start in starts])
    return grid + centre[:, None, None]


def sample(picture: np.ndarray, where: np.ndarray, order: int) -> np.ndarray:
    """The values of a picture (H, W) at coordinates (2, ...): order 1 linear, order 0 the nearest pixel."""
    return ndimage.map_coordinates(picture, where, order=order, mode="mirror", prefilter=False)
