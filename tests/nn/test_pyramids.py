"""The image beside the way down and the way up (NCSN++ of score SDE, 2011.13456), against its formulas."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from diffunet.nn import INPUT_PYRAMIDS, OUTPUT_PYRAMIDS
from diffunet.nn.filters import Double, Halve, binomial
from diffunet.spec import ResidualPyramid, SkipPyramid
from tests.nn.networks import CONV, assert_right_gradients, images, perturbed, site, tiny

every_taps = pytest.mark.parametrize("taps", [2, 4, 5])
every_dims = pytest.mark.parametrize("dims", [1, 2, 3])
SIDES = {1: (9,), 2: (8, 7), 3: (4, 6, 5)}
PADDED = {"zeros": "constant", "reflect": "reflect", "circular": "circular"}


def pyramid(table: Any, config: Any, first: int, second: int, **where: Any) -> Any:
    return perturbed(table.build(config, site(**where), first, second))


def halved(sides: tuple[int, ...]) -> list[int]:
    return [-(-side // 2) for side in sides]


@every_taps
@every_dims
def test_a_skip_pyramid_joins_the_filtered_image(dims: int, taps: int) -> None:
    part = pyramid(INPUT_PYRAMIDS, SkipPyramid(taps=taps), 3, 8, dims=dims)
    aux, x = images(2, 3, *SIDES[dims]), images(2, 8, *halved(SIDES[dims]))
    small = Halve(taps, "zeros")(aux)
    y, left = part(x, aux)
    assert torch.equal(left, small)
    assert part.out_channels == 3
    torch.testing.assert_close(y, x + CONV[dims](small, part.conv.weight, part.conv.bias))


@pytest.mark.parametrize("padding", PADDED)
@every_taps
@every_dims
def test_a_residual_pyramid_is_averaged_into_its_level(dims: int, taps: int, padding: str) -> None:
    """One border for the convolution and the filter behind it, which sees what was convolved beyond the image."""
    part = pyramid(INPUT_PYRAMIDS, ResidualPyramid(taps=taps), 3, 8, dims=dims, padding=padding)
    sides = tuple(side + side % 2 for side in SIDES[dims])
    aux, x = images(2, 3, *sides), images(2, 8, *halved(sides))
    wide = F.pad(aux, [1 + (taps - 1) // 2] * 2 * dims, mode=PADDED[padding])
    h = CONV[dims](wide, part.conv.weight, part.conv.bias)
    h = CONV[dims](h, binomial(taps, h), stride=2, groups=8)
    y, left = part(x, aux)
    assert y is left
    assert part.out_channels == 8
    torch.testing.assert_close(y, (x + h) / sqrt(2))


@every_taps
@every_dims
def test_an_output_pyramid_sums_what_each_level_says(dims: int, taps: int) -> None:
    part = pyramid(OUTPUT_PYRAMIDS, SkipPyramid(taps=taps), 8, 3, dims=dims)
    x, below = images(2, 8, *SIDES[dims]), images(2, 3, *halved(SIDES[dims]), seed=2)
    norm = F.group_norm(x, 2, part.norm.weight, part.norm.bias, 1e-6)
    own = CONV[dims](F.silu(norm), part.conv.weight, part.conv.bias, padding=1)
    torch.testing.assert_close(part(x, None), own)
    lifted = Double(taps, "zeros")(below)[(..., *[slice(side) for side in SIDES[dims]])]
    torch.testing.assert_close(part(x, below), own + lifted)


@pytest.mark.parametrize("sides", [(1,), (2, 1), (7, 5), (3, 1, 2)], ids=str)
@pytest.mark.parametrize("padding", PADDED)
@pytest.mark.parametrize("kind", INPUT_PYRAMIDS)
def test_pyramids_take_any_size(kind: Any, padding: Any, sides: tuple[int, ...]) -> None:
    net = tiny(dims=len(sides), padding=padding, input_pyramid=kind, output_pyramid="skip")
    y = net(images(2, 3, *sides), 7)
    assert y.shape == (2, 3, *sides)
    assert y.isfinite().all()


@pytest.mark.parametrize("config", [SkipPyramid(taps=3), ResidualPyramid(taps=3)], ids=["skip", "residual"])
def test_input_pyramids_have_the_right_gradients(config: Any) -> None:
    part = pyramid(INPUT_PYRAMIDS, config, 2, 2, dims=1)
    assert_right_gradients(part, images(1, 2, 2), images(1, 2, 3))


def test_output_pyramids_have_the_right_gradients() -> None:
    part = pyramid(OUTPUT_PYRAMIDS, SkipPyramid(taps=3), 4, 2, dims=1)
    assert_right_gradients(part, images(1, 4, 3), images(1, 2, 2))


def test_a_network_answers_with_the_sum_of_all_levels() -> None:
    """With the upper levels silent, the answer is the deepest level's image, doubled twice."""
    net, said = tiny(output_pyramid="skip"), []
    for part in (net.head, net.up[1].pyramid.conv):
        torch.nn.init.zeros_(part.weight)
        torch.nn.init.zeros_(part.bias)
    net.up[0].pyramid.register_forward_hook(lambda _, inputs, out: said.append(out))
    y = net(images(2, 3, 9, 8), 7)
    double = Double(4, "zeros")
    torch.testing.assert_close(y, double(double(said[0])[:, :, :5, :4])[:, :, :9, :8])


@pytest.mark.parametrize("kind", INPUT_PYRAMIDS)
def test_every_level_but_the_last_hands_the_image_down(kind: Any) -> None:
    """The conditions beside the image, too; and the last level has nothing below it."""
    net = tiny(input_pyramid=kind, base_channels=16, cond_channels=2, self_conditioning=True)
    image = 2 + 3 + 3
    assert [level.pyramid.conv.in_channels for level in net.down[:2]] == [image, {"skip": image, "residual": 16}[kind]]
    assert net.down[2].pyramid is None
