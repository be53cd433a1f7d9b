"""What a network costs: to the unit, whatever it is made of, and without allocating it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from diffunet.analysis.cost import Cost, Summary, bottleneck, summarize
from diffunet.analysis.parts import parts_of
from diffunet.analysis.trace import ROLES, Trace
from diffunet.analysis.weightless import inputs, weightless
from diffunet.nn import NETWORKS, PRESETS
from diffunet.spec import NetworkConfig
from tests.analysis.networks import CONFIGS, classic, every_config, sides_of, unet


def counted_by_torch(config: NetworkConfig, batch: int, sides: tuple[int, ...]) -> int:
    """MACs by torch's own counter: half its flops."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        NETWORKS.build(config)(**inputs(config, batch, sides))
    return counter.get_total_flops() // 2


@every_config
def test_parts_and_roles_add_up_to_torchs_own_count(config: NetworkConfig) -> None:
    sides = sides_of(config)
    summary = summarize(config, 3, sides)
    with torch.device("meta"):
        net = NETWORKS.build(config)
    assert summary.total.macs == counted_by_torch(config, 3, sides)
    assert summary.total.parameters == sum(p.numel() for p in net.parameters())
    roles = sum(summary.roles.values(), Cost())
    assert (roles.macs, roles.parameters) == (summary.total.macs, summary.total.parameters)
    assert set(summary.roles) <= set(ROLES)
    assert "other" not in summary.roles
    assert all(part.role != "other" for part in summary.parts)


@pytest.mark.parametrize("name", ["ddpm-cifar10", "adm-64", "ncsnpp-cifar10", "unet-2015"])
def test_presets_add_up_too(name: str) -> None:
    config = PRESETS[name]
    sides = (188, 188) if name == "unet-2015" else (32, 32)
    assert summarize(config, 1, sides).total.macs == counted_by_torch(config, 1, sides)


