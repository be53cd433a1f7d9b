"""Down and up operators against torch's own and their formulas."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.nn import DOWNS, UPS
from diffunet.nn.filters import Double, Halve
from diffunet.nn.resample import NearestConvUp, shuffle, unshuffle
from diffunet.spec import (
    AvgPool,
    BlurPool,
    FirUp,
    InBlock,
    LinearConv,
    MaxPool,
    Nearest,
    NearestConv,
    NoResample,
    PixelShuffle,
    PixelUnshuffle,
    ResidualBlock,
    StridedConv,
    TransposedConv,
)
from tests.nn.networks import CONV, assert_right_gradients, images, perturbed, site

TAPS = range(2, 8)
every_taps = pytest.mark.parametrize("taps", TAPS)
every_shape = pytest.mark.parametrize("sides", [(8,), (6, 4), (4, 2, 6)], ids=str)
every_padding = pytest.mark.parametrize("padding", ["zeros", "reflect", "circular"])
POOLS = {
    "max": {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d},
    "avg": {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d},
}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
ALL_DOWNS: list[Any] = [
    StridedConv(),
    StridedConv(pad="asymmetric"),
    MaxPool(),
    AvgPool(),
    *(BlurPool(taps=taps, conv=taps == 3) for taps in TAPS),
    PixelUnshuffle(),
    InBlock(),
    InBlock(taps=4, project=True),
]
ALL_UPS: list[Any] = [
    NearestConv(),
    Nearest(),
    TransposedConv(),
    TransposedConv(kernel=4),
    LinearConv(),
    PixelShuffle(),
    *(FirUp(taps=taps, conv=taps == 3) for taps in TAPS),
    InBlock(),
    InBlock(taps=4, project=True),
]


def down(config: Any, channels: int = 4, **where: Any) -> Any:
    torch.manual_seed(0)
    return perturbed(DOWNS.build(config, site(**where), channels))


def up(config: Any, channels: int = 4, out: int = 4, **where: Any) -> Any:
    torch.manual_seed(0)
    return perturbed(UPS.build(config, site(encoder=False, **where), channels, out))


def told(part: nn.Module, x: Tensor) -> Tensor:
    """A part's answer, with an embedding where it takes one."""
    return part(x, images(len(x), 6).to(x.dtype)) if hasattr(part, "block") else part(x)


def test_the_lists_here_hold_every_kind() -> None:
    assert {config.kind for config in ALL_DOWNS} | {"none"} == set(DOWNS)
    assert {config.kind for config in ALL_UPS} | {"none"} == set(UPS)


