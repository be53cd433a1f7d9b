"""The smallest parts: convolutions, norms, zero initialisation, and how the embedding finds its way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.nn import NORMS
from diffunet.nn.layers import BatchNorm, Chain, GroupNorm, Timed, conv, tell, zero
from diffunet.spec import DoubleConvBlock, MagnitudeBlock, ResidualBlock
from tests.nn.networks import CONV, assert_right_gradients, images, perturbed, site

every_shape = pytest.mark.parametrize("sides", [(5,), (5, 4), (3, 4, 5)], ids=str)


@every_shape
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (5, 1), (3, 2)])
def test_a_convolution_is_torchs_and_keeps_the_size(kernel: int, dilation: int, sides: tuple[int, ...]) -> None:
    part, x = conv(len(sides), 2, 5, kernel=kernel, dilation=dilation), images(1, 2, *sides)
    expected = CONV[len(sides)](x, part.weight, part.bias, padding=dilation * (kernel // 2), dilation=dilation)
    assert expected.shape == (1, 5, *sides)
    assert torch.equal(part(x), expected)
    valid = conv(len(sides), 2, 5, padding="valid")
    assert valid(x).shape == (1, 5, *(side - 2 for side in sides))


def test_zero_leaves_no_parameter() -> None:
    assert not any(p.any() for p in zero(nn.Linear(3, 3)).parameters())


# --- norms -----------------------------------------------------------------------------------------------------------


def test_every_norm_is_made_from_its_block() -> None:
    group = NORMS["group"](ResidualBlock(groups=4, eps=1e-3), 8)
    assert (group.num_groups, group.eps) == (4, 1e-3)
    assert NORMS["batch"](DoubleConvBlock(eps=1e-2), 8).eps == 1e-2
    assert isinstance(NORMS["none"](MagnitudeBlock(), 8), nn.Identity)
    assert isinstance(site(plain=True).norm(8), nn.Identity)


@pytest.mark.parametrize(
    ("groups", "least", "channels", "expected"),
    [(32, 4, 128, 32), (32, 4, 64, 16), (32, 4, 24, 6), (32, 4, 10, 2), (32, 4, 7, 1), (8, 3, 36, 6), (32, 4, 2, 1)],
)
def test_groups_become_fewer_before_they_become_too_narrow(
    groups: int, least: int, channels: int, expected: int
) -> None:
    assert ResidualBlock(groups=groups, group_channels=least).groups_of(channels) == expected
    assert channels % expected == 0


@pytest.mark.parametrize("sides", [(1,), (1, 1), (1, 1, 1)], ids=str)
def test_the_norm_of_a_single_value_is_its_bias(sides: tuple[int, ...]) -> None:
    for norm in (perturbed(GroupNorm(3, 3)), perturbed(BatchNorm(3))):
        y = norm.train()(images(1, 3, *sides))
        # x - mean is not quite 0 in float32, and is divided by sqrt(eps)
        torch.testing.assert_close(y.flatten(), norm.bias, rtol=0, atol=1e-4)
        y.sum().backward()
        assert norm.weight.grad is not None
        assert not norm.weight.grad.abs().max() > 1e-2


def test_a_single_value_is_not_remembered_by_a_batch_norm() -> None:
    norm = BatchNorm(3).train()
    norm(images(1, 3, 1, 1))
    assert norm.running_mean.tolist() == [0, 0, 0]
    norm(images(1, 3, 2, 1))
    assert norm.running_mean.any()


@every_shape
def test_norms_are_those_of_torch(sides: tuple[int, ...]) -> None:
    x = images(2, 8, *sides)
    norm = perturbed(GroupNorm(2, 8, eps=1e-3))
    assert torch.equal(norm(x), F.group_norm(x, 2, norm.weight, norm.bias, 1e-3))
    ours, torchs = (
        perturbed(BatchNorm(8)),
        perturbed({1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[x.ndim - 2](8)),
    )
    assert torch.equal(ours(x), torchs(x))
    assert torch.equal(ours.eval()(x), torchs.eval()(x))  # by what both remember


@pytest.mark.parametrize("norm", [GroupNorm(2, 4), BatchNorm(4)], ids=["group", "batch"])
def test_norms_have_the_right_gradients(norm: Any) -> None:
    assert_right_gradients(perturbed(norm), images(2, 4, 3))


# --- the embedding's way ---------------------------------------------------------------------------------------------


class Shift(Timed):
    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return x + embedding


def test_a_chain_tells_only_the_timed_parts() -> None:
    chain = Chain(nn.ReLU(), Shift(), nn.ReLU())
    assert chain(torch.tensor([-1.0, 1.0]), torch.tensor([-2.0, 3.0])).tolist() == [0, 4]
    assert tell(chain, torch.tensor([-1.0]), torch.tensor([3.0])).tolist() == [3]
    assert tell(nn.ReLU(), torch.tensor([-1.0]), torch.tensor([3.0])).tolist() == [0]
