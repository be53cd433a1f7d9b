"""Fixed filters against SciPy's, and what makes them filters: a constant stays, doubling is halving's adjoint."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch
from scipy.signal import upfirdn

from diffunet.nn.filters import Double, Halve, binomial
from tests.nn.networks import images

every_taps = pytest.mark.parametrize("taps", range(2, 8))
every_shape = pytest.mark.parametrize("sides", [(8,), (6, 4), (4, 2, 6)], ids=str)


def row(taps: int) -> list[float]:
    return [comb(taps - 1, i) / 2 ** (taps - 1) for i in range(taps)]


@pytest.mark.parametrize("dims", [1, 2, 3])
@every_taps
def test_a_kernel_is_the_product_of_its_rows(taps: int, dims: int) -> None:
    kernel = binomial(taps, images(1, 3, *[2] * dims))
    expected = torch.tensor(row(taps))
    for _ in range(dims - 1):
        expected = expected[..., None] * torch.tensor(row(taps))
    assert kernel.shape == (3, 1, *[taps] * dims)
    assert torch.equal(kernel[1, 0], expected)
    assert kernel.sum().item() == 3


def test_four_taps_are_1_3_3_1() -> None:
    assert (binomial(4, images(1, 1, 2)) * 8).flatten().tolist() == [1, 3, 3, 1]


@every_shape
@every_taps
def test_filters_are_scipys(taps: int, sides: tuple[int, ...]) -> None:
    """upfirdn puts zeros between the values, filters, and takes every nth; only where it begins differs."""
    x = images(2, 3, *sides, dtype=torch.float64)
    half, double, behind = x.numpy(), x.numpy(), (taps - 1) // 2
    for axis, side in enumerate(sides, start=2):
        full = upfirdn(row(taps), half, axis=axis)
        half = full.take(np.arange(taps - 1 - behind, full.shape[axis], 2)[: side // 2], axis)
        full = upfirdn(2 * np.array(row(taps)), double, up=2, axis=axis)
        full = np.concatenate([full, np.zeros_like(full)], axis)  # SciPy stops at the last value that is not zero
        double = full.take(range(behind, behind + 2 * side), axis)
    torch.testing.assert_close(Halve(taps, "zeros")(x), torch.from_numpy(half))
    torch.testing.assert_close(Double(taps, "zeros")(x), torch.from_numpy(double))


@every_shape
@every_taps
def test_doubling_is_the_adjoint_of_halving(taps: int, sides: tuple[int, ...]) -> None:
    x = images(2, 3, *sides, dtype=torch.float64)
    small = Halve(taps, "zeros")(x)
    y = torch.randn_like(small)
    assert (small * y).sum().item() * 2 ** len(sides) == pytest.approx((x * Double(taps, "zeros")(y)).sum().item())


@every_shape
@every_taps
@pytest.mark.parametrize("padding", ["reflect", "circular"])
def test_a_constant_stays_what_it_is(padding: str, taps: int, sides: tuple[int, ...]) -> None:
    flat = torch.ones(1, 2, *sides)
    for part in (Halve(taps, padding), Double(taps, padding)):
        assert torch.equal(part(flat), torch.ones_like(part(flat)))
    inside = (..., *[slice(4, -4)] * 2)
    for part in (Halve(taps, "zeros"), Double(taps, "zeros")):  # but for the dark border
        y = part(torch.ones(1, 1, 24, 24))[inside]
        assert torch.equal(y, torch.ones_like(y))


@every_taps
def test_a_filter_on_a_circle_is_a_filter_of_three_turns(taps: int) -> None:
    x = images(1, 2, 8, dtype=torch.float64)
    thrice = torch.cat([x, x, x], dim=2)
    torch.testing.assert_close(Halve(taps, "circular")(x), Halve(taps, "zeros")(thrice)[..., 4:8])
    torch.testing.assert_close(Double(taps, "circular")(x), Double(taps, "zeros")(thrice)[..., 16:32])
