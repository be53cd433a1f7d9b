"""What samples look like: signals as curves, images as they are, volumes as slices; grids of all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffunet import save
from diffunet.cli import main
from diffunet.drawing import COLOURS, DRAWERS, HEIGHT, WIDTH, is_picture, tiles
from diffunet.pictures import grid, png
from diffunet.spec import DataInfo
from tests import tiny

SHAPES = [(1, 1), (1, 9), (3, 700), (1, 4, 6), (2, 4, 6), (3, 5, 5), (4, 5, 5), (7, 3, 2), (1, 3, 5, 4), (2, 6, 1, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_tiles_that_a_file_can_hold(shape: tuple[int, ...]) -> None:
    samples = torch.randn(3, *shape) * 3  # noise beyond [-1, 1], as a preflight draws
    drawn = tiles(samples)
    assert drawn.dtype == np.uint8
    assert drawn.shape[0] == 3
    assert png(grid(samples)).startswith(b"\x89PNG")
    assert (drawn.shape[1:] == (*shape[1:], shape[0])) == is_picture(shape)


def test_there_is_a_drawer_for_every_number_of_sides() -> None:
    assert set(DRAWERS) == {1, 2, 3}


# --- signals ----------------------------------------------------------------------------------------------------------


def row_of(tile: np.ndarray, column: int, colour: np.ndarray) -> float:
    """Where a curve of a colour crosses a column: the mean row, weighted by how much of its hue each pixel has."""
    pixels, hue = (value - value.mean(-1, keepdims=True) for value in (tile[:, column].astype(float), colour))
    strength = np.linalg.norm(pixels, axis=-1)
    likeness = pixels @ hue / (np.maximum(strength, 1e-9) * np.linalg.norm(hue))
    weight = np.where(likeness > 0.98, strength, 0)  # paper and axis are grey and have no hue
    return float((weight * np.arange(len(tile))).sum() / weight.sum())


def test_a_curve_rises_with_its_values_at_one_scale() -> None:
    levels = torch.linspace(-0.8, 0.8, 33)
    drawn = tiles(torch.stack([levels[None], levels[None] / 2]))
    assert drawn.shape == (2, HEIGHT, WIDTH, 3)
    for tile, reach in zip(drawn, (0.8, 0.4), strict=True):
        for share in (0.1, 0.3, 0.7, 0.9):
            expected = (1 - reach * (2 * share - 1)) / 2 * (HEIGHT - 1)
            assert row_of(tile, round(share * (WIDTH - 1)), COLOURS[1]) == pytest.approx(expected, abs=1.0)


def test_leads_have_colours_of_their_own_and_what_is_too_large_stays_on_the_edge() -> None:
    (tile,) = tiles(torch.stack([torch.full((5,), level) for level in (9.0, -9.0, 0.5)])[None])
    assert row_of(tile, 70, COLOURS[1]) <= 1
    assert row_of(tile, 70, COLOURS[2]) >= HEIGHT - 2
    assert row_of(tile, 70, COLOURS[3]) == pytest.approx(HEIGHT / 4, abs=1)


def test_a_signal_of_one_value_is_a_level_line() -> None:
    (tile,) = tiles(torch.tensor([[[0.5]]]))
    assert row_of(tile, 3, COLOURS[1]) == row_of(tile, WIDTH - 3, COLOURS[1])


# --- volumes and many channels ----------------------------------------------------------------------------------------


def test_a_volume_is_shown_by_its_three_middle_slices() -> None:
    volume = torch.zeros(1, 1, 5, 4, 3)
    volume[0, 0, 2] = -1  # depth: black, the first slice
    volume[0, 0, :, 2] = 1  # height: white, the second
    (tile,) = tiles(volume)
    assert tile.shape == (5, 3 + 3 + 4, 1)
    first, second, third = tile[:4, :3, 0], tile[:, 3:6, 0], tile[:, 6:, 0]
    assert (first[[0, 1, 3]] == 0).all()
    assert (first[2] == 255).all()
    assert (second == 255).all()
    assert (third[2, [0, 1, 3]] == 0).all()
    assert (third[:, 2] == 255).all()
    assert (tile[4, :3] == 0).all()  # below a slice that is not as tall


def test_channels_that_no_picture_has_stand_side_by_side() -> None:
    samples = torch.stack([torch.full((2, 3), level) for level in (-1.0, 1.0)])[None]
    assert tiles(samples)[0, :, :, 0].tolist() == [[0, 0, 0, 255, 255, 255]] * 2
    volumes = torch.stack([torch.full((2, 2, 2), level) for level in (-1.0, 1.0)])[None]
    assert tiles(volumes)[0, :, 0, 0].tolist() == [0, 0, 255, 255]


# --- the commands that use them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dims", "shape"), [(1, (2, 16)), (3, (1, 4, 6, 8))])
def test_signals_and_volumes_are_sampled_to_pictures_and_arrays(
    tmp_path: Path, dims: int, shape: tuple[int, ...]
) -> None:
    den = tiny.denoiser(dims=dims, in_channels=shape[0], out_channels=shape[0])
    den.data = DataInfo(shape=shape)
    save(den, tmp_path / "w.safetensors")
    flags = ["sample", str(tmp_path / "w.safetensors"), "--n=3", "--steps=2"]
    assert main([*flags, "--trajectory", "--out", str(tmp_path / "many")]) == 0
    names = {"grid.png", "samples.npz", "trajectory.gif", "trajectory.png"}
    assert {path.name for path in (tmp_path / "many").iterdir()} == names
    with np.load(tmp_path / "many" / "samples.npz") as file:
        assert file["arr_0"].shape == (3, *shape[1:], shape[0])
    assert main([*flags, "--out", str(tmp_path / "grid.png")]) == 0
    assert (tmp_path / "grid.png").read_bytes() == (tmp_path / "many" / "grid.png").read_bytes()
    with Image.open(tmp_path / "many" / "trajectory.png") as strip:
        strip.load()
        assert strip.width <= 4200
