"""What a network's config refuses, and what it is told by shorter words."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError

from diffunet import UNetConfig
from diffunet.spec import (
    BlurPool,
    ChannelAttention,
    ClassLinear,
    DilatedBlock,
    DoubleConvBlock,
    InBlock,
    MultiScaleBlock,
    NearestConv,
    ResidualBlock,
    SelfAttention,
    StridedConv,
)
from tests.nn.networks import tiny_config

MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"channel_multipliers": (1, 0, 2)}, "must be at least 1, not 0"),
    ({"blocks_per_level": (1, 2)}, "names 2 levels but there are 3"),
    ({"blocks_per_level": 0}, "blocks_per_level must be 1 to 64, not 0"),
    ({"attention_levels": (3,)}, "attention_levels holds 3 but the levels are 0 to 2"),
    ({"checkpoint_levels": 1, "block": DoubleConvBlock(norm="batch")}, "checkpoint_levels with block.norm = 'batch'"),
    ({"checkpoint_levels": (-1,)}, "checkpoint_levels holds -1 but the levels are 0 to 2"),
    ({"block": ResidualBlock(groups=3)}, "8 channels is not divisible by block.groups = 3"),
    ({"attention": SelfAttention(heads=3)}, "16 channels is not divisible by attention.heads = 3"),
    ({"attention": SelfAttention(head_channels=5)}, "16 channels is not divisible by attention.head_channels = 5"),
    ({"null_class": True}, "null_class needs num_classes"),
    ({"num_classes": 0}, "num_classes"),
    ({"dims": 4}, "dims"),
    ({"in_channels": "3"}, "in_channels"),
    ({"base_chanels": 8}, "base_chanels"),
    ({"block": {"eps": float("nan")}}, "block.residual.eps"),
    ({"downs": ("max_pool",)}, "downs names 1 parts but 3 levels (base_channels x channel_multipliers) have 2"),
    ({"ups": ("nearest",) * 3}, "ups names 3 parts but 3 levels (base_channels x channel_multipliers) have 2"),
    ({"attentions": ("self",)}, "attentions names 1 parts but 3 levels"),
    (
        {"attentions": ("self", {"kind": "self", "heads": 3}, "self")},
        "a width of 16 channels is not divisible by attentions.1.heads = 3",
    ),
    ({"block": DilatedBlock(groups=2, rates=(1, 2))}, "block.rates must be 3 whole numbers"),
    ({"block": DilatedBlock(groups=2, rates=(1, 0, 2))}, "block.rates must be 3 whole numbers"),
    ({"down": "none"}, "down = 'none' and up = 'nearest_conv': where one is 'none' the other must be"),
    ({"downs": ("none", "max_pool")}, "down = 'none' and up = 'nearest_conv'"),
    (
        {"block": "double_conv", "down": "in_block"},
        "'in_block' needs a block that resamples, which block = 'double_conv' does not",
    ),
    ({"time": "none", "vector_channels": 3}, "vector_channels needs a time embedding with an MLP, which time = 'none'"),
    (
        {"time": "magnitude_preserving", "num_classes": 3, "class_embedding": ClassLinear()},
        "class_embedding = 'linear' needs a time embedding with an MLP, which time = 'magnitude_preserving' has not",
    ),
    ({"time": "none", "divide_by_time": True}, "divide_by_time needs a time, but time = 'none'"),
    (
        {"down": "none", "up": "none", "input_pyramid": "skip"},
        "input_pyramid needs a down operator between all levels, but down = 'none'",
    ),
    ({"stem_channels": 9}, "a width of 9 channels is not divisible by block.groups = 2"),
    ({"stem_channels": "widest"}, "stem_channels"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_a_contradiction_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        tiny_config(**changes)
    assert message in str(caught.value)


def test_all_contradictions_are_named_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        tiny_config(blocks_per_level=(1, 2), attention_levels=(7,), null_class=True)
    assert all(part in str(caught.value) for part in ("names 2 levels", "holds 7", "needs num_classes"))


def test_a_contradiction_of_several_levels_is_named_once() -> None:
    with pytest.raises(ValidationError) as caught:
        tiny_config(down="none")
    assert str(caught.value).count("where one is 'none'") == 1


def test_heads_and_head_channels_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="heads or head_channels, not both"):
        SelfAttention(heads=2, head_channels=8)


@pytest.mark.parametrize(("kernels", "message"), [((), "kernels is empty"), ((1, 2), "not 2"), ((33,), "not 33")])
def test_kernels_are_odd(kernels: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MultiScaleBlock(kernels=kernels)


@pytest.mark.parametrize("taps", [1, 8])
def test_filters_have_two_to_seven_taps(taps: int) -> None:
    with pytest.raises(ValidationError, match="taps"):
        BlurPool(taps=taps)


def test_a_width_that_is_not_used_need_not_be_divisible() -> None:
    assert tiny_config(base_channels=9, channels=(8, 16), stem_channels=8).stem_width == 8
    assert tiny_config(base_channels=9, channels=(8, 16), stem_channels="first_level").stem_width == 8


def test_widths_follow_from_base_and_multipliers() -> None:
    assert UNetConfig(base_channels=64, channel_multipliers=(1, 3)).widths == (64, 192)
    assert UNetConfig(channels=(96, 32, 64)).widths == (96, 32, 64)
    assert all(b == 2 * a for a, b in pairwise(UNetConfig(base_channels=32, channel_multipliers=(1, 2, 4)).widths))


def test_a_part_is_its_kind_or_a_table_of_its_options() -> None:
    assert tiny_config(up="nearest_conv", down="strided_conv") == tiny_config()
    assert tiny_config().up == NearestConv()
    assert tiny_config(down={"pad": "asymmetric"}).down == StridedConv(pad="asymmetric")
    config = tiny_config(downs=[{"kind": "in_block", "taps": 4}, "max_pool"], attentions=["self", "channel", "linear"])
    assert config.downs[0] == InBlock(taps=4)
    assert config.attentions[1] == ChannelAttention()
    assert (config.down_at(1).kind, config.up_at(1).kind, config.attention_at(2).kind) == (
        "max_pool",
        "nearest_conv",
        "linear",
    )


def test_a_config_survives_json() -> None:
    config = tiny_config(
        downs=("max_pool", {"kind": "blur_pool", "taps": 3}),
        ups=("nearest", "fir"),
        attentions=("self", "spatial", "cosine"),
        block=MultiScaleBlock(groups=2),
        input_pyramid="residual",
        stem_channels="first_level",
    )
    assert UNetConfig.model_validate_json(config.model_dump_json()) == config
    assert UNetConfig(**config.model_dump(mode="json")) == config
