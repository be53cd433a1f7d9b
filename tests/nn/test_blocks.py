"""Blocks against their formulas, written out once more in plain torch."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.nn import BLOCKS
from diffunet.spec import DilatedBlock, DoubleConvBlock, MultiScaleBlock, ResidualBlock
from tests.nn.networks import CONV, assert_right_gradients, images, perturbed, site, tiny

RESIDUAL = {"residual": ResidualBlock, "dilated": DilatedBlock, "multi_scale": MultiScaleBlock}
every_residual = pytest.mark.parametrize("kind", RESIDUAL)
every_condition = pytest.mark.parametrize("condition", ["shift", "scale_shift"])


def block(config: Any, in_channels: int = 8, out_channels: int = 12, **where: Any) -> Any:
    return perturbed(BLOCKS.build(config, site(**{"block": config} | where), in_channels, out_channels)).eval()


def group_norm(layer: Any, x: Tensor) -> Tensor:
    return F.group_norm(x, 4, layer.weight, layer.bias, 1e-4)


@pytest.mark.parametrize("sides", [(9,), (5, 4), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("out_channels", [8, 12])
@every_condition
def test_a_residual_block_is_its_formula(
    condition: Any, out_channels: int, rescale: bool, sides: tuple[int, ...]
) -> None:
    config = ResidualBlock(condition=condition, groups=4, eps=1e-4, dropout=0.4, rescale=rescale)
    part, x, e = block(config, 8, out_channels, dims=len(sides)), images(2, 8, *sides), images(2, 6)
    told = part.embed(F.silu(e)).reshape(2, -1, *[1] * len(sides))
    h = part.conv_in(F.silu(group_norm(part.norm_in, x)))
    if condition == "shift":
        h = group_norm(part.norm_out, h + told)
    else:
        h = group_norm(part.norm_out, h) * (1 + told[:, :out_channels]) + told[:, out_channels:]
    shortcut = part.shortcut(x) if out_channels != 8 else x
    expected = shortcut + part.conv_out(F.silu(h))
    torch.testing.assert_close(part(x, e), expected / sqrt(2) if rescale else expected)


def test_without_an_embedding_nothing_is_told() -> None:
    part, x = block(ResidualBlock(groups=4, eps=1e-4), embed=0), images(2, 8, 5, 4)
    h = group_norm(part.norm_out, part.conv_in(F.silu(group_norm(part.norm_in, x))))
    assert part.embed is None
    torch.testing.assert_close(part(x, None), part.shortcut(x) + part.conv_out(F.silu(h)))


@pytest.mark.parametrize("level", [0, 1, 3])
@pytest.mark.parametrize("rates", [None, (1, 3, 3, 5)])
def test_a_dilated_block_looks_as_far_as_the_rate_of_its_level(rates: Any, level: int) -> None:
    config = DilatedBlock(groups=4, eps=1e-4, rates=rates)
    part, x = block(config, level=level, embed=0), images(1, 8, 21, 17)
    rate = rates[level] if rates else (1, 2, 4, 8)[level]

    def conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
        return F.conv2d(x, layer.weight, layer.bias, padding=rate, dilation=rate)

    h = conv(part.conv_in, F.silu(group_norm(part.norm_in, x)))
    h = conv(part.conv_out, F.silu(group_norm(part.norm_out, h)))
    torch.testing.assert_close(part(x, None), part.shortcut(x) + h)


def test_each_level_of_a_network_has_its_rate() -> None:
    def rates(net: nn.Module) -> list[int]:
        return [level.blocks[0].parts[0].conv_in.dilation[0] for level in net.down]

    dilated = {"down": "none", "up": "none", "attention_in_mid": False, "attention_levels": ()}
    net = tiny(block=DilatedBlock(groups=2), **dilated)
    assert rates(net) == [1, 2, 4]
    assert net.mid.parts[0].conv_in.dilation[0] == 4
    assert [level.blocks[0].body.parts[0].conv_in.dilation[0] for level in net.up] == [4, 2, 1]
    assert rates(tiny(block=DilatedBlock(groups=2, rates=(2, 1, 5)), **dilated)) == [2, 1, 5]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kernels", [(1, 3, 5), (3,), (5, 1)])
def test_several_scales_are_one_wide_convolution(kernels: tuple[int, ...], dims: int) -> None:
    """The sum of convolutions is the convolution with the sum of their kernels, each padded to the widest."""
    part, x = block(MultiScaleBlock(groups=2, kernels=kernels), dims=dims), images(2, 8, *[6] * dims)
    widest = max(kernels)
    whole = sum(F.pad(c.weight, [(widest - c.kernel_size[0]) // 2] * 2 * dims) for c in part.conv_in.scales)
    assert [c.kernel_size[0] for c in part.conv_in.scales] == list(kernels)
    assert [c.bias is not None for c in part.conv_in.scales] == [True] + [False] * (len(kernels) - 1)
    expected = CONV[dims](x, whole, part.conv_in.scales[0].bias, padding=widest // 2)
    torch.testing.assert_close(part.conv_in(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("embed", [0, 6])
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_a_double_convolution_is_its_formula(norm: Any, activation: Any, embed: int) -> None:
    config = DoubleConvBlock(norm=norm, activation=activation, groups=4, eps=1e-4, dropout=0.4)
    part, x, e = block(config, embed=embed), images(2, 8, 5, 4), images(2, 6)
    act = {"relu": torch.relu, "silu": F.silu}[activation]

    def normed(layer: Any, x: Tensor) -> Tensor:
        if norm == "batch":  # in eval mode, and nothing was seen yet
            return x / sqrt(1 + 1e-4) * layer.weight[:, None, None] + layer.bias[:, None, None]
        return group_norm(layer, x) if norm == "group" else x

    h = normed(part.norm_in, part.conv_in(x))
    if embed:
        h = h + part.embed(F.silu(e))[:, :, None, None]
    expected = act(normed(part.norm_out, part.conv_out(act(h))))
    torch.testing.assert_close(part(x, e if embed else None), expected)


@every_residual
def test_a_fresh_residual_block_passes_its_input(kind: str) -> None:
    x, e = images(2, 8, 6, 6), images(2, 6)
    for zero_init in (True, False):
        config = RESIDUAL[kind](groups=2, zero_init=zero_init)
        part = BLOCKS.build(config, site(block=config), 8, 8)
        assert torch.equal(part(x, e), x) == zero_init


@pytest.mark.parametrize("kind", [*RESIDUAL, "double_conv"])
def test_dropout_acts_in_training_only(kind: str) -> None:
    config = (RESIDUAL | {"double_conv": DoubleConvBlock})[kind](dropout=0.5, groups=2)
    part, x, e = block(config), images(1, 8, 6, 6), images(1, 6)
    assert torch.equal(part(x, e), part(x, e))
    part.train()
    assert not torch.equal(part(x, e), part(x, e))


@pytest.mark.parametrize("padding", ["reflect", "circular"])
@every_residual
def test_every_convolution_of_a_block_has_the_border(kind: str, padding: str) -> None:
    part = block(RESIDUAL[kind](groups=2), padding=padding)
    wide = [m for m in part.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert len(wide) >= 2
    assert all(m.mode == padding and m.padding == (0, 0) for m in wide)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "config",
    [
        ResidualBlock(groups=2),
        ResidualBlock(groups=2, condition="scale_shift", rescale=True),
        DilatedBlock(groups=2),
        MultiScaleBlock(groups=2, kernels=(1, 3)),
        DoubleConvBlock(norm="group", activation="silu", groups=2),
        DoubleConvBlock(norm="batch", activation="silu"),
    ],
    ids=lambda config: f"{config.kind}-{config.norm}-{getattr(config, 'condition', '')}",
)
def test_a_block_has_the_right_gradients(config: Any, dims: int) -> None:
    part = block(config, 2, 4, dims=dims, embed=2)
    assert_right_gradients(part, images(1, 2, *[2] * dims), images(1, 2))
