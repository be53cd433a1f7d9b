"""Tiles leave no seam: where the denoiser looks at single pixels, or is affine in them, tiling changes nothing."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from diffunet.errors import ConfigError
from diffunet.inverse import Tiled, build_operator, default_tile, restore
from diffunet.inverse.tiling import starts
from diffunet.schedules import Schedule
from diffunet.spec import DataInfo
from tests import tiny
from tests.oracles import Mixture

SIZES = [(23, 40), (9, 70), (64, 5), (16, 16), (17, 16)]


class Watched:
    """A denoiser that remembers what it was shown."""

    def __init__(self, den: Any) -> None:
        self.den, self.schedule, self.seen = den, den.schedule, []

    def __call__(self, x_t: Tensor, t: Any, **cond: Any) -> Tensor:
        self.seen.append((x_t.shape, {name: value.shape for name, value in cond.items()}))
        return self.den(x_t, t, **cond)


@pytest.mark.parametrize("sides", SIZES, ids=str)
@pytest.mark.parametrize("overlap", [0, 1, 4, 15])
def test_a_pixelwise_denoiser_has_no_seams(sides: tuple[int, int], overlap: int) -> None:
    den, x = Mixture(Schedule.linear()), torch.randn(2, 3, *sides, dtype=torch.float64)
    whole, tiled = den(x, 0.4), Tiled(den, 16, overlap, batch_size=3)(x, 0.4)
    assert torch.allclose(tiled, whole, atol=1e-12)


def test_one_that_says_something_else_of_each_tile_is_blended_evenly() -> None:
    """Each tile answers with its own mean: the result goes from one to the next without a jump."""

    class Means(Mixture):
        def __call__(self, x_t: Tensor, t: Any, **cond: Any) -> Tensor:
            return x_t.mean(dim=(1, 2, 3), keepdim=True).expand_as(x_t)

    x = torch.arange(60.0).expand(1, 1, 16, 60)
    answer = Tiled(Means(Schedule.linear()), 24, 12)(x, 0.5)[0, 0, 0]
    jump = (24 - 12) / 12  # the means of neighbours differ by 12, over 12 pixels
    assert float(answer.diff().abs().max()) <= jump * 1.01
    assert bool((answer.diff() >= 0).all())


@pytest.mark.parametrize(("side", "tile", "overlap"), [(100, 32, 8), (33, 32, 31), (64, 32, 0), (10, 32, 8)])
def test_tiles_cover_a_side_and_meet(side: int, tile: int, overlap: int) -> None:
    begins = starts(side, tile, overlap)
    assert begins[0] == 0
    assert max(begins) + tile >= side
    assert all(b - a <= tile - overlap for a, b in pairwise(begins))
    assert max(begins) + min(tile, side) <= side


def test_the_network_sees_tiles_and_each_gets_its_part_of_the_conditions() -> None:
    den = Watched(Mixture(Schedule.linear()))
    x, labels = torch.randn(2, 1, 40, 16), torch.tensor([3, 4])
    tiled = Tiled(den, 16, 4, batch_size=4)
    tiled(x, 0.5, class_labels=labels, previous=torch.zeros_like(x))
    assert [seen[0] for seen in den.seen] == [(4, 1, 16, 16), (2, 1, 16, 16)]
    assert den.seen[0][1] == {"class_labels": (4,), "previous": (4, 1, 16, 16)}
    assert tiled.schedule is den.schedule
    den.seen.clear()
    tiled(x[:, :, :16], 0.5)
    assert den.seen[0][0] == (2, 1, 16, 16), "what is no larger than a tile is seen whole"


def test_gradients_pass_through_tiles() -> None:
    den, x = Mixture(Schedule.linear()), torch.randn(1, 1, 30, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: Tiled(den, 12, 5)(v, 0.3), (x,))


@pytest.mark.parametrize("kind", ["ddnm", "pigdm", "diffpir"])
def test_a_whole_restoration_has_no_seams(kind: str) -> None:
    den, y = Mixture(Schedule.linear()), torch.rand(1, 1, 13, 20)
    A = build_operator({"kind": "average", "scale": 2}, (1, 26, 40))
    whole, tiled = (restore(each, A, y, 0.05, kind, steps=4) for each in (den, Tiled(den, 16)))
    assert torch.allclose(tiled, whole, atol=1e-4)


def test_a_convolutional_network_hardly_minds_tiles() -> None:
    """A real network without attention: group norm looks at the whole tile, so not exactly."""
    den = tiny.denoiser(clip=None, dims=2)
    x = torch.randn(1, 1, 24, 48)
    with torch.no_grad():
        whole, tiled = den(x, 0.5), Tiled(den, 24, 12)(x, 0.5)
    assert float((whole - tiled).abs().mean()) < 0.1 * float(whole.abs().mean())


def test_the_default_tile_follows_the_network() -> None:
    plain = tiny.denoiser(dims=2)
    assert default_tile(plain) == 256
    attentive = tiny.denoiser(dims=2, attention_in_mid=True)
    attentive.data = DataInfo(shape=(1, 28, 20))
    assert default_tile(attentive) == 28
    plain.data = DataInfo(shape=(1, 512, 512))
    assert default_tile(plain) == 512


def test_an_overlap_must_leave_something() -> None:
    with pytest.raises(ConfigError, match="tiles of 16 pixels cannot overlap by 16; take 0 to 15"):
        Tiled(Mixture(Schedule.linear()), 16, 16)
