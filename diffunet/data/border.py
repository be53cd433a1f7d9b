"""The pixel weights of the 2015 paper, made once for each label image."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from diffunet.spec import BorderConfig

FAR = 6.0  # in sigmas: exp(-6^2 / 2) is 1.5e-8, below what a float32 weight near 1 can show


def two_distances(cells: np.ndarray, count: int, reach: float) -> np.ndarray:
    """Distances (2, H, W) of each pixel to the borders of the nearest two cells; infinity beyond `reach`.

    Args:
        cells: (H, W), 0 for none, else the number of a cell, up to `count`.
        count: how many cells there are.
        reach: pixels.
    """
    nearest = np.full((2, *cells.shape), np.inf)
    margin = int(np.ceil(reach))
    for number, box in enumerate(ndimage.find_objects(cells, count), start=1):
        if box is None:
            continue
        # a cell and all that lies within reach of it: nothing further away can change
        near = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in box)
        inside = cells[near] == number
        # the picture's edge is no border of a cell that it cuts
        border = inside & ~ndimage.binary_erosion(inside, border_value=1)
        if not border.any():
            continue
        distance = ndimage.distance_transform_edt(~border)
        distance[distance > reach] = np.inf
        first, second = nearest[0][near], nearest[1][near]
        nearest[1][near] = np.minimum(second, np.maximum(first, distance))
        nearest[0][near] = np.minimum(first, distance)
    return nearest


def cells_of(classes: np.ndarray, background: int | None) -> tuple[np.ndarray, int]:
    """Number the cells: the connected pixels (side by side) of one class that is not `background`."""
    numbers, count = np.zeros(classes.shape, np.int32), 0
    for value in np.unique(classes):
        if value == background:
            continue
        found, more = ndimage.label(classes == value)
        numbers[found > 0] = found[found > 0] + count
        count += more
    return numbers, count


def border_weights(
    classes: np.ndarray, config: BorderConfig, background: int | None, class_weights: np.ndarray
) -> np.ndarray:
    """w = w_c + w0 exp(-(d1 + d2)^2 / (2 sigma^2)), float32 (H, W) (1505.04597, eq. 2).

    Args:
        classes: (H, W), 0 .. K - 1.
        config: w0 and sigma.
        background: the class that is no cell; None where there is none.
        class_weights: (K,), w_c.
    """
    cells, count = cells_of(classes, background)
    d1, d2 = two_distances(cells, count, FAR * config.sigma)
    near = config.w0 * np.exp(-((d1 + d2) ** 2) / (2 * config.sigma**2))
    return (class_weights[classes] + near).astype(np.float32)


def balanced(counts: np.ndarray) -> np.ndarray:
    """w_c = N / (K N_c): the classes that occur share the weight evenly, and its mean over the pixels is 1."""
    present = counts > 0
    weights = np.ones(len(counts))
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights
