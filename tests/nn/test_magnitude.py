"""Magnitude-preserving parts: their formulas, and that what goes in with unit size comes out with it.

Equation numbers are those of EDM2 (2312.02696).
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffunet import UNet
from diffunet.nn import ATTENTIONS, BLOCKS, SKIPS
from diffunet.nn.embeddings import MPFourier
from diffunet.nn.ends import MPHead, MPStem
from diffunet.nn.filters import Halve
from diffunet.nn.magnitude import MPConv, mp_cat, mp_silu, mp_sum, normalize
from diffunet.spec import BalancedSkip, CosineAttention, MagnitudeBlock
from tests.nn.networks import CONV, assert_right_gradients, images, site


def size(x: Tensor) -> float:
    """Root mean square."""
    return x.detach().square().mean().sqrt().item()


def part(config: Any, *channels: int, **where: Any) -> Any:
    torch.manual_seed(0)
    tables = {"magnitude_preserving": BLOCKS, "cosine": ATTENTIONS, "balanced": SKIPS}
    return tables[config.kind].build(config, site(**{"block": MagnitudeBlock()} | where), *channels).eval()


# --- formulas --------------------------------------------------------------------------------------------------------


def test_normalized_is_divided_by_its_size() -> None:
    """Eq. 66."""
    x = 7 * images(3, 8, 4)
    expected = torch.stack([row / (1e-4 + size(row)) for row in x])
    torch.testing.assert_close(normalize(x), expected)
    over_channels = x / (1e-4 + x.square().mean(dim=1, keepdim=True).sqrt())
    torch.testing.assert_close(normalize(x, dims=(1,)), over_channels)
    assert not normalize(torch.zeros(2, 3)).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_sizes_are_taken_in_full_precision(dtype: torch.dtype) -> None:
    x = 300 * images(2, 512, 8, dtype=dtype)  # 300^2 is no number in float16
    assert normalize(x, dims=(1,)).dtype == dtype
    assert size(normalize(x, dims=(1,)).double()) == pytest.approx(1, rel=0.01)


def test_the_sum_and_the_joint_are_their_formulas() -> None:
    """Eq. 88 and 103."""
    a, b = images(2, 8, 3), images(2, 8, 3, seed=2)
    torch.testing.assert_close(mp_sum(a, b, 0.3), (0.7 * a + 0.3 * b) / sqrt(0.7**2 + 0.3**2))
    scale = sqrt(16 / (0.7**2 + 0.3**2))
    torch.testing.assert_close(mp_cat(a, b, 0.3), torch.cat([0.7 * a, 0.3 * b], dim=1) * scale / sqrt(8))
    assert mp_sum(a, b.bfloat16(), 0.3).dtype == torch.float32


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize(("dims", "kernel"), [(1, 3), (2, 1), (2, 3), (3, 3)])
def test_a_convolution_uses_its_weights_at_unit_size(dims: int, kernel: int, padding: str) -> None:
    conv, x = MPConv(dims, 4, 6, kernel, padding).eval(), images(2, 4, *[5] * dims)
    w = conv.weight
    unit = torch.stack([row / (1e-4 + size(row)) for row in w]) / sqrt(4 * kernel**dims)
    mode = "constant" if padding == "zeros" else padding
    wide = F.pad(x, [kernel // 2] * 2 * dims, mode=mode)
    torch.testing.assert_close(conv(x, gain=2.5), 2.5 * CONV[dims](wide, unit))
    torch.testing.assert_close(unit.flatten(1).norm(dim=1), torch.ones(6), rtol=0, atol=1e-3)


def test_training_brings_the_weights_themselves_back_to_unit_size() -> None:
    """Eq. 47: and what they do stays the same."""
    conv, x = MPConv(2, 4, 6, 3), images(2, 4, 5, 5)
    with torch.no_grad():
        conv.weight.mul_(9)
    before, y = conv.weight.clone(), conv.eval()(x)
    assert torch.equal(conv.weight, before)
    torch.testing.assert_close(conv.train()(x), y, rtol=2e-4, atol=1e-5)  # eps is 1e-4
    assert [size(row) for row in conv.weight] == pytest.approx([1] * 6, rel=1e-3)


def test_a_step_along_the_gradient_turns_the_weights_and_does_not_stretch_them() -> None:
    conv = MPConv(2, 4, 6, 3)
    conv(images(2, 4, 5, 5)).square().sum().backward()
    along = (conv.weight.grad * conv.weight).flatten(1).sum(dim=1) / conv.weight.grad.flatten(1).norm(dim=1)
    assert along.abs().max() < 1e-3


def test_the_stem_sees_a_channel_of_ones_and_the_head_starts_silent() -> None:
    stem, x = MPStem(2, 4, 8, 3).eval(), images(2, 3, 5, 5)
    torch.testing.assert_close(stem(x), MPConv.forward(stem, torch.cat([x, torch.ones(2, 1, 5, 5)], dim=1)))
    head = MPHead(2, 8, 3, 3, "zeros").eval()
    assert not head(stem(x)).any()
    torch.nn.init.constant_(head.gain, 2.0)
    torch.testing.assert_close(head(stem(x)), MPConv.forward(head, stem(x), 2.0))


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_cosine_attention_is_its_formula(dims: int, heads: int) -> None:
    """Queries, keys and values of unit size over a head's channels; the three of one channel stand together."""
    attention = part(CosineAttention(heads=heads, balance=0.4), 8, dims=dims)
    x, width = images(2, 8, *[3] * dims), 8 // heads
    qkv = attention.qkv(x).flatten(2)
    outs = []
    for head in range(heads):
        mine = qkv[:, 3 * width * head : 3 * width * (head + 1)]
        q, k, v = (normalize(mine[:, i::3], dims=(1,)) for i in range(3))  # (B, width, positions)
        outs.append(v @ (k.mT @ q / sqrt(width)).softmax(dim=1))
    y = attention.out(torch.cat(outs, dim=1).reshape(x.shape))
    torch.testing.assert_close(attention(x), mp_sum(x, y, 0.4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("encoder", [True, False])
@pytest.mark.parametrize(("out_channels", "project"), [(8, False), (8, True), (12, False)])
def test_a_block_is_its_formula(out_channels: int, project: bool, encoder: bool) -> None:
    """Fig. 19: on the way down the shortcut comes first and its pixels are normalised, on the way up it comes last."""
    resample, site_of = Halve(2, "zeros"), site(block=MagnitudeBlock(), encoder=encoder)
    torch.manual_seed(0)
    block = BLOCKS.build(MagnitudeBlock(), site_of, 8, out_channels, resample, project).eval()
    torch.nn.init.constant_(block.gain, 0.7)
    x, e = images(2, 8, 6, 4), images(2, 6)
    small = F.avg_pool2d(x, 2)
    if encoder:
        small = normalize(block.shortcut(small), dims=(1,))
    told = 1 + block.embed(mp_silu(e), gain=0.7)[:, :, None, None]
    h = block.conv_out(mp_silu(block.conv_in(mp_silu(small)) * told))
    assert isinstance(block.shortcut, MPConv) == (project or out_channels != 8)
    torch.testing.assert_close(block(x, e), mp_sum(small if encoder else block.shortcut(small), h, 0.3))


def test_what_leaves_a_block_is_clipped() -> None:
    block = part(MagnitudeBlock(clip=0.5), 8, 8, block=MagnitudeBlock(clip=0.5))
    y = block(images(2, 8, 6, 4), images(2, 6))
    assert y.abs().max() == 0.5
    attention = part(CosineAttention(), 8, block=MagnitudeBlock(clip=0.5))
    assert attention(images(2, 8, 6, 4)).abs().max() == 0.5


def test_parts_have_the_right_gradients() -> None:
    conv = MPConv(1, 2, 3, 3).eval()
    assert_right_gradients(conv, images(1, 2, 4))
    for encoder in (True, False):
        block = part(MagnitudeBlock(), 2, 4, dims=1, embed=2, encoder=encoder)
        torch.nn.init.constant_(block.gain, 0.7)
        assert_right_gradients(block, images(1, 2, 3), images(1, 2))
    assert_right_gradients(part(CosineAttention(heads=2), 4, dims=1), images(1, 4, 3))


# --- unit size in, unit size out -------------------------------------------------------------------------------------

WIDE = (8, 64, 32, 32)  # half a million values: sizes are known to about 0.2 %


def test_silu_keeps_the_size() -> None:
    """Eq. 81: the root mean square of SiLU is 0.5964692."""
    x = images(4_000_000, dtype=torch.float64)
    assert size(F.silu(x)) == pytest.approx(0.5964692, rel=2e-3)
    assert size(mp_silu(x)) == pytest.approx(1, rel=3e-3)


@pytest.mark.parametrize("balance", [0.1, 0.5, 0.7])
def test_sums_and_joints_keep_the_size(balance: float) -> None:
    a, b = images(*WIDE), images(*WIDE, seed=2)
    assert size(mp_sum(a, b, balance)) == pytest.approx(1, rel=0.01)
    assert size(mp_cat(a, b[:, :16], balance)) == pytest.approx(1, rel=0.01)
    joined = part(BalancedSkip(balance=balance), 64, 16)(a, b[:, :16])
    # and each half counts by its share, whatever its width
    shares = joined[:, :64].square().sum() / joined.square().sum()
    assert shares.item() == pytest.approx((1 - balance) ** 2 / ((1 - balance) ** 2 + balance**2), rel=0.01)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("scale", [0.01, 1, 100])
def test_a_convolution_keeps_the_size_whatever_its_weights(scale: float, kernel: int) -> None:
    conv = MPConv(2, 64, 128, kernel, "circular").eval()
    torch.nn.init.normal_(conv.weight, std=scale)
    assert size(conv(images(*WIDE))) == pytest.approx(1, rel=0.02)


def test_cosines_have_unit_size_at_every_time() -> None:
    """Eq. 75."""
    fourier = MPFourier(100_000)
    for t in (0.0, 0.3, 5.0, 900.0):
        assert size(fourier(torch.tensor([t]))) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("encoder", [True, False])
def test_a_block_keeps_the_size(encoder: bool) -> None:
    block = part(MagnitudeBlock(), 64, 64, encoder=encoder, padding="circular")
    assert size(block(images(*WIDE), images(8, 6))) == pytest.approx(1, rel=0.03)


def test_attention_keeps_the_size_of_its_stream() -> None:
    """The values are means of unit vectors, which are smaller: the sum may shrink to its first share, no further."""
    x = images(2, 64, 16, 16)
    assert 0.7 / sqrt(0.7**2 + 0.3**2) * 0.98 < size(part(CosineAttention(heads=4), 64)(x)) < 1.02


def test_a_deep_network_keeps_the_size() -> None:
    """Over 30 untrained blocks features neither fade nor grow, as they would in a sum of residuals."""
    torch.manual_seed(0)
    net = UNet(
        base_channels=32,
        channel_multipliers=(1, 2),
        blocks_per_level=6,
        time="magnitude_preserving",
        block=MagnitudeBlock(),
        attention_levels=(),
        attention_in_mid=False,
        down="in_block",
        up="in_block",
        skip="balanced",
        padding="circular",
    ).eval()
    sizes = []
    for step in net.up:
        step.blocks[-1].register_forward_hook(lambda _, inputs, y: sizes.append(size(y)))
    net(images(4, 3, 16, 16), torch.tensor(0.3))
    assert sizes == pytest.approx([1, 1], abs=0.15)
