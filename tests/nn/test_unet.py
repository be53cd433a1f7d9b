"""UNet: sizes, times, conditions, what it stores and how it is put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffunet import Denoiser, Schedule, UNet, load, save
from diffunet.spec import (
    ChannelAttention,
    InBlock,
    LinearAttention,
    MagnitudeBlock,
    MaxPool,
    ResidualBlock,
    SelfAttention,
    StridedConv,
)
from tests.nn.networks import images, tiny, tiny_config

SIZES = [(15, 13), (37,), (9, 10, 11), (1,), (1, 1), (1, 1, 1), (2,), (2, 1), (2, 2, 2), (7,), (1, 7), (30, 30)]


# --- sizes -----------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_sequences_of_letters_are_signals_of_four_channels(padding: Any) -> None:
    letters = torch.randint(4, (2, 1000), generator=torch.Generator().manual_seed(0))
    net = tiny(dims=1, in_channels=4, out_channels=4, padding=padding)
    y = net(F.one_hot(letters, 4).mT.float(), 5)
    assert y.shape == (2, 4, 1000)
    assert y.isfinite().all()


def test_images_may_have_twelve_channels_and_any_sides() -> None:
    net = tiny(in_channels=12, out_channels=12)
    assert net(images(2, 12, 64, 48), 5).shape == (2, 12, 64, 48)


def test_an_image_does_not_depend_on_its_batch() -> None:
    net, x, t = tiny(), images(3, 3, 13, 10), torch.tensor([1.0, 40.0, 999.0])
    rows = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x, t), rows, rtol=0, atol=1e-5)


def test_the_two_pads_see_different_pixels() -> None:
    x = images(1, 3, 16, 16)
    assert not torch.allclose(tiny()(x, 5), tiny(down=StridedConv(pad="asymmetric"))(x, 5), atol=1e-3)


# --- what it is told -------------------------------------------------------------------------------------------------


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


def test_only_a_network_without_time_does_without() -> None:
    net, x = tiny(time="none"), images(2, 3, 8, 8)
    assert torch.equal(net(x), net(x, 5))
    assert not any(name.startswith("conditioning") or ".embed." in name for name in net.state_dict())
    with pytest.raises(ValueError, match="t is needed: only a network with time = 'none' does without"):
        tiny()(x)


def test_a_network_without_time_may_know_classes() -> None:
    net, x = tiny(time="none", num_classes=3), images(2, 3, 8, 8)
    first, second = (net(x, class_labels=torch.tensor([label, 1])) for label in (0, 2))
    assert not torch.allclose(first[0], second[0], atol=1e-4)
    torch.testing.assert_close(first[1], second[1])


def test_an_image_condition_is_joined_to_the_input() -> None:
    net, x, cond = tiny(cond_channels=2), images(2, 3, 9, 8), images(2, 2, 9, 8, seed=2)
    assert net(x, 5, cond=cond).shape == x.shape
    assert not torch.allclose(net(x, 5, cond=cond), net(x, 5, cond=-cond), atol=1e-3)
    with pytest.raises(ValueError, match="takes cond of 2 channels"):
        net(x, 5)
    with pytest.raises(ValueError, match="takes cond of 0 channels"):
        tiny()(x, 5, cond=cond)


def test_the_previous_estimate_is_joined_to_the_input() -> None:
    """Self-conditioning, 2208.04202: zeros where there is none yet."""
    net, x, before = tiny(self_conditioning=True), images(2, 3, 9, 8), images(2, 3, 9, 8, seed=2)
    assert net.stem.in_channels == 6
    assert torch.equal(net(x, 5), net(x, 5, previous=torch.zeros_like(x)))
    assert not torch.allclose(net(x, 5), net(x, 5, previous=before), atol=1e-3)
    with pytest.raises(ValueError, match="previous was given but the network does not take it"):
        tiny()(x, 5, previous=before)


def test_image_estimate_and_condition_stand_in_this_order() -> None:
    net, seen = tiny(self_conditioning=True, cond_channels=2), []
    net.stem.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    x, before, cond = images(2, 3, 4, 4), images(2, 3, 4, 4, seed=2), images(2, 2, 4, 4, seed=3)
    net(x, 5, cond=cond, previous=before)
    assert torch.equal(seen[0], torch.cat([x, before, cond], dim=1))


def test_a_learned_variance_stands_behind_the_guess() -> None:
    net, x = tiny(learned_variance=True), images(2, 3, 9, 8)
    assert net(x, 5).shape == (2, 6, 9, 8)
    assert net.config.head_channels == net.head.out_channels == 6


# --- memory and compilers --------------------------------------------------------------------------------------------


DROPPING: list[dict[str, Any]] = [
    {"block": ResidualBlock(groups=2, dropout=0.3)},
    {"block": ResidualBlock(groups=2, dropout=0.3), "down": InBlock(), "up": InBlock(), "input_pyramid": "skip"},
    {"block": MagnitudeBlock(dropout=0.3), "attention": "cosine", "skip": "balanced"},
]


@pytest.mark.parametrize("parts", DROPPING, ids=["plain", "in_block", "magnitude_preserving"])
def test_checkpointed_levels_give_the_same_output_and_gradients(parts: dict[str, Any]) -> None:
    x, results = images(2, 3, 11, 8), []
    for levels in [(), (0, 2), (0, 1, 2)]:
        net = tiny(checkpoint_levels=levels, **parts).train()
        net(x, 9)  # the first step brings magnitude-preserving weights to unit size
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


def test_every_input_compiles_without_a_graph_break() -> None:
    net = tiny(channel_multipliers=(1, 2), cond_channels=2, self_conditioning=True, vector_channels=4, num_classes=3)
    x, t, labels = images(2, 3, 9, 6), torch.tensor([3, 4]), torch.tensor([1, 2])
    told = {"cond": images(2, 2, 9, 6), "vector": images(2, 4), "previous": images(2, 3, 9, 6, seed=2)}
    y = torch.compile(net, fullgraph=True, backend="eager")(x, t, labels, **told)
    torch.testing.assert_close(y, net(x, t, labels, **told), rtol=0, atol=1e-5)


def test_double_precision_runs_throughout() -> None:
    x = images(1, 3, 8, 8)
    y = tiny().double()(x.double(), 5)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y.float(), tiny()(x, 5), rtol=0, atol=1e-5)


def test_weights_of_a_network_in_half_precision_stay_so(tmp_path: Path) -> None:
    net = tiny().to(torch.bfloat16)
    y = net(images(1, 3, 8, 8).bfloat16(), 5)
    assert y.dtype == torch.bfloat16
    save(Denoiser(net, Schedule.linear()), tmp_path / "w.safetensors")
    assert torch.equal(load(tmp_path / "w.safetensors").network(images(1, 3, 8, 8).bfloat16(), 5), y)


# --- how it is put together ------------------------------------------------------------------------------------------


def test_a_fresh_network_says_zero() -> None:
    assert not UNet(tiny_config())(images(2, 3, 8, 8), 5).any()
    assert UNet(tiny_config(block=ResidualBlock(groups=2, zero_init=False)))(images(2, 3, 8, 8), 5).any()
    assert not UNet(tiny_config(block="magnitude_preserving"))(images(2, 3, 8, 8), 5).any()  # its gain is zero


def test_each_level_has_its_own_width_and_depth() -> None:
    net = tiny(channels=(16, 8, 24), blocks_per_level=(1, 3, 2), attention_levels=(0, 2))
    assert net(images(1, 3, 9, 12), 5).shape == (1, 3, 9, 12)
    assert [len(level.blocks) for level in net.down] == [1, 3, 2]
    assert [len(level.blocks) for level in net.up] == [3, 4, 2]
    assert [len(level.blocks[0].parts) for level in net.down] == [2, 1, 2]


def test_each_level_has_its_own_operators_and_attention() -> None:
    net = tiny(
        attention_levels=(0, 1, 2),
        attentions=(ChannelAttention(), LinearAttention(heads=2), SelfAttention(heads=4)),
        downs=("avg_pool", MaxPool()),
        ups=("nearest", {"kind": "transposed_conv", "kernel": 4}),
    )
    assert [type(level.resample).__name__ for level in net.down[:2]] == ["AvgPoolDown", "MaxPoolDown"]
    # the i-th of each list stands between levels i and i + 1; the way up begins with the deepest
    assert [type(level.resample).__name__ for level in net.up[:2]] == ["TransposedConvUp", "FilterUp"]
    assert [type(level.blocks[0].parts[1]).__name__ for level in net.down] == ["Channel", "Linear", "Attention"]
    assert [type(level.blocks[0].body.parts[1]).__name__ for level in net.up] == ["Attention", "Linear", "Channel"]
    assert net.mid.parts[1].heads == 4
    assert net(images(1, 3, 9, 7), 5).shape == (1, 3, 9, 7)


def test_a_level_may_keep_its_size() -> None:
    """Where no operator leaves a skip, the way up has no block more."""
    net = tiny(downs=("none", "max_pool"), ups=("none", "nearest"), blocks_per_level=2)
    sizes = []
    for level in net.down:
        level.blocks[-1].register_forward_hook(lambda _, inputs, y: sizes.append(tuple(y.shape[2:])))
    assert net(images(1, 3, 9, 8), 5).shape == (1, 3, 9, 8)
    assert sizes == [(9, 8), (9, 8), (5, 4)]
    assert [len(level.blocks) for level in net.up] == [3, 2, 3]


@pytest.mark.parametrize(("attention_up", "behind"), [("every", [True, True, True]), ("last", [False, False, True])])
def test_attention_stands_behind_every_block_of_the_way_up_or_the_last(attention_up: Any, behind: list[bool]) -> None:
    net = tiny(attention_up=attention_up, blocks_per_level=2)
    assert [len(step.body.parts) == 2 for step in net.up[1].blocks] == behind
    assert all(len(block.parts) == 2 for block in net.down[1].blocks)


def test_attention_in_mid_can_be_left_out_or_left_plain() -> None:
    with_it, without, plain = tiny(), tiny(attention_in_mid=False), tiny(mid_attention_norm=False)
    assert (len(with_it.mid.parts), len(without.mid.parts)) == (3, 2)
    assert [isinstance(net.mid.parts[1].norm, torch.nn.Identity) for net in (with_it, plain)] == [False, True]
    for net in (without, plain):
        assert net(images(1, 3, 8, 8), 5).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(("stem", "width"), [(None, 8), (12, 12), ("first_level", 16)])
def test_the_stem_has_its_own_width(stem: Any, width: int) -> None:
    net = tiny(channel_multipliers=(2, 2), stem_channels=stem)
    assert net.stem.out_channels == width
    assert net(images(1, 3, 8, 8), 5).shape == (1, 3, 8, 8)


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


def test_a_network_made_twice_from_one_config_does_not_share_it() -> None:
    config = tiny_config()
    assert UNet(config).config == UNet(config).config == config
    assert UNet(**dict(config)).config == config
    assert UNet(config, out_channels=6).config.out_channels == 6
