"""The border weights are equation 2 of the 2015 paper, whatever way they are computed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from diffunet.data.border import balanced, border_weights, cells_of, two_distances
from diffunet.spec import BorderConfig

ONES = np.ones(2)


def blobs(seed: int, side: int = 60) -> np.ndarray:
    """Random cells (1) with background (0) between them."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((side, side)), 2.5)
    return (noise > 0.03).astype(np.uint8)


def by_hand(classes: np.ndarray, config: BorderConfig) -> np.ndarray:
    """The formula, with a distance to each border pixel of each cell."""
    cells, count = ndimage.label(classes)
    rows, columns = np.indices(classes.shape)
    distances = []
    for number in range(1, count + 1):
        inside = cells == number
        border = np.argwhere(inside & ~ndimage.binary_erosion(inside, border_value=1))
        squares = [(rows - r) ** 2 + (columns - c) ** 2 for r, c in border]
        if squares:
            distances.append(np.sqrt(np.min(squares, axis=0)))
    d1, d2 = np.sort(distances, axis=0)[:2]
    return 1 + config.w0 * np.exp(-((d1 + d2) ** 2) / (2 * config.sigma**2))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_weights_are_the_formula_on_random_cells(seed: int) -> None:
    """To 1e-6, though only what is near each cell is looked at."""
    classes, config = blobs(seed), BorderConfig(w0=10.0, sigma=3.0)
    assert cells_of(classes, 0)[1] > 5
    assert border_weights(classes, config, 0, ONES) == pytest.approx(by_hand(classes, config), abs=1e-6)


def test_between_two_straight_cells_the_weight_is_that_of_their_gap() -> None:
    """Everywhere in a gap of g background pixels d1 + d2 = g + 1."""
    classes = np.ones((9, 40), np.uint8)
    classes[:, 18:22] = 0
    weights = border_weights(classes, BorderConfig(), 0, ONES)
    expected = 1 + 10 * math.exp(-(5**2) / (2 * 5**2))
    assert weights[:, 18:22] == pytest.approx(np.full((9, 4), expected), abs=1e-6)
    assert weights[4, 0] < 1.1


def test_fewer_than_two_cells_have_no_border_weight() -> None:
    one = np.zeros((20, 20), np.uint8)
    one[5:9, 5:9] = 1
    for classes in (one, one * 0, one * 0 + 1):
        assert (border_weights(classes, BorderConfig(), 0, ONES) == 1).all()


def test_the_edge_of_the_picture_is_no_border() -> None:
    classes = np.ones((7, 30), np.uint8)
    classes[:, 10] = 0
    distances = two_distances(*cells_of(classes, 0), reach=100.0)
    assert distances[0][3, 0] == 9, "the border is the last column before the background, not the picture's edge"
    assert distances[1][3, 0] == 11


def test_cells_of_several_classes_are_separate_though_they_touch() -> None:
    classes = np.zeros((4, 9), np.uint8)
    classes[:, 1:4], classes[:, 4:7] = 1, 2
    numbers, count = cells_of(classes, 0)
    assert count == 2
    assert len(np.unique(numbers[classes == 1])) == len(np.unique(numbers[classes == 2])) == 1
    assert (numbers[classes == 0] == 0).all()
    assert cells_of(classes, None)[1] == 4, "without a background every class has cells"


def test_balanced_classes_weigh_the_same_in_all_and_pixels_one_on_average() -> None:
    counts = np.array([100, 300, 0, 600])
    weights = balanced(counts)
    assert (weights * counts)[[0, 1, 3]] == pytest.approx([1000 / 3] * 3)
    assert (weights * counts).sum() == pytest.approx(counts.sum())
    assert np.isfinite(weights).all()
    label = np.array([[0, 1], [1, 1]])
    flat = border_weights(label, BorderConfig(w0=0.0), None, np.array([2.0, 2 / 3]))
    assert flat.tolist() == [[2.0, pytest.approx(2 / 3)], [pytest.approx(2 / 3)] * 2]
