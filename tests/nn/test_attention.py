"""Attention against torch's own and against its formulas."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from diffunet.nn import ATTENTIONS
from diffunet.spec import ChannelAttention, LinearAttention, ResidualBlock, SelfAttention, SpatialAttention
from tests.nn.networks import assert_right_gradients, images, perturbed, site

HEADS = [
    ({}, 1),
    ({"heads": 3}, 3),
    ({"head_channels": 3}, 4),
    ({"head_channels": 12}, 1),
    ({"heads": 12}, 12),
]


def attention(config: Any, channels: int = 12, **where: Any) -> Any:
    return perturbed(ATTENTIONS.build(config, site(**where), channels)).eval()


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(("options", "heads"), HEADS)
def test_self_attention_is_that_of_torch(options: dict[str, int], heads: int, rescale: bool) -> None:
    part = attention(SelfAttention(**options), block=ResidualBlock(groups=2, rescale=rescale))
    assert part.heads == heads
    torchs = nn.MultiheadAttention(12, heads, batch_first=True)
    torchs.load_state_dict(
        {
            "in_proj_weight": part.qkv.weight,
            "in_proj_bias": part.qkv.bias,
            "out_proj.weight": part.out.weight,
            "out_proj.bias": part.out.bias,
        }
    )
    x = images(2, 12, 3, 5)
    h = rearrange(F.group_norm(x, 2, part.norm.weight, part.norm.bias, 1e-6), "b c h w -> b (h w) c")
    expected = x + rearrange(torchs(h, h, h)[0], "b (h w) c -> b c h w", h=3)
    torch.testing.assert_close(part(x), expected / sqrt(2) if rescale else expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("options", "heads"), HEADS)
def test_linear_attention_is_the_square_table_that_it_never_makes(options: dict[str, int], heads: int) -> None:
    part, x = attention(LinearAttention(**options)).double(), images(2, 12, 3, 5, dtype=torch.float64)
    tokens = rearrange(part.norm(x), "b c h w -> b (h w) c")
    q, k, v = (rearrange(y, "b n (h d) -> b h n d", h=heads) for y in part.qkv(tokens).chunk(3, dim=-1))
    table = (q / sqrt(12 / heads)).softmax(dim=3) @ k.softmax(dim=2).mT  # positions x positions
    expected = x + rearrange(part.out(rearrange(table @ v, "b h n d -> b n (h d)")), "b (h w) c -> b c h w", h=3)
    torch.testing.assert_close(part(x), expected)


def test_the_weights_of_linear_attention_sum_to_one() -> None:
    """Each query's features sum to 1 and each key's positions sum to 1: values all equal come out as they are."""
    part = attention(LinearAttention(heads=3))
    q, k = images(1, 3, 7, 4), images(1, 3, 7, 4, seed=2)
    torch.testing.assert_close(part.look(q, k, torch.ones(1, 3, 7, 4)), torch.ones(1, 3, 7, 4))


def test_linear_attention_keeps_no_square_table() -> None:
    part, sizes = attention(LinearAttention(), embed=0), []
    x = images(1, 12, 40, 40)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        part(x)
    assert max(sizes) <= 3 * x.numel() < (40 * 40) ** 2


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_spatial_attention_is_a_gate_for_each_position(dims: int, kernel: Any) -> None:
    part, x = attention(SpatialAttention(kernel=kernel), dims=dims), images(2, 12, *[5] * dims)
    gate = 1 / (1 + torch.exp(-part.conv(x)))
    assert gate.shape == (2, 1, *[5] * dims)
    torch.testing.assert_close(part(x), gate * x)


@pytest.mark.parametrize(("reduction", "inner"), [(1, 12), (4, 3), (8, 1), (100, 1)])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_channel_attention_is_a_gate_for_each_channel(dims: int, reduction: int, inner: int) -> None:
    part, x = attention(ChannelAttention(reduction=reduction), dims=dims), images(2, 12, *[3] * dims)
    assert part.squeeze.out_features == inner
    mean = x.reshape(2, 12, -1).sum(dim=2) / 3**dims
    hidden = F.silu(mean @ part.squeeze.weight.T + part.squeeze.bias)
    gates = torch.sigmoid(hidden @ part.excite.weight.T + part.excite.bias)
    torch.testing.assert_close(part(x), torch.stack([x[i] * gates[i].view(12, *[1] * dims) for i in range(2)]))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", [SelfAttention, LinearAttention, ChannelAttention])
def test_attention_does_not_know_where_pixels_are(kind: Any, dims: int) -> None:
    part, x = attention(kind(), dims=dims), images(1, 12, *[3] * dims)
    order = torch.randperm(3**dims)
    mixed = part(x.flatten(2)[..., order].reshape(x.shape))
    torch.testing.assert_close(mixed, part(x).flatten(2)[..., order].reshape(x.shape), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [SelfAttention, LinearAttention])
def test_fresh_attention_passes_its_input(kind: Any) -> None:
    x = images(2, 12, 3, 3)
    assert torch.equal(ATTENTIONS.build(kind(), site(), 12)(x), x)
    restless = site(block=ResidualBlock(groups=2, zero_init=False))
    assert not torch.equal(ATTENTIONS.build(kind(), restless, 12)(x), x)


def test_a_plain_place_has_no_norm() -> None:
    assert isinstance(attention(SelfAttention(), plain=True).norm, nn.Identity)


@pytest.mark.parametrize("kind", [SelfAttention, LinearAttention, SpatialAttention, ChannelAttention])
def test_attention_has_the_right_gradients(kind: Any) -> None:
    options = {"heads": 2} if "heads" in kind.model_fields else {}
    assert_right_gradients(attention(kind(**options), 4), images(1, 4, 2, 2))
