"""Tiling changes nothing where a network is exact on tiles, and works at any size where it is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffunet import ClassicUNet
from diffunet.nn import NETWORKS
from diffunet.tiles import Fit, fit, loss_of, mirrored, tiled, window
from diffunet.zoo import PRESETS


def classic(levels: int = 3, padding: str = "valid", **changes: Any) -> ClassicUNet:
    """A narrow classic network with random weights."""
    fields = {"base_channels": 4, "in_channels": 2, "out_channels": 3, "levels": levels, "padding": padding}
    return ClassicUNet(**(fields | changes)).eval()


# --- mirrors ----------------------------------------------------------------------------------------------------------


def test_a_row_goes_on_mirrored_for_ever_without_its_last_pixel_twice() -> None:
    assert mirrored(-5, 8, 3).tolist() == [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]
    assert mirrored(-2, 5, 3).tolist() == [2, 1, 0, 1, 2, 1, 0]
    assert mirrored(-3, 4, 1).tolist() == [0] * 7
    assert mirrored(-2, 4, 2).tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("sides", [(9,), (6, 11), (3, 4, 5)])
def test_a_window_is_what_reflect_padding_gives(sides: tuple[int, ...]) -> None:
    image = torch.randn(2, *sides)
    pads = [2, 1] * len(sides)
    expected = torch.nn.functional.pad(image[None], pads, mode="reflect")[0]
    assert torch.equal(window(image, [-2] * len(sides), [n + 3 for n in sides]), expected)


# --- what a network takes ---------------------------------------------------------------------------------------------


def test_the_paper_s_network_takes_572_and_loses_184() -> None:
    network = ClassicUNet(base_channels=2)
    fits = fit(network)
    assert (fits.loss, fits.stride) == (184, 16)
    assert fits.up(572) == fits.down(572) == 572
    assert loss_of(network, 572) == 572 - 388
    assert (fits.up(573), fits.down(571), fits.down(1)) == (588, 556, 188)


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_every_side_that_fits_loses_the_same_and_no_other_does(levels: int) -> None:
    network = classic(levels)
    fits = fit(network)
    sides = range(network.smallest, network.smallest + 3 * fits.stride)
    exact = [side for side in sides if loss_of(network, side) == fits.loss]
    assert exact == [side for side in sides if side >= fits.least and (side - fits.least) % fits.stride == 0]


@pytest.mark.parametrize("name", ["unet-2015-same", "unet-dilated", "unet-plain"])
def test_a_network_that_keeps_the_size_takes_whole_strides(name: str) -> None:
    network = NETWORKS.build(PRESETS[name].model_copy(update={"base_channels": 8}))
    fits = fit(network)
    assert not fits.valid
    assert fits == Fit(fits.stride, fits.stride, 0)


# --- tiles ------------------------------------------------------------------------------------------------------------


def in_one_pass(network: ClassicUNet, image: torch.Tensor) -> torch.Tensor:
    """The whole image, mirrored on all sides as far as valid convolutions need, seen at once."""
    fits = fit(network)
    margin = fits.loss // 2
    seen = window(image, [-margin] * (image.ndim - 1), [fits.up(n + 2 * margin) for n in image.shape[1:]])
    with torch.no_grad():
        answer = network(seen[None])[0]
    return answer[(slice(None), *(slice(0, n) for n in image.shape[1:]))]


@pytest.mark.parametrize("tile", [44, 52, 64, 1000])
@pytest.mark.parametrize("sides", [(93, 61), (40, 8), (1, 1), (5, 130)])
def test_valid_tiles_are_one_big_pass(tile: int, sides: tuple[int, int]) -> None:
    """To rounding (convolutions of another size add up in another order): no seam, at any tile size."""
    network, image = classic(), torch.randn(2, *sides)
    whole = in_one_pass(network, image)
    assert whole.shape == (3, *sides)
    assert torch.allclose(tiled(network, image, tile, 0), whole, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 3])
def test_valid_tiles_in_one_and_three_dimensions(dims: int) -> None:
    network, image = classic(levels=2, dims=dims), torch.randn(2, *[23, 9, 14][:dims])
    assert torch.allclose(tiled(network, image, 22, 0), in_one_pass(network, image), atol=1e-5)


def test_the_batch_of_tiles_changes_nothing() -> None:
    network, image = classic(), torch.randn(2, 70, 50)
    results = [tiled(network, image, 52, 0, batch_size=size) for size in (1, 3, 100)]
    assert torch.allclose(results[0], results[1], atol=1e-6)
    assert torch.allclose(results[0], results[2], atol=1e-6)


def test_same_padding_is_exact_where_the_margin_is_the_reach() -> None:
    """Three levels reach 20 pixels to each side, and a pool up to 3 more; what is nearer to a rim is from padding."""
    network, image = classic(padding="same"), torch.randn(2, 90, 75)
    wide = window(image, [-64, -64], [64 + 96 + 64, 64 + 80 + 64])
    with torch.no_grad():
        whole = network(wide[None])[0][:, 64 : 64 + 90, 64 : 64 + 75]
    assert torch.allclose(tiled(network, image, 96, 24), whole, atol=1e-5)
    assert not torch.allclose(tiled(network, image, 96, 4), whole, atol=1e-5)


@pytest.mark.parametrize("name", ["unet-2015-same", "unet-dilated", "unet-plain"])
@pytest.mark.parametrize("sides", [(1, 1), (7, 40), (50, 33)])
def test_any_size_goes_through_any_network(name: str, sides: tuple[int, int]) -> None:
    network = NETWORKS.build(PRESETS[name].model_copy(update={"base_channels": 8})).eval()
    answer = tiled(network, torch.randn(1, *sides), 32, 8, batch_size=4)
    assert answer.shape == (2, *sides)
    assert answer.isfinite().all()
