"""improved- and guided-diffusion: every fixture computes the same here and returns unchanged."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffunet import UNet
from diffunet.errors import CheckpointError, ConfigError
from diffunet.interop import adm
from diffunet.spec import LinearAttention, ResidualBlock, SelfAttention, SinusoidalTime, StridedConv
from diffunet.zoo import PRESETS
from tests import peers
from tests.interop.parity import TOLERANCE, case, empty, names, same, worst

CASES = names("guided-diffusion", "improved-diffusion")
HEADS = "guided-diffusion-legacy-scale-block"
SMALL: dict[str, Any] = {
    "base_channels": 32,
    "channel_multipliers": (1, 2),
    "time": SinusoidalTime(order="cos_sin", shift=0),
    "block": ResidualBlock(eps=1e-5),
}


def hidden(found: peers.Case) -> dict[str, Any]:
    """What the tensors of a fixture do not show."""
    flags = found.flags
    order = "new" if flags.get("use_new_attention_order") else "legacy"
    return {
        "heads": flags.get("num_heads"),
        "head_channels": flags.get("num_head_channels"),
        "attention_order": order,
    }


@pytest.mark.parametrize("name", CASES)
def test_a_network_of_theirs_computes_the_same_and_returns_unchanged(name: str) -> None:
    found = case(name)
    told = hidden(found)
    net = adm.from_state(found.state, **told)
    assert worst(found, net) <= TOLERANCE
    assert same(adm.to_state(net, told["attention_order"]), found.state)


def test_the_other_order_is_another_network() -> None:
    """With four heads at the width of 64 the two orders differ, so that a wrong flag cannot pass for the right one."""
    found = case(HEADS)
    assert worst(found, adm.from_state(found.state, head_channels=16, attention_order="legacy")) <= TOLERANCE
    assert worst(found, adm.from_state(found.state, head_channels=16, attention_order="new")) > 1e-3
    assert worst(found, adm.from_state(found.state, heads=1, attention_order="legacy")) > 1e-3


def test_one_head_needs_no_order() -> None:
    net = adm.from_state(adm.to_state(UNet(**SMALL, attention=SelfAttention(heads=1)), "new"), heads=1)
    assert net.config.attention.count(64) == 1


def test_what_the_tensors_do_not_show_is_asked_for() -> None:
    state = case(HEADS).state
    with pytest.raises(ConfigError, match=r"give heads or head_channels .*--heads"):
        adm.from_state(state)
    with pytest.raises(ConfigError, match="give heads or head_channels"):
        adm.from_state(state, heads=2, head_channels=16)
    with pytest.raises(ConfigError, match=r"give attention_order, legacy or new .*--attention-order"):
        adm.from_state(state, heads=2)


def test_changes_are_laid_over_what_was_found() -> None:
    state = case("guided-diffusion-labels").state
    net = adm.from_state(
        state, head_channels=16, attention_order="new", num_classes=9, null_class=True, block={"dropout": 0.3}
    )
    assert (net.config.num_classes, net.null_label, net.config.block.dropout) == (9, 9, 0.3)
    assert net.config.block.condition == "scale_shift"
    with pytest.raises(ConfigError, match=r"unknown key 'model.block.dropuot'; did you mean 'dropout'\?"):
        adm.from_state(state, heads=1, block={"dropuot": 0.3})


def test_an_upsampler_with_a_learned_variance_is_told_apart_by_its_condition() -> None:
    """Six channels in and six out may be three beside three, or six."""
    net = UNet(**SMALL, cond_channels=3, learned_variance=True)
    state = adm.to_state(net)
    assert adm.from_state(state, heads=1, cond_channels=3).config == net.config.model_copy(
        update={"attention": SelfAttention(heads=1)}
    )
    assert adm.from_state(state, heads=1).config.in_channels == 6


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith(("iddpm", "adm", "cm"))])
def test_the_published_networks_are_known_by_their_tensors(preset: str) -> None:
    """Whatever a preset says, but for heads, follows from names and shapes; else `to_state` would refuse."""
    assert adm.matches(adm.to_state(empty(preset)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"time": SinusoidalTime()}, "time.order = sin_cos, time.shift = 1"),
        ({"block": ResidualBlock()}, "block.eps"),
        ({"block": ResidualBlock(eps=1e-5, groups=8)}, "block.groups"),
        ({"attention_up": "last"}, "attention_up = last"),
        ({"attention_in_mid": False}, "attention_in_mid = False"),
        ({"attention": LinearAttention(heads=2)}, "attention = .*linear"),
        ({"blocks_per_level": (1, 2)}, "blocks_per_level|differences"),
        ({"down": StridedConv(pad="asymmetric")}, "down"),
        ({"down": "max_pool", "up": "nearest"}, "down"),
        ({"up": "transposed_conv"}, "up"),
        ({"skip": "gated"}, r"\(skip\)"),
        ({"vector_channels": 9}, r"\(vector_channels\)"),
        ({"input_pyramid": "skip"}, r"\(input_pyramid or output_pyramid\)"),
        ({"dims": 3}, "three dimensions"),
        ({"padding": "circular"}, "padding = circular"),
        ({"self_conditioning": True}, "self_conditioning = True"),
    ],
)
def test_what_they_have_not_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        adm.to_state(UNet(**(SMALL | changes)))


def test_half_a_network_is_refused() -> None:
    state = case(HEADS).state
    classifier = {name: value for name, value in state.items() if not name.startswith("output_blocks")}
    with pytest.raises(ConfigError, match="classifier"):
        adm.from_state(classifier, heads=1)
    broken = {name: value for name, value in state.items() if name != "middle_block.1.qkv.weight"}
    with pytest.raises(CheckpointError, match=r"1 differences.*middle_block.1.qkv.weight is missing"):
        adm.from_state(broken, heads=1)
    with pytest.raises(CheckpointError, match=r"no 'time_embed.0.weight'"):
        adm.from_state({"input_blocks.0.0.weight": torch.zeros(1)}, heads=1)
