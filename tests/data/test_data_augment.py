"""Crops: each pixel of a crop is the pixel of the picture that the coordinates say, mirrored beyond the edge."""

from __future__ import annotations

import numpy as np
import pytest

from diffunet.data.augment import coordinates, displacement, sample
from diffunet.spec import AugmentConfig, ElasticConfig

PLAIN = AugmentConfig(flip=False, rotate=False, elastic=None)
TURNED = AugmentConfig(elastic=None)
PICTURE = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)


def crop(seed: int, side: int, config: AugmentConfig, rim: int = 0, order: int = 1) -> np.ndarray:
    where = coordinates(np.random.default_rng(seed), PICTURE.shape, side, rim, config)
    return sample(PICTURE, where, order)


def windows(side: int) -> list[np.ndarray]:
    """Every window of the picture with this side."""
    view = np.lib.stride_tricks.sliding_window_view(PICTURE, (side, side))
    return list(view.reshape(-1, side, side))


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("order", [0, 1])
def test_a_plain_crop_is_a_window_pixel_by_pixel(side: int, order: int) -> None:
    for seed in range(20):
        found = crop(seed, side, PLAIN, order=order)
        assert any(np.array_equal(found, window) for window in windows(side))


def test_crops_come_from_everywhere() -> None:
    starts = {
        tuple(coordinates(np.random.default_rng(seed), PICTURE.shape, 30, 0, PLAIN)[:, 0, 0]) for seed in range(4000)
    }
    assert starts == {(r, c) for r in range(11) for c in range(21)}


def test_turned_and_flipped_crops_are_the_eight_of_the_square() -> None:
    """A crop of the whole of a square picture comes in exactly its eight positions, each about as often."""
    picture = PICTURE[:9, :9]
    eight = [np.rot90(p, k) for p in (picture, picture[:, ::-1]) for k in range(4)]
    seen = np.zeros(8, int)
    for seed in range(400):
        where = coordinates(np.random.default_rng(seed), picture.shape, 9, 0, TURNED)
        seen += [np.array_equal(sample(picture, where, 1), one) for one in eight]
    assert seen.sum() == 400
    assert seen.min() >= 25


@pytest.mark.parametrize(("config", "count"), [(PLAIN, 1), (AugmentConfig(rotate=False, elastic=None), 2)])
def test_what_is_switched_off_does_not_happen(config: AugmentConfig, count: int) -> None:
    picture = PICTURE[:9, :9]
    crops = [
        sample(picture, coordinates(np.random.default_rng(seed), picture.shape, 9, 0, config), 1) for seed in range(40)
    ]
    assert len({c.tobytes() for c in crops}) == count


def test_the_inner_square_stays_inside_and_the_rim_is_mirrored() -> None:
    for seed in range(200):
        where = coordinates(np.random.default_rng(seed), PICTURE.shape, 30, 10, PLAIN)
        inner = where[:, 10:20, 10:20]
        assert inner.min() >= 0
        assert inner[0].max() <= 39
        assert inner[1].max() <= 49
    padded = np.pad(PICTURE, 60, mode="reflect")[20:-20, 20:-20]  # 40 on each side
    found = sample(PICTURE, np.stack(np.indices((120, 130))) - 40.0, 1)
    assert np.array_equal(found, padded)


def test_a_picture_smaller_than_the_crop_goes_on_mirrored() -> None:
    small = PICTURE[:3, :2]
    found = sample(small, coordinates(np.random.default_rng(0), small.shape, 20, 4, TURNED), 1)
    assert found.shape == (20, 20)
    assert set(np.unique(found)) <= set(np.unique(small))


def test_displacements_are_smooth_and_as_large_as_they_say() -> None:
    """At the points of the grid their standard deviation is sigma; between them they bend slowly."""
    config = ElasticConfig(spacing=50.0, sigma=6.0)
    fields = np.stack([displacement(np.random.default_rng(seed), 201, config) for seed in range(300)])
    assert fields.shape == (300, 2, 201, 201)
    points = fields[:, :, ::50, ::50]
    assert points.std() == pytest.approx(6.0, rel=0.03)
    assert np.abs(np.diff(fields, axis=-1)).max() < 1.5, "pixels of movement from one pixel to the next"
    assert displacement(np.random.default_rng(0), 201, ElasticConfig(sigma=0.0)).any() == np.False_


def test_labels_are_bent_like_their_image() -> None:
    """Of a picture that is its own label, the nearest value and the interpolated one are never a pixel apart."""
    ramp = np.add.outer(np.arange(60.0), np.zeros(60))
    for seed in range(5):
        where = coordinates(np.random.default_rng(seed), ramp.shape, 40, 0, AugmentConfig())
        inside = (where >= 0).all(0) & (where <= 59).all(0)
        gap = np.abs(sample(ramp, where, 1) - sample(ramp, where, 0))
        assert gap[inside].max() <= 0.5 + 1e-9