def test_multiplications_follow_from_the_sizes_of_the_paper() -> None:
    """The U-Net of 2015 at 572 pixels by hand: 9 C_in C_out for each position of each 3x3 convolution."""
    downs = [(1, 64, 570), (64, 64, 568), (64, 128, 282), (128, 128, 280), (128, 256, 138), (256, 256, 136)]
    downs += [(256, 512, 66), (512, 512, 64), (512, 1024, 30), (1024, 1024, 28)]
    ups = [(1024, 512, 54), (512, 512, 52), (512, 256, 102), (256, 256, 100), (256, 128, 198), (128, 128, 196)]
    ups += [(128, 64, 390), (64, 64, 388)]
    wanted = sum(9 * i * o * side**2 for i, o, side in downs + ups)
    wanted += sum(4 * i * i // 2 * side**2 for i, side in ((1024, 28), (512, 52), (256, 100), (128, 196)))
    wanted += 64 * 2 * 388**2
    summary = summarize(PRESETS["unet-2015"], 1, (572, 572))
    assert summary.total.macs == wanted
    assert summary.gives == (2, 388, 388)
    ladder = [tuple(side for side, _ in rung.sides) for rung in summary.ladder]
    assert ladder[:5] == [(572, 570, 568), (284, 282, 280), (140, 138, 136), (68, 66, 64), (32, 30, 28)]
    assert ladder[5:] == [(56, 54, 52), (104, 102, 100), (200, 198, 196), (392, 390, 388)]
    assert [rung.channels for rung in summary.ladder[4:6]] == [(512, 1024, 1024), (1024, 512, 512)]


def shares(summary: Summary) -> dict[str, int]:
    """Role -> MACs."""
    return {role: cost.macs for role, cost in summary.roles.items()}


def test_roles_are_what_their_names_say() -> None:
    """One level of width C at S positions: every term is known."""
    c, s = 8, 16 * 12
    found = shares(
        summarize(unet(channel_multipliers=(1,), attention_levels=(0,), attention_in_mid=False), 1, (16, 12))
    )
    assert found["stem"] == 9 * 2 * c * s
    assert found["head"] == 9 * c * 3 * s
    # of six convolutions in blocks on the way down and in mid, and of two behind each of two joins the second
    assert found["features"] == (6 + 2) * 9 * c * c * s
    assert found["skip fusion"] == 2 * 18 * c * c * s
    assert found["1x1"] == (2 * 2 * c * c + 3 * 4 * c * c) * s  # two shortcuts; three attentions
    assert found["attention"] == 3 * 2 * s * s * c
    assert found["conditioning"] == c * 4 * c + (4 * c) ** 2 + 5 * 4 * c * c
    assert set(found) == {"stem", "head", "features", "skip fusion", "1x1", "attention", "conditioning"}


def test_operators_between_levels_have_roles_of_their_own() -> None:
    found = shares(summarize(unet(attention_levels=()), 1, (16, 16)))
    assert found["down"] == 9 * 8 * 8 * 64
    assert found["up"] == 9 * 16 * 16 * 256


@pytest.mark.parametrize("name", ["1d", "2d", "3d", "classic-2d", "block-magnitude_preserving", "attention-linear"])
def test_kept_bytes_are_what_autograd_saves(name: str) -> None:
    """Against a real network whose saved tensors are collected: each storage once, weights aside."""
    config = CONFIGS[name]
    net: nn.Module = NETWORKS.build(config)
    told = inputs(config, 2, sides_of(config))
    aside = {t.untyped_storage().data_ptr() for t in (*net.state_dict().values(), *told.values())}
    saved: dict[int, int] = {}
    held: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in aside:
            held.append(tensor)  # else its memory would be used again for another one
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = net(**told)
    saved[y.untyped_storage().data_ptr()] = y.untyped_storage().nbytes()
    assert summarize(config, 2, sides_of(config)).total.kept == sum(saved.values())


def test_counting_allocates_nothing() -> None:
    with weightless(PRESETS["edm2-xxl"]) as net:
        assert all(p.is_meta for p in net.parameters())
        told = inputs(PRESETS["edm2-xxl"], 1, (64, 64))
        with Trace(net).watching(told), torch.no_grad():
            assert net(**told).is_meta


def test_no_hook_is_left_behind() -> None:
    with weightless(unet()) as net:
        told = inputs(unet(), 1, (8, 8))
        with pytest.raises(ValueError, match="cond"), Trace(net).watching(told):
            net(**told, cond=told["x"])
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_every_module_knows_its_part() -> None:
    names = {path: part.name for path, part in parts_of(NETWORKS.build(unet())).items()}
    assert names["down.0.blocks.0.parts.0.conv_in"] == "down 0 blocks"
    assert names["down.1.blocks.0.parts.1.qkv"] == "down 1 attention"
    assert names["down.0.resample.conv"] == "down 0-1"
    assert names["up.0.resample.conv"] == "up 1-0"
    assert names["up.0.blocks.1.skip"] == "up 1 skips"
    assert names["mid.parts.1.out"] == "mid attention"
    assert names["conditioning.time.mlp_in"] == "conditioning"
    old = {path: part.name for path, part in parts_of(NETWORKS.build(classic())).items()}
    assert old["pool.1"] == "down 1-2"
    assert old["lift.0"] == "up 2-1"
    assert old["skips.1"] == "up 0 skips"
    assert old["up.1.conv_in"] == "up 0 blocks"


# --- bottlenecks -----------------------------------------------------------------------------------------------------


def test_a_bottleneck_saves_what_the_arithmetic_says() -> None:
    """18 C^2 + 2 C^2 (shortcut) against 2 C^2 + 9 C^2: 9 C^2 a position, at each join of equal widths."""
    c, s = 8, 16 * 12
    config = unet(channel_multipliers=(1,), attention_levels=())
    (saving,) = bottleneck(config, 1, (16, 12), summarize(config, 1, (16, 12)))
    assert saving.joins == (2 * c, 2 * c)
    assert saving.wide.macs - saving.narrow.macs == 2 * 9 * c * c * s
    # the first norm has half as many channels, and the shortcut's bias becomes the bottleneck's
    assert saving.wide.parameters - saving.narrow.parameters == 2 * (9 * c * c + 2 * c)


@pytest.mark.parametrize("name", ["2d", "classic-2d", "skip-bottleneck", "skip-gated", "uneven", "told-much"])
def test_savings_are_the_difference_of_two_real_networks(name: str) -> None:
    config, sides = CONFIGS[name], sides_of(CONFIGS[name])
    savings = bottleneck(config, 2, sides, summarize(config, 2, sides))
    own, other = config, config.model_copy(update={"skip": type(CONFIGS["skip-bottleneck"].skip)()})
    if config.skip.kind == "bottleneck":
        own, other = config.model_copy(update={"skip": CONFIGS["2d"].skip}), config
    wanted = counted_by_torch(own, 2, sides) - counted_by_torch(other, 2, sides)
    assert sum(s.wide.macs - s.narrow.macs for s in savings) == wanted
    assert [s.level for s in savings] == sorted((s.level for s in savings), reverse=True)
