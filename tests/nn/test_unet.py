"""UNet: sizes, times, labels, conditions, counts, and what it refuses."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from diffunet import Denoiser, Schedule, UNet, UNetConfig, load, presets, save
from diffunet.errors import ConfigError
from diffunet.nn import NETWORKS, PRESETS
from diffunet.spec import NearestConv, ResidualBlock, SelfAttention, StridedConv
from tests.nn.networks import tiny, tiny_config

SIZES = [(15, 13), (37,), (9, 10, 11), (1,), (1, 1), (1, 1, 1), (2,), (2, 1), (2, 2, 2), (7,), (1, 7), (12, 20)]
COUNTS = {"ddpm-cifar10": 35_746_307, "ddpm-256": 113_673_219}


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_a_preset_has_the_published_number_of_parameters(name: str, count: int) -> None:
    with torch.device("meta"):
        net = UNet.from_preset(name)
    assert sum(p.numel() for p in net.parameters()) == count


def test_every_preset_builds_and_runs() -> None:
    with torch.device("meta"):
        for name in presets():
            net = NETWORKS.build(PRESETS[name])
            config, told = net.config, {}
            if name.startswith("unet-"):
                channels = config.out_channels
            else:
                channels = config.head_channels
                told = {"t": 0.5, "class_labels": torch.zeros(1, dtype=torch.long) if config.num_classes else None}
                told["cond"] = torch.empty(1, config.cond_channels, 188, 188) if config.cond_channels else None
            assert net(torch.empty(1, config.in_channels, 188, 188), **told).shape[:2] == (1, channels)


def test_a_preset_takes_changes_and_leaves_the_rest() -> None:
    with torch.device("meta"):
        net = UNet.from_preset("ddpm-cifar10", num_classes=10, in_channels=1)
    assert (net.config.num_classes, net.config.in_channels, net.config.block.dropout) == (10, 1, 0.1)
    assert UNet.from_preset("small", base_channels=32).config.widths == (32, 64, 64)


@pytest.mark.parametrize("condition", ["shift", "scale_shift"])
@pytest.mark.parametrize("pad", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("sides", SIZES, ids=str)
def test_any_size_keeps_its_shape_and_reaches_every_parameter(sides: tuple[int, ...], pad: Any, condition: Any) -> None:
    block = ResidualBlock(groups=2, condition=condition)
    net = tiny(dims=len(sides), in_channels=2, out_channels=5, block=block, down=StridedConv(pad=pad)).train()
    y = net(images(2, 2, *sides), torch.tensor([3, 500]))
    assert y.shape == (2, 5, *sides)
    (y * images(*y.shape, seed=2)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert [name for name, p in net.named_parameters() if not p.grad.any()] == []


def test_an_image_does_not_depend_on_its_batch() -> None:
    net, x, t = tiny(), images(3, 3, 13, 10), torch.tensor([1.0, 40.0, 999.0])
    rows = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x, t), rows, rtol=0, atol=1e-5)


def test_the_two_pads_see_different_pixels() -> None:
    x = images(1, 3, 16, 16)
    assert not torch.allclose(tiny()(x, 5), tiny(down=StridedConv(pad="asymmetric"))(x, 5), atol=1e-3)


@pytest.mark.parametrize(
    "t",
    [7, 7.0, torch.tensor(7), torch.tensor(7.0), torch.tensor([7, 7]), torch.tensor([7.0, 7.0], dtype=torch.float64)],
    ids=["int", "float", "0-dim integer", "0-dim float", "integers", "doubles"],
)
def test_every_way_to_write_a_time_is_the_same(t: Any) -> None:
    net, x = tiny(), images(2, 3, 8, 8)
    assert torch.equal(net(x, t), net(x, torch.full((2,), 7.0)))


def test_times_between_integers_are_times_of_their_own() -> None:
    net, x = tiny(), images(1, 3, 8, 8)
    a, b, c = (net(x, t) for t in (7, 7.5, 8))
    assert not torch.allclose(a, b, atol=1e-5)
    assert not torch.allclose(b, c, atol=1e-5)


def test_each_row_is_told_its_own_time() -> None:
    net, x = tiny(), images(1, 3, 8, 8).expand(2, -1, -1, -1)
    y = net(x, torch.tensor([0, 900]))
    torch.testing.assert_close(y[:1], net(x[:1], 0), rtol=0, atol=1e-5)
    torch.testing.assert_close(y[1:], net(x[1:], 900), rtol=0, atol=1e-5)
    assert not torch.allclose(y[0], y[1], atol=1e-3)


def test_no_label_is_the_null_class() -> None:
    net, x = tiny(num_classes=4, null_class=True), images(2, 3, 8, 8)
    assert net.null_label == 4
    assert torch.equal(net(x, 5), net(x, 5, torch.tensor([4, 4])))
    assert not torch.allclose(net(x, 5), net(x, 5, torch.tensor([0, 1])), atol=1e-4)


def test_a_table_has_a_row_for_each_class_and_one_for_none() -> None:
    rows = {null: tiny(num_classes=4, null_class=null).conditioning.classes.weight.shape[0] for null in (False, True)}
    assert rows == {False: 4, True: 5}
    assert tiny().null_label is None
    assert tiny(num_classes=4).null_label is None


def test_labels_are_refused_without_classes_and_needed_with_them() -> None:
    x = images(2, 3, 8, 8)
    with pytest.raises(ValueError, match="the network has no classes"):
        tiny()(x, 5, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="class_labels are needed: the network has classes and no null class"):
        tiny(num_classes=4)(x, 5)


def test_an_image_condition_is_joined_to_the_input() -> None:
    net, x, cond = tiny(cond_channels=2), images(2, 3, 9, 8), images(2, 2, 9, 8, seed=2)
    assert net(x, 5, cond=cond).shape == x.shape
    assert not torch.allclose(net(x, 5, cond=cond), net(x, 5, cond=-cond), atol=1e-3)
    with pytest.raises(ValueError, match="takes cond of 2 channels"):
        net(x, 5)
    with pytest.raises(ValueError, match="takes cond of 0 channels"):
        tiny()(x, 5, cond=cond)


def test_checkpointed_levels_give_the_same_output_and_gradients() -> None:
    x, results = images(2, 3, 11, 8), []
    for levels in [(), (0, 2), (0, 1, 2)]:
        net = tiny(checkpoint_levels=levels, block=ResidualBlock(groups=2, dropout=0.3)).train()
        torch.manual_seed(3)  # the dropout's masks
        y = net(x, 9)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad for p in net.parameters())])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b)


def test_checkpointing_stores_fewer_activations() -> None:
    def stored(levels: tuple[int, ...]) -> int:
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            tiny(checkpoint_levels=levels).train()(images(2, 3, 16, 16), 9)
        return total

    assert stored((0, 1, 2)) < stored((0,)) < stored(())


def compiled_equals_plain(backend: str) -> None:
    net, x = tiny(channel_multipliers=(1, 2), num_classes=3, null_class=True), images(2, 3, 9, 6)
    t, labels = torch.tensor([3, 4]), torch.tensor([1, 3])
    y = torch.compile(net, fullgraph=True, backend=backend)(x, t, labels)
    torch.testing.assert_close(y, net(x, t, labels), rtol=0, atol=1e-5)


def test_the_network_compiles_without_a_graph_break() -> None:
    compiled_equals_plain("eager")


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # inductor's own
def test_the_compiled_network_computes_the_same() -> None:
    compiled_equals_plain("inductor")


def test_a_fresh_network_says_zero_and_its_blocks_pass_their_input() -> None:
    net = UNet(tiny_config())
    assert not net(images(2, 3, 8, 8), 5).any()
    block = net.down[0].blocks[0].parts[0]
    x = images(2, 8, 6, 6)
    assert torch.equal(block(x, torch.randn(2, 32)), x)
    assert UNet(tiny_config(block=ResidualBlock(groups=2, zero_init=False)))(images(2, 3, 8, 8), 5).any()


def test_each_level_has_its_own_width_and_depth() -> None:
    net = tiny(channels=(16, 8, 24), blocks_per_level=(1, 3, 2), attention_levels=(0, 2))
    assert net(images(1, 3, 9, 12), 5).shape == (1, 3, 9, 12)
    assert [len(level.blocks) for level in net.down] == [1, 3, 2]
    assert [len(level.blocks) for level in net.up] == [3, 4, 2]
    assert [len(level.blocks[0].parts) for level in net.down] == [2, 1, 2]


def test_attention_in_mid_can_be_left_out() -> None:
    with_it, without = tiny(), tiny(attention_in_mid=False)
    assert (len(with_it.mid.parts), len(without.mid.parts)) == (3, 2)
    assert without(images(1, 3, 8, 8), 5).shape == (1, 3, 8, 8)


def test_far_pixels_reach_each_other_through_attention() -> None:
    # without any attention two levels of 3x3 convolutions see 40 pixels at most
    changes: dict[str, Any] = {"channel_multipliers": (1, 2), "attention_levels": ()}
    for attends in (False, True):
        net, x = tiny(attention_in_mid=attends, dims=1, **changes), images(1, 3, 200)
        # group norms carry means over the whole signal, so they are taken out of the question
        for module in net.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.forward = lambda x: x
        y = net(x, 5)
        x[:, :, 0] += 1
        assert bool((net(x, 5) - y)[..., -1].abs().max() > 1e-6) == attends


def test_saved_and_loaded_is_equal(tmp_path: Path) -> None:
    net = tiny(num_classes=3, null_class=True, attention=SelfAttention(heads=2))
    save(Denoiser(net, Schedule.cosine(), "v", clip=(-1, 1)), tmp_path / "w.safetensors")
    den = load(tmp_path / "w.safetensors")
    x, labels = images(2, 3, 10, 7), torch.tensor([2, 3])
    assert den.network.config == net.config
    assert torch.equal(den.network(x, 55.5, labels), net(x, 55.5, labels))


def test_weights_of_a_network_in_half_precision_stay_so(tmp_path: Path) -> None:
    net = tiny().to(torch.bfloat16)
    y = net(images(1, 3, 8, 8).bfloat16(), 5)
    assert y.dtype == torch.bfloat16
    save(Denoiser(net, Schedule.linear()), tmp_path / "w.safetensors")
    assert torch.equal(load(tmp_path / "w.safetensors").network(images(1, 3, 8, 8).bfloat16(), 5), y)


def test_a_network_made_twice_from_one_config_does_not_share_it() -> None:
    config = tiny_config()
    assert UNet(config).config == UNet(config).config == config
    assert UNet(**dict(config)).config == config
    assert UNet(config, out_channels=6).config.out_channels == 6


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"channel_multipliers": (1, 0, 2)}, "must be at least 1, not 0"),
    ({"blocks_per_level": (1, 2)}, "names 2 levels but there are 3"),
    ({"blocks_per_level": 0}, "blocks_per_level must be 1 to 64, not 0"),
    ({"attention_levels": (3,)}, "attention_levels holds 3 but the levels are 0 to 2"),
    ({"checkpoint_levels": (-1,)}, "checkpoint_levels holds -1 but the levels are 0 to 2"),
    ({"block": ResidualBlock(groups=3)}, "8 channels is not divisible by block.groups = 3"),
    ({"attention": SelfAttention(heads=3)}, "16 channels is not divisible by attention.heads = 3"),
    ({"attention": SelfAttention(head_channels=5)}, "16 channels is not divisible by attention.head_channels = 5"),
    ({"null_class": True}, "null_class needs num_classes"),
    ({"num_classes": 0}, "num_classes"),
    ({"dims": 4}, "dims"),
    ({"in_channels": "3"}, "in_channels"),
    ({"base_chanels": 8}, "base_chanels"),
    ({"block": {"eps": float("nan")}}, "block.eps"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_a_contradiction_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace(".", r"\.")):
        tiny_config(**changes)


def test_all_contradictions_are_named_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        tiny_config(blocks_per_level=(1, 2), attention_levels=(7,), null_class=True)
    assert all(part in str(caught.value) for part in ("names 2 levels", "holds 7", "needs num_classes"))


def test_heads_and_head_channels_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="heads or head_channels, not both"):
        SelfAttention(heads=2, head_channels=8)


def test_unknown_presets_are_met_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'ddpm-cifar'; did you mean 'ddpm-cifar10'"):
        UNet.from_preset("ddpm-cifar")
    with pytest.raises(ConfigError, match="'unet-2015' is a 'classic' network, not a 'unet' one"):
        UNet.from_preset("unet-2015")


def test_widths_follow_from_base_and_multipliers() -> None:
    assert UNetConfig(base_channels=64, channel_multipliers=(1, 3)).widths == (64, 192)
    assert UNetConfig(channels=(96, 32, 64)).widths == (96, 32, 64)
    assert all(b == 2 * a for a, b in pairwise(UNetConfig(base_channels=32, channel_multipliers=(1, 2, 4)).widths))


def test_double_precision_runs_throughout() -> None:
    x = images(1, 3, 8, 8)
    y = tiny().double()(x.double(), 5)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y.float(), tiny()(x, 5), rtol=0, atol=1e-5)


def test_up_operator_is_named_in_the_config() -> None:
    assert tiny_config().up == NearestConv()
    assert tiny_config(up="nearest_conv", down="strided_conv") == tiny_config()
