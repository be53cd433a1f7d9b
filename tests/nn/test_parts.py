"""The parts against their formulas, written out once more in plain torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.nn import ATTENTIONS, BLOCKS, DOWNS, SKIPS, TIMES, UPS
from diffunet.nn.layers import Chain, GroupNorm, Timed, conv, crop_like, pad_to_even, zero
from diffunet.nn.site import Site
from diffunet.spec import ConcatSkip, NearestConv, ResidualBlock, SelfAttention, SinusoidalTime, StridedConv
from tests.nn.networks import perturbed, tiny_config


def block(config: ResidualBlock, in_channels: int = 8, out_channels: int = 12, embed: int = 6, dims: int = 2) -> Any:
    return perturbed(BLOCKS.build(config, Site(dims, config, embed), in_channels, out_channels)).eval()


def site(**changes: Any) -> Site:
    network = tiny_config(**changes)
    return Site(network.dims, network.block, 6, network.padding)


def attention(config: SelfAttention, channels: int, **changes: Any) -> Any:
    return perturbed(ATTENTIONS.build(config, site(**changes), channels)).eval()


# --- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [(1,), (1, 1), (1, 1, 1)], ids=str)
def test_the_norm_of_a_single_value_is_its_bias(sides: tuple[int, ...]) -> None:
    norm, x = perturbed(GroupNorm(3, 3)).train(), torch.randn(1, 3, *sides)
    # x - mean is not quite 0 in float32, and is divided by sqrt(eps)
    torch.testing.assert_close(norm(x).flatten(), norm.bias, rtol=0, atol=1e-4)


def test_the_group_norm_is_that_of_torch() -> None:
    norm, x = perturbed(GroupNorm(2, 8, eps=1e-3)), torch.randn(2, 8, 5, 3)
    torch.testing.assert_close(norm(x), F.group_norm(x, 2, norm.weight, norm.bias, 1e-3))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_keeps_the_size(dims: int, kernel: int) -> None:
    assert conv(dims, 2, 5, kernel=kernel)(torch.randn(1, 2, *[4] * dims)).shape == (1, 5, *[4] * dims)


def test_zero_leaves_no_parameter() -> None:
    assert not any(p.any() for p in zero(nn.Linear(3, 3)).parameters())


def test_a_chain_tells_only_the_timed_parts() -> None:
    class Shift(Timed):
        def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
            return x + embedding

    chain = Chain(nn.ReLU(), Shift(), nn.ReLU())
    assert chain(torch.tensor([-1.0, 1.0]), torch.tensor([-2.0, 3.0])).tolist() == [0, 4]


# --- time ------------------------------------------------------------------------------------------------------------


def waves(order: str, shift: int, channels: int, t: float) -> list[float]:
    """The sinusoids of DDPM and ADM, one at a time."""
    half = channels // 2
    angles = [t * 10_000 ** (-i / max(half - shift, 1)) for i in range(half)]
    sines, cosines = [math.sin(a) for a in angles], [math.cos(a) for a in angles]
    return (cosines + sines if order == "cos_sin" else sines + cosines) + [0.0] * (channels % 2)


@pytest.mark.parametrize("channels", [2, 3, 8, 9])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("order", ["sin_cos", "cos_sin"])
def test_sinusoids_follow_their_formula(order: Any, shift: Any, channels: int) -> None:
    times = [0.0, 1.0, 17.25, 999.0]
    embed = perturbed(TIMES.build(SinusoidalTime(order=order, shift=shift), channels, 3 * channels))
    features = torch.tensor([waves(order, shift, channels, t) for t in times])
    expected = embed.mlp_out(F.silu(embed.mlp_in(features)))
    assert embed.out_channels == expected.shape[1] == 3 * channels
    torch.testing.assert_close(embed(torch.tensor(times)), expected, rtol=0, atol=2e-4)  # float32 angles up to 999


def test_sinusoids_keep_their_precision_in_a_half_precision_network() -> None:
    embed = TIMES.build(SinusoidalTime(), 64, 256)
    full = embed(torch.tensor([998.0, 999.0]))
    half = embed.bfloat16()(torch.tensor([998.0, 999.0]))
    assert half.dtype == torch.bfloat16
    # with frequencies rounded to bfloat16 the difference is 0.3 and more
    torch.testing.assert_close(half.float(), full, rtol=0, atol=0.02)


# --- blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out_channels", [8, 12])
@pytest.mark.parametrize("condition", ["shift", "scale_shift"])
def test_a_residual_block_is_its_formula(condition: Any, out_channels: int) -> None:
    part = block(ResidualBlock(condition=condition, groups=4, eps=1e-4, dropout=0.4), 8, out_channels)
    x, e = torch.randn(2, 8, 5, 4), torch.randn(2, 6)

    def norm(layer: nn.GroupNorm, x: Tensor) -> Tensor:
        return F.group_norm(x, 4, layer.weight, layer.bias, 1e-4)

    told = part.embed(F.silu(e))[:, :, None, None]
    h = part.conv_in(F.silu(norm(part.norm_in, x)))
    if condition == "shift":
        h = norm(part.norm_out, h + told)
    else:
        h = norm(part.norm_out, h) * (1 + told[:, :out_channels]) + told[:, out_channels:]
    shortcut = part.shortcut(x) if out_channels != 8 else x
    torch.testing.assert_close(part(x, e), shortcut + part.conv_out(F.silu(h)))


def test_dropout_acts_in_training_only() -> None:
    part = block(ResidualBlock(dropout=0.5, groups=2))
    x, e = torch.randn(1, 8, 6, 6), torch.randn(1, 6)
    assert torch.equal(part(x, e), part(x, e))
    part.train()
    assert not torch.equal(part(x, e), part(x, e))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("condition", ["shift", "scale_shift"])
def test_a_block_has_the_right_gradients(condition: Any, dims: int) -> None:
    part = block(ResidualBlock(condition=condition, groups=2), 4, 2, 3, dims).double()
    x = torch.randn(1, 4, *[2] * dims, dtype=torch.float64, requires_grad=True)
    e = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    parameters = tuple(part.parameters())
    assert torch.autograd.gradcheck(lambda x, e, *_: part(x, e), (x, e, *parameters), fast_mode=True)


# --- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        (SelfAttention(), 1),
        (SelfAttention(heads=3), 3),
        (SelfAttention(head_channels=3), 4),
        (SelfAttention(head_channels=12), 1),
    ],
    ids=str,
)
def test_attention_is_its_formula(config: SelfAttention, heads: int) -> None:
    part, x = attention(config, 12), torch.randn(2, 12, 3, 5)
    assert part.heads == heads
    h = F.group_norm(x, 2, part.norm.weight, part.norm.bias, 1e-6)
    q, k, v = part.qkv(rearrange(h, "b c h w -> b (h w) c")).chunk(3, dim=-1)
    outs = []
    for q_i, k_i, v_i in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        outs.append((q_i @ k_i.mT / math.sqrt(12 / heads)).softmax(dim=-1) @ v_i)
    expected = x + rearrange(part.out(torch.cat(outs, dim=-1)), "b (h w) c -> b c h w", h=3)
    torch.testing.assert_close(part(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_attention_does_not_know_where_pixels_are(dims: int) -> None:
    part, x = attention(SelfAttention(heads=2), 8, dims=dims), torch.randn(1, 8, *[3] * dims)
    axes = tuple(range(2, 2 + dims))
    torch.testing.assert_close(part(x.flip(axes)), part(x).flip(axes), rtol=0, atol=1e-5)


def test_attention_has_the_right_gradients() -> None:
    part = attention(SelfAttention(heads=2), 4).double()
    x = torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: part(x), (x, *part.parameters()), fast_mode=True)


# --- between levels --------------------------------------------------------------------------------------------------


def test_odd_sides_are_padded_at_their_end_and_cropped_there() -> None:
    x = torch.randn(1, 2, 3, 4, 5)
    padded = pad_to_even(x)
    assert padded.shape == (1, 2, 4, 4, 6)
    assert torch.equal(crop_like(padded, x), x)
    assert not padded[:, :, 3].any()
    assert not padded[..., 5].any()
    assert pad_to_even(padded) is padded


@pytest.mark.parametrize("pad", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("sides", [(1,), (6,), (7, 4), (3, 2, 1)], ids=str)
def test_down_halves_rounding_up_and_up_doubles(sides: tuple[int, ...], pad: Any) -> None:
    place = site(dims=len(sides))
    down, up = DOWNS.build(StridedConv(pad=pad), place, 4), UPS.build(NearestConv(), place, 4, 4)
    small = down(torch.randn(1, 4, *sides))
    assert small.shape[2:] == tuple(-(-side // 2) for side in sides)
    assert up(small).shape[2:] == tuple(2 * side for side in small.shape[2:])


def test_the_pads_are_where_they_are_said_to_be() -> None:
    x = torch.randn(1, 4, 6, 6)
    for pad, zeros in {"symmetric": (1, 1, 1, 1), "asymmetric": (0, 1, 0, 1)}.items():
        down = DOWNS.build(StridedConv(pad=pad), site(), 4)
        torch.testing.assert_close(down(x), F.conv2d(F.pad(x, zeros), down.conv.weight, down.conv.bias, stride=2))


def test_up_repeats_each_pixel_before_the_convolution() -> None:
    up, x = UPS.build(NearestConv(), site(), 4, 4), torch.randn(1, 4, 3, 2)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(up(x), up.conv(repeated))


def test_a_skip_reports_its_channels_and_stands_behind() -> None:
    join = SKIPS.build(ConcatSkip(), site(), 4, 3)
    x, skip = torch.randn(1, 4, 2, 2), torch.randn(1, 3, 2, 2)
    assert join.out_channels == 7
    assert torch.equal(join(x, skip)[:, 4:], skip)
