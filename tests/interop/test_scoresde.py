"""score_sde: every fixture computes the same here and returns unchanged."""

from __future__ import annotations

import pytest
import torch

from diffunet import UNet
from diffunet.errors import CheckpointError, ConfigError
from diffunet.interop import ddpm, scoresde
from tests.interop.parity import TOLERANCE, case, empty, names, same, worst
from tests.interop.test_ddpm import SMALL


@pytest.mark.parametrize("name", names("score_sde"))
def test_a_network_of_theirs_computes_the_same_and_returns_unchanged(name: str) -> None:
    found = case(name)
    net = scoresde.from_state(found.state)
    assert worst(found, net) <= TOLERANCE
    assert same(scoresde.to_state(net, num_scales=found.arguments["model"]["num_scales"]), found.state)


def test_the_published_network_is_known_by_its_tensors() -> None:
    assert scoresde.matches(scoresde.to_state(empty("score-sde-ddpm")))


def test_what_the_tensors_do_not_show_can_be_said() -> None:
    """A network that does not rescale its sums, as `skip_rescale = False` makes one, has the same tensors."""
    found = case("score_sde-ddpmpp")
    net = scoresde.from_state(found.state, block={"rescale": False})
    assert not net.config.block.rescale
    assert worst(found, net) > 1e-2
    assert same(scoresde.to_state(net, num_scales=50), found.state)


def test_the_same_network_by_the_names_of_both_ports() -> None:
    """Where no level but mid has attention, DDPM's two ports hold the same network."""
    torch.manual_seed(0)
    net = UNet(**SMALL, attention_levels=(), blocks_per_level=1).eval()
    one, other = ddpm.from_state(ddpm.to_state(net)), scoresde.from_state(scoresde.to_state(net))
    assert same(one.state_dict(), net.state_dict())
    assert same(other.state_dict(), net.state_dict())


def test_attention_behind_every_block_is_refused() -> None:
    with pytest.raises(ConfigError, match="score_sde"):
        scoresde.to_state(UNet(**SMALL))


def test_modules_out_of_order_are_refused() -> None:
    state = case("score_sde-ddpm-two-levels").state
    cut = {name: value for name, value in state.items() if not name.startswith("all_modules.2.")}
    with pytest.raises(CheckpointError):
        scoresde.from_state(cut)
    with pytest.raises(CheckpointError, match="not in their order"):
        scoresde.from_state({"all_modules.0.weight": torch.zeros(4, 4)})
