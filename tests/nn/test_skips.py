"""How a skip joins: every kind against its formula."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.nn import SKIPS
from diffunet.spec import (
    AddSkip,
    BalancedSkip,
    BottleneckSkip,
    ConcatSkip,
    CropSkip,
    GatedSkip,
    ResidualBlock,
    ScaledSkip,
)
from tests.nn.networks import CONV, assert_right_gradients, images, perturbed, site

EVERY: list[Any] = [
    ConcatSkip(),
    BottleneckSkip(),
    BottleneckSkip(ratio=0.5),
    AddSkip(),
    GatedSkip(),
    BalancedSkip(),
    ScaledSkip(),
    CropSkip(),
]
every_skip = pytest.mark.parametrize("config", EVERY, ids=lambda config: f"{config.kind}{getattr(config, 'ratio', '')}")


def skip(config: Any, channels: int = 4, skip_channels: int = 6, **where: Any) -> Any:
    return perturbed(SKIPS.build(config, site(**where), channels, skip_channels))


def pair(sides: tuple[int, ...] = (3, 5)) -> tuple[Tensor, Tensor]:
    return images(2, 4, *sides), images(2, 6, *sides, seed=2)


def test_the_list_here_holds_every_kind() -> None:
    assert {config.kind for config in EVERY} == set(SKIPS)


@every_skip
@pytest.mark.parametrize("sides", [(1,), (3, 5), (2, 1, 3)], ids=str)
def test_a_skip_reports_its_channels(sides: tuple[int, ...], config: Any) -> None:
    part = skip(config, dims=len(sides))
    assert part(*pair(sides)).shape == (2, part.out_channels, *sides)


@every_skip
def test_a_skip_has_the_right_gradients(config: Any) -> None:
    assert_right_gradients(skip(config, 2, 4), images(1, 2, 2, 2), images(1, 4, 2, 2))


def test_concatenations_are_their_formulas() -> None:
    x, s = pair()
    assert torch.equal(skip(ConcatSkip())(x, s), torch.cat([x, s], dim=1))
    torch.testing.assert_close(skip(ScaledSkip())(x, s), torch.cat([x, s / sqrt(2)], dim=1))
    wide = images(2, 6, 6, 9)
    assert torch.equal(skip(CropSkip())(x, wide), torch.cat([wide[:, :, 1:4, 2:7], x], dim=1))


def test_the_sum_meets_other_widths_by_a_convolution() -> None:
    x, s = pair()
    part = skip(AddSkip())
    torch.testing.assert_close(part(x, s), x + F.conv2d(s, part.conv.weight, part.conv.bias))
    assert isinstance(skip(AddSkip(), 4, 4).conv, nn.Identity)
    assert torch.equal(skip(AddSkip(), 4, 4)(x, x), 2 * x)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_gate_is_that_of_the_paper(dims: int) -> None:
    """Oktay, 1804.03999: sigmoid(psi(ReLU(W_x skip + W_g x))), at one resolution."""
    part, (x, s), conv = skip(GatedSkip(), dims=dims), pair((3,) * dims), CONV[dims]
    inner = torch.relu(conv(s, part.look.weight) + conv(x, part.gate.weight, part.gate.bias))
    a = torch.sigmoid(conv(inner, part.psi.weight, part.psi.bias))
    assert inner.shape[1] == 3
    assert a.shape[1] == 1
    torch.testing.assert_close(part(x, s), torch.cat([x, a * s], dim=1))


@pytest.mark.parametrize(
    ("ratio", "channels", "groups", "expected"),
    [(1, 8, 2, 8), (0.5, 8, 2, 4), (2, 8, 2, 16), (0.4, 8, 2, 4), (1, 9, 4, 12)],
)
def test_a_bottleneck_has_whole_groups(ratio: float, channels: int, groups: int, expected: int) -> None:
    part = skip(BottleneckSkip(ratio=ratio), channels, channels, block=ResidualBlock(groups=groups))
    assert part.out_channels == expected
    x, s = images(1, channels, 3, 3), images(1, channels, 3, 3, seed=2)
    expected_out = F.conv2d(torch.cat([x, s], dim=1), part.conv.weight, part.conv.bias)
    torch.testing.assert_close(part(x, s), expected_out)


@pytest.mark.parametrize("balance", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(("n_a", "n_b"), [(4, 6), (8, 2)])
def test_a_balanced_skip_is_that_of_edm2(n_a: int, n_b: int, balance: float) -> None:
    """2312.02696, eq. 103."""
    x, s = images(2, n_a, 3, 3), images(2, n_b, 3, 3, seed=2)
    scale = sqrt((n_a + n_b) / ((1 - balance) ** 2 + balance**2))
    expected = scale * torch.cat([(1 - balance) / sqrt(n_a) * x, balance / sqrt(n_b) * s], dim=1)
    torch.testing.assert_close(skip(BalancedSkip(balance=balance), n_a, n_b)(x, s), expected)
