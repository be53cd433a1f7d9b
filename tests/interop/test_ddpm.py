"""ermongroup/ddim: every fixture computes the same here and returns unchanged."""

from __future__ import annotations

from typing import Any

import pytest

from diffunet import UNet
from diffunet.errors import CheckpointError, ConfigError
from diffunet.interop import ddpm
from diffunet.spec import SelfAttention, SinusoidalTime, StridedConv
from tests.interop.parity import TOLERANCE, case, empty, names, same, worst

SMALL: dict[str, Any] = {
    "base_channels": 32,
    "channel_multipliers": (1, 2),
    "down": StridedConv(pad="asymmetric"),
}


@pytest.mark.parametrize("name", names("ddim"))
def test_a_network_of_theirs_computes_the_same_and_returns_unchanged(name: str) -> None:
    found = case(name)
    net = ddpm.from_state(found.state)
    assert worst(found, net) <= TOLERANCE
    assert same(ddpm.to_state(net), found.state)


@pytest.mark.parametrize("preset", ["ddpm-cifar10", "ddpm-256"])
def test_the_published_networks_are_known_by_their_tensors(preset: str) -> None:
    assert ddpm.matches(ddpm.to_state(empty(preset)))


def test_dropout_is_said_not_seen() -> None:
    assert ddpm.from_state(case("ddim-two-levels").state, block={"dropout": 0.1}).config.block.dropout == 0.1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"down": StridedConv()}, "down = .*symmetric"),
        ({"attention": SelfAttention(heads=4)}, r"attention.heads = {1: 4}"),
        ({"time": SinusoidalTime(order="cos_sin")}, "time.order = cos_sin"),
        ({"num_classes": 3}, r"\(num_classes\)"),
        ({"stem_channels": 64}, "base_channels = 32"),
    ],
)
def test_what_they_have_not_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ddpm.to_state(UNet(**(SMALL | changes)))


def test_other_shortcuts_and_missing_tensors_are_refused() -> None:
    state = case("ddim-two-levels").state
    with pytest.raises(ConfigError, match="conv_shortcut"):
        ddpm.from_state(state | {"down.1.block.0.conv_shortcut.weight": state["conv_in.weight"]})
    with pytest.raises(CheckpointError, match=r"down.0.block.0.norm1.bias is missing"):
        ddpm.from_state({name: value for name, value in state.items() if name != "down.0.block.0.norm1.bias"})
    with pytest.raises(CheckpointError, match=r"no 'conv_out.weight'"):
        ddpm.from_state({name: value for name, value in state.items() if name != "conv_out.weight"})