@every_padding
@pytest.mark.parametrize("sides", [(1,), (2,), (6,), (7, 4), (1, 1), (3, 2, 1), (1, 2, 3)], ids=str)
def test_down_halves_rounding_up_and_up_doubles(sides: tuple[int, ...], padding: str) -> None:
    x = images(1, 4, *sides)
    for config in ALL_DOWNS:
        y = told(down(config, dims=len(sides), padding=padding), x)
        assert y.shape == (1, 4, *(-(-side // 2) for side in sides)), config
        assert y.isfinite().all(), config
    for config in ALL_UPS:
        y = told(up(config, 4, 6, dims=len(sides), padding=padding), x)
        assert y.shape == (1, 6, *(2 * side for side in sides)), config
        assert y.isfinite().all(), config


@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize(
    ("make", "config"), [*((down, config) for config in ALL_DOWNS), *((up, config) for config in ALL_UPS)]
)
def test_every_operator_has_the_right_gradients(make: Any, config: Any, padding: str) -> None:
    channels = (2,) if make is down else (2, 2)
    part = make(config, *channels, dims=1, padding=padding, embed=2)
    assert_right_gradients(part, *[images(1, 2, 3), images(1, 2)][: 2 if hasattr(part, "block") else 1])


def test_none_is_nothing() -> None:
    assert DOWNS.build(NoResample(), site(), 4) is None
    assert UPS.build(NoResample(), site(), 4, 4) is None


# --- pools, strides, pixels -------------------------------------------------------------------------------------------


@every_shape
def test_pools_are_those_of_torch(sides: tuple[int, ...]) -> None:
    x, dims = images(2, 4, *sides), len(sides)
    assert torch.equal(down(MaxPool(), dims=dims)(x), POOLS["max"][dims](x, 2))
    torch.testing.assert_close(down(AvgPool(), dims=dims)(x), POOLS["avg"][dims](x, 2))


@pytest.mark.parametrize("sides", [(7,), (5, 4), (3, 4, 5)], ids=str)
def test_beyond_an_odd_side_a_maximum_sees_nothing_and_a_mean_zeros(sides: tuple[int, ...]) -> None:
    x, dims = images(2, 4, *sides) - 3, len(sides)  # negative: a zero would be the largest
    assert torch.equal(down(MaxPool(), dims=dims)(x), POOLS["max"][dims](x, 2, ceil_mode=True))
    padded = F.pad(x, [p for side in reversed(sides) for p in (0, side % 2)])
    torch.testing.assert_close(down(AvgPool(), dims=dims)(x), POOLS["avg"][dims](padded, 2))


@every_shape
@pytest.mark.parametrize(("pad", "zeros"), [("symmetric", (1, 1)), ("asymmetric", (0, 1))])
def test_a_strided_convolution_pads_where_it_says(pad: Any, zeros: tuple[int, int], sides: tuple[int, ...]) -> None:
    part, x = down(StridedConv(pad=pad), dims=len(sides)), images(2, 4, *sides)
    wide = F.pad(x, zeros * len(sides))
    torch.testing.assert_close(part(x), CONV[len(sides)](wide, part.conv.weight, part.conv.bias, stride=2))
    circular = down(StridedConv(pad=pad), dims=len(sides), padding="circular")
    wide = F.pad(x, zeros * len(sides), mode="circular")
    torch.testing.assert_close(circular(x), CONV[len(sides)](wide, part.conv.weight, part.conv.bias, stride=2))


def test_pixels_become_channels_in_torchs_order() -> None:
    x = images(2, 4, 6, 8)
    assert torch.equal(unshuffle(x), F.pixel_unshuffle(x, 2))
    assert torch.equal(shuffle(x), F.pixel_shuffle(x, 2))
    signal = images(2, 4, 6)
    assert torch.equal(unshuffle(signal), rearrange(signal, "b c (x p) -> b (c p) x", p=2))
    for sides in [(6,), (4, 6), (2, 4, 6)]:
        volume = images(2, 3, *sides)
        assert torch.equal(shuffle(unshuffle(volume)), volume)


def test_pixel_operators_are_a_convolution_and_torchs_shuffle() -> None:
    x = images(2, 4, 6, 8)
    part = down(PixelUnshuffle())
    torch.testing.assert_close(part(x), F.conv2d(F.pixel_unshuffle(x, 2), part.conv.weight, part.conv.bias))
    part = up(PixelShuffle(), 4, 3)
    assert torch.equal(part(x), F.pixel_shuffle(part.conv(x), 2))


# --- up ---------------------------------------------------------------------------------------------------------------


def repeated(x: Tensor) -> Tensor:
    """Each value twice along every side."""
    for dim in range(2, x.ndim):
        x = x.repeat_interleave(2, dim=dim)
    return x


@every_shape
def test_nearest_repeats_each_value(sides: tuple[int, ...]) -> None:
    x, dims = images(2, 4, *sides), len(sides)
    assert torch.equal(up(Nearest(), dims=dims)(x), repeated(x))
    wider = up(Nearest(), 4, 6, dims=dims)
    torch.testing.assert_close(wider(x), wider[1](repeated(x)))
    part = up(NearestConv(), 4, 6, dims=dims)
    torch.testing.assert_close(part(x), part.conv(repeated(x)))


@pytest.mark.parametrize("sides", [(300,), (17, 19), (5, 7, 9)], ids=str)
def test_the_folded_kernel_is_the_same_convolution(sides: tuple[int, ...]) -> None:
    part, x = up(NearestConv(), 4, 3, dims=len(sides)).double(), images(2, 4, *sides, dtype=torch.float64)
    assert x[0, 0].numel() >= NearestConvUp.FEWEST_POSITIONS
    torch.testing.assert_close(part(x), part.conv(repeated(x)))
    weights = torch.randn_like(part(x))
    ours = torch.autograd.grad((part(x) * weights).sum(), part.parameters())
    plain = torch.autograd.grad((part.conv(repeated(x)) * weights).sum(), part.parameters())
    torch.testing.assert_close(ours, plain)


@every_shape
def test_linear_doubling_is_that_of_torch(sides: tuple[int, ...]) -> None:
    part, x = up(LinearConv(), 4, 6, dims=len(sides)), images(2, 4, *sides)
    torch.testing.assert_close(part(x), part.conv(F.interpolate(x, scale_factor=2.0, mode=LINEAR[len(sides)])))


def test_linear_doubling_of_a_circle_goes_round() -> None:
    part, x = up(LinearConv(), dims=1, padding="circular"), images(1, 4, 5)
    pairs = torch.stack([0.75 * x + 0.25 * x.roll(1, 2), 0.75 * x + 0.25 * x.roll(-1, 2)], dim=3)
    torch.testing.assert_close(part(x), part.conv(pairs.flatten(2)))


@every_shape
@pytest.mark.parametrize(("kernel", "border"), [(2, 0), (4, 1)])
def test_a_transposed_convolution_is_that_of_torch(kernel: Any, border: int, sides: tuple[int, ...]) -> None:
    part, x = up(TransposedConv(kernel=kernel), 4, 6, dims=len(sides)), images(2, 4, *sides)
    weight, bias = part.conv.weight, part.conv.bias
    assert torch.equal(part(x), TRANSPOSED[len(sides)](x, weight, bias, stride=2, padding=border))
    around = up(TransposedConv(kernel=kernel), 4, 6, dims=len(sides), padding="circular")(x)
    inside = (..., *[slice(2, -2)] * len(sides))
    torch.testing.assert_close(around[inside], part(x)[inside])  # what differs is the border


# --- fixed filters, and within a block --------------------------------------------------------------------------------


@every_taps
@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_the_convolution_stands_before_a_blur_and_behind_a_doubling(padding: str, taps: int) -> None:
    x = images(1, 4, 8, 6)
    part = down(BlurPool(taps=taps, conv=True), padding=padding)
    torch.testing.assert_close(part(x), Halve(taps, padding)(part[0](x)))
    assert torch.equal(down(BlurPool(taps=taps), padding=padding)(x), Halve(taps, padding)(x))
    part = up(FirUp(taps=taps, conv=True), 4, 6, padding=padding)
    torch.testing.assert_close(part(x), part[1](Double(taps, padding)(x)))
    assert torch.equal(up(FirUp(taps=taps), padding=padding)(x), Double(taps, padding)(x))
    assert up(FirUp(taps=taps), 4, 6)[1].weight.shape == (6, 4, 1, 1)


@pytest.mark.parametrize("taps", [2, 4])
@pytest.mark.parametrize("project", [False, True])
def test_a_block_resamples_between_activation_and_convolution_and_on_its_shortcut(project: bool, taps: int) -> None:
    """ADM, 2105.05233, and with a projected shortcut EDM, 2206.00364."""
    config = ResidualBlock(groups=2, rescale=True)
    for part, resample, x in (
        (down(InBlock(taps=taps, project=project), block=config), Halve(taps, "zeros"), images(1, 4, 7, 6)),
        (up(InBlock(taps=taps, project=project), block=config), Double(taps, "zeros"), images(1, 4, 7, 6)),
    ):
        block, e = part.block, images(1, 6)
        wide = F.pad(x, (0, 0, 0, 1)) if isinstance(resample, Halve) else x
        h = block.conv_in(resample(F.silu(block.norm_in(wide)))) + block.embed(F.silu(e))[:, :, None, None]
        h = block.conv_out(F.silu(block.norm_out(h)))
        shortcut = resample(wide)
        if project:
            shortcut = F.conv2d(shortcut, block.shortcut.weight, block.shortcut.bias)
        assert isinstance(block.shortcut, nn.Conv2d) == project
        torch.testing.assert_close(part(x, e), (h + shortcut) / sqrt(2))
