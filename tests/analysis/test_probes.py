"""How networks behave: effective receptive field, aliasing, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from diffunet.analysis.alternatives import rivals
from diffunet.analysis.probes import (
    Probe,
    effective_field,
    gradients,
    natural,
    opened,
    operator_errors,
    radius_of,
    shift_errors,
    shifted,
)
from diffunet.analysis.receptive import receptive_field
from diffunet.spec import NetworkConfig
from tests.analysis.networks import CONFIGS, classic, sides_of, unet
from tests.families import PARTS


def test_a_random_network_has_no_zeros_and_is_the_same_each_time() -> None:
    for name in ("2d", "block-magnitude_preserving"):
        one, same, other = (opened(CONFIGS[name], seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(one[key], same[key]) for key in one)
        assert any(not torch.equal(one[key], other[key]) for key in one)
        assert all(value.any() for key, value in one.items() if key.endswith(("weight", "gain")))


# --- effective receptive field ---------------------------------------------------------------------------------------


def test_the_radius_holds_its_share() -> None:
    share = torch.zeros(9, 9)
    share[4, 4], share[4, 7], share[0, 0] = 0.5, 0.4, 0.1
    assert radius_of(share, 0.45) == 0
    assert radius_of(share, 0.85) == 3
    assert radius_of(share, 0.95) == pytest.approx(32**0.5)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gradients_come_from_within_the_receptive_field(dims: int) -> None:
    config = unet(dims=dims, attention_levels=(), channel_multipliers=(1,), block={"kind": "double_conv"}, time="none")
    config = config.model_copy(update={"attention_in_mid": False})
    reach, side = receptive_field(config).size, 33 if dims < 3 else 27
    field = effective_field(Probe(config, (side,) * dims), seeds=2)
    assert field.share.shape == (side,) * dims
    assert float(field.share.sum()) == pytest.approx(1, abs=1e-4)
    rows = field.share.flatten(1).sum(dim=1) if dims > 1 else field.share
    (hit,) = rows.nonzero(as_tuple=True)
    assert int(hit[-1] - hit[0] + 1) <= reach == 23
    assert 0 < field.radii[0.5] < field.radii[0.95] <= (reach // 2) * dims**0.5


def test_attention_lets_gradients_come_from_everywhere() -> None:
    config = unet(channel_multipliers=(1,), attention_levels=(0,))
    assert (effective_field(Probe(config, (32, 32)), seeds=1).share > 0).all()


def test_a_trained_network_is_asked_itself() -> None:
    net = opened(unet(), 3)
    fields = [effective_field(Probe(unet(), (16, 16), net), 1), effective_field(Probe(unet(), (16, 16)), 1)]
    assert not torch.equal(fields[0].share, fields[1].share)


# --- aliasing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 2, 24), (1, 1, 16, 20), (2, 1, 8, 10, 12)])
def test_the_test_signal_looks_like_a_picture(shape: tuple[int, ...]) -> None:
    x = natural(shape)
    assert float(x.std()) == pytest.approx(1, abs=1e-4)
    power = torch.fft.rfft(x, dim=-1).abs().square().flatten(0, -2).mean(dim=0)
    assert power[1] > 2 * power[4:].mean()
    assert torch.allclose(shifted(x, 3), x.roll(3, dims=-1), atol=1e-4)


def downs(down: Any, **changes: Any) -> float:
    """Error of the first operator of a network."""
    probe = Probe(unet(down=down, attention_levels=(), **changes), (32, 32))
    return next(error for part, error in operator_errors(probe).items() if part.role == "down")


def test_filters_alias_less_than_pooling() -> None:
    errors = {down: downs(down) for down in ("max_pool", "avg_pool")}
    blurred = [downs({"kind": "blur_pool", "taps": taps}) for taps in (2, 4, 6)]
    assert errors["avg_pool"] == pytest.approx(blurred[0])
    assert errors["max_pool"] > errors["avg_pool"] > blurred[1] > blurred[2] > 0


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_box_filter_errs_by_what_the_theory_says(dims: int) -> None:
    """Of one cosine of frequency f the mean of two keeps cos(pi f); what is sampled is exact below the new Nyquist."""
    side = 32
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(side) / side).expand(1, 1, *[8] * (dims - 1), side)
    pool = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}[dims](2)
    assert torch.allclose(pool(wave.roll(1, dims=-1)), shifted(pool(wave), 0.5), atol=1e-5)


@pytest.mark.parametrize("up", [kind for kind in PARTS["up"][1] if kind not in ("none", "in_block")])
def test_up_operators_move_with_their_input(up: str) -> None:
    errors = operator_errors(Probe(unet(up=up, attention_levels=()), (16, 16)))
    assert next(error for part, error in errors.items() if part.role == "up") < 1e-5


@pytest.mark.parametrize("name", ["2d", "1d", "3d", "classic-2d", "down-max_pool", "skip-gated", "attention-linear"])
def test_a_shift_by_the_coarsest_stride_is_no_shift(name: str) -> None:
    config: NetworkConfig = CONFIGS[name]
    errors = shift_errors(Probe(config, tuple(16 for _ in range(config.dims))))
    assert list(errors) == [2**level for level in range(len(config.widths))]
    assert errors[1] > 0.01
    assert errors[max(errors)] < 1e-4


def test_a_network_without_operators_never_aliases() -> None:
    config = unet(down="none", up="none", attention_levels=())
    assert max(shift_errors(Probe(config, (16, 16))).values()) < 1e-4
    assert operator_errors(Probe(config, (16, 16))) == {}


def test_of_valid_convolutions_what_came_round_is_left_out() -> None:
    errors = shift_errors(Probe(classic(levels=2, padding="valid"), (48, 48)))
    assert errors[2] < 1e-4 < errors[1]


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["2d", "1d", "classic-2d", "told-much", "pyramids", "block-magnitude_preserving"])
def test_every_part_gets_a_gradient(name: str) -> None:
    config = CONFIGS[name]
    found = gradients(Probe(config, sides_of(config)))
    net = opened(config, 0)
    assert found
    for part, gradient in found.items():
        assert gradient.norm > 0, part
        assert 0 < gradient.mean <= gradient.norm
        assert gradient.relative > 0
    y = net(**Probe(config, sides_of(config)).told(2))
    target = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    (y - target).square().mean().backward()
    whole = sum(float(p.grad.square().sum()) for p in net.parameters() if p.grad is not None)
    assert sum(g.norm**2 for g in found.values()) == pytest.approx(whole, rel=1e-4)


# --- alternatives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["1d", "classic", "told-much"])
def test_rivals_multiply_as_much_and_keep_the_resolution(name: str) -> None:
    config = (CONFIGS | {"classic": classic(base_channels=16)})[name]
    own, *others = rivals(config, 1, tuple(16 for _ in range(config.dims)))
    assert own.config == config
    assert [rival.name for rival in others] == ["direct", "dilated"]
    for rival in others:
        assert rival.macs == pytest.approx(own.macs, rel=0.15)  # widths are whole, and these are small
        assert {rival.config.down.kind, rival.config.up.kind} == {"none"}
    assert others[1].reach > others[0].reach
