"""EDM and EDM2: every fixture computes the same here and returns unchanged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffunet import Denoiser, Schedule, UNet
from diffunet.errors import CheckpointError, ConfigError
from diffunet.interop import edm, edm2
from diffunet.predictions import PREDICTIONS
from diffunet.zoo import PRESETS
from tests import peers
from tests.interop.parity import TOLERANCE, case, empty, names, same, worst

CASES = names("edm")
CASES_2 = [name for name in names("edm2") if "logvar" not in name]  # that one is no network by itself


def null(found: peers.Case) -> dict[str, Any]:
    """A label of zeros is in the fixtures too."""
    return {"null_class": True} if found.arguments.get("label_dim") else {}


@pytest.mark.parametrize("name", CASES)
def test_a_network_of_edm_computes_the_same_and_returns_unchanged(name: str) -> None:
    found = case(name)
    net = edm.from_state(found.state, **null(found))
    assert worst(found, net) <= TOLERANCE
    assert same(edm.to_state(net, found.arguments["img_resolution"]), found.state)


@pytest.mark.parametrize("name", CASES_2)
def test_a_network_of_edm2_computes_the_same_and_returns_unchanged(name: str) -> None:
    found = case(name)
    net = edm2.from_state(found.state, **null(found))

    def precond(x: Tensor, t: Tensor, **told: Tensor) -> Tensor:
        """D(x; sigma), which a Precond answers where a UNet answers F."""
        rule, sigma = PREDICTIONS["edm"](), t.view(-1, 1, 1, 1)
        guess = net(rule.input(x, torch.ones_like(sigma), sigma), t.log() / 4, **told)
        return rule.x0(x, guess, torch.ones_like(sigma), sigma)

    assert worst(found, net, precond if found.cls == "Precond" else None) <= TOLERANCE
    assert same(edm2.to_state(net, found.arguments["img_resolution"]), found.state)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith(("ddpmpp", "ncsnpp", "edm2"))])
def test_the_published_networks_are_known_by_their_tensors(preset: str) -> None:
    module = edm2 if preset.startswith("edm2") else edm
    state = module.to_state(empty(preset), 32)
    assert module.matches(state)
    assert module.image_size(state) == 32


def test_the_wrapper_of_the_preconditioning_is_taken_off() -> None:
    state = case("edm-adm-labels").state
    wrapped = {f"model.{name}": value for name, value in state.items()} | {"u": torch.zeros(1001)}
    assert same(edm.from_state(wrapped).state_dict(), edm.from_state(state).state_dict())


def test_the_size_is_only_a_name() -> None:
    net = edm.from_state(case("edm-ddpmpp-labels").state)
    assert edm.image_size(state := edm.to_state(net, 64)) == 64
    assert same(edm.from_state(state).state_dict(), net.state_dict())
    with pytest.raises(ConfigError, match="images of 9 pixels do not halve 1 times"):
        edm.to_state(net, 9)
    with pytest.raises(ConfigError, match="images of 9 pixels do not halve 1 times"):
        edm2.to_state(edm2.from_state(case("edm2-labels").state), 9)


def test_no_label_of_adm_is_a_row_of_zeros() -> None:
    net = edm.from_state(case("edm-adm-labels").state, null_class=True)
    with torch.no_grad():
        net.conditioning.classes.weight[-1] += 1
    with pytest.raises(ConfigError, match="null_class = True"):
        edm.to_state(net, 8)


def test_what_they_have_not_is_refused_by_name() -> None:
    plain = UNet(base_channels=32, channel_multipliers=(1, 2))
    with pytest.raises(ConfigError, match=r"EDM has no part like 'down.0.resample.conv.weight' \(down or up\)"):
        edm.to_state(plain, 32)
    with pytest.raises(ConfigError, match="EDM2 has no part like"):
        edm2.to_state(plain, 32)
    song = edm.from_state(case("edm-ddpmpp-labels").state)
    with pytest.raises(ConfigError, match="attention_up = every"):
        edm.to_state(UNet(**dict(song.config) | {"attention_up": "every"}), 32)


def test_sides_that_do_not_halve_are_refused() -> None:
    state = {name.replace("4x4", "3x3"): value for name, value in case("edm-ddpmpp-labels").state.items()}
    with pytest.raises(CheckpointError, match=r"sides \[8, 3\] do not halve"):
        edm.from_state(state)


def test_a_converted_network_denoises_under_the_karras_schedule() -> None:
    """At sigma = 0.002 the estimate is the image itself, as c_skip = 1 and c_out = 0 make it for whatever weights."""
    den = Denoiser(edm.from_state(case("edm-ddpmpp-augment").state), Schedule.karras(), "edm").eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert (den(x, Schedule.karras().T_MIN) - x).abs().max() < 0.02
