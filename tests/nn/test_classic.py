"""ClassicUNet: the network of 2015, number by number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from diffunet import ClassicUNet, ClassicUNetConfig, UNetConfig
from diffunet.errors import ConfigError
from diffunet.nn import DOWNS, SKIPS, TIMES, UPS
from diffunet.nn.classic import crop_centre
from diffunet.spec import DoubleConvBlock
from tests.nn.networks import images, perturbed


def small(**fields: Any) -> ClassicUNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return perturbed(ClassicUNet(**({"base_channels": 4, "levels": 3} | fields)))


def test_the_paper_has_31_030_658_parameters() -> None:
    def conv(i: int, o: int, kernel: int) -> int:
        return i * o * kernel**2 + o

    widths = [64, 128, 256, 512, 1024]
    down = sum(conv(i, o, 3) + conv(o, o, 3) for i, o in zip([1, *widths], widths, strict=False))
    up = sum(conv(2 * o, o, 2) + conv(2 * o, o, 3) + conv(o, o, 3) for o in widths[:-1])
    assert down + up + conv(64, 2, 1) == 31_030_658
    with torch.device("meta"):
        net = ClassicUNet.from_preset("unet-2015")
    assert sum(p.numel() for p in net.parameters()) == 31_030_658


@pytest.mark.parametrize(("side", "out"), [(572, 388), (188, 4), (700, 516)])
def test_valid_convolutions_shrink_as_in_the_paper(side: int, out: int) -> None:
    with torch.device("meta"):
        assert ClassicUNet()(torch.empty(1, 1, side, side)).shape == (1, 2, out, out)


def leaves_something(side: int, levels: int) -> bool:
    """Follow one side through valid convolutions in whole numbers."""
    for level in range(levels):
        side = -(-side // 2) - 4 if level else side - 4
        if side < 1:
            return False
    for _ in range(levels - 1):
        side = 2 * side - 4
        if side < 1:
            return False
    return True


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_the_smallest_side_is_the_smallest(levels: int) -> None:
    net = small(dims=1, levels=levels)
    assert net.smallest == next(side for side in range(1, 1000) if leaves_something(side, levels))
    with pytest.raises(ValueError, match=f"too small: valid padding needs {net.smallest} or more"):
        net(torch.randn(1, 1, net.smallest - 1))
    for side in range(net.smallest, net.smallest + 2**levels):
        assert net(torch.randn(1, 1, side)).shape[2] > 0


@pytest.mark.parametrize("sides", [(15, 13), (37,), (9, 10, 11), (1,), (1, 1), (2,), (7,)], ids=str)
def test_same_padding_keeps_any_size_and_reaches_every_parameter(sides: tuple[int, ...]) -> None:
    net = small(dims=len(sides), padding="same", in_channels=2, out_channels=3)
    y = net(torch.randn(2, 2, *sides))
    assert y.shape == (2, 3, *sides)
    # ReLU leaves some units dead on so few pixels, so this asks for a gradient, not for one that is not zero
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_every_parameter_has_a_gradient_that_is_not_zero() -> None:
    net = small(padding="same")
    net(torch.randn(4, 1, 19, 22)).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_skip_is_cropped_to_its_centre() -> None:
    x = torch.arange(7.0).expand(1, 1, 5, 7)
    assert crop_centre(x, torch.Size((3, 3)))[0, 0].tolist() == [[2.0, 3.0, 4.0]] * 3


def test_the_pool_takes_the_largest() -> None:
    net = small(dims=1, levels=2, padding="same")
    seen = []
    net.down[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    stage = []
    net.down[0].register_forward_hook(lambda _, inputs, output: stage.append(output))
    net(torch.randn(1, 1, 6))
    torch.testing.assert_close(seen[0], stage[0].unflatten(2, (3, 2)).amax(dim=3))


# --- other norms, widths, operators, and time -------------------------------------------------------------------------

NORMS = [DoubleConvBlock(), DoubleConvBlock(norm="batch"), DoubleConvBlock(norm="group", groups=2, activation="silu")]


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("block", NORMS, ids=lambda block: block.norm)
def test_every_norm_trains(block: DoubleConvBlock, padding: Any) -> None:
    net = small(padding=padding, block=block).double().train()
    y = net(images(2, 1, 45, 46, dtype=torch.float64))
    y.square().sum().backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    silent = {name for name, gradient in gradients.items() if gradient.abs().max() < 1e-9}
    # a batch norm subtracts the biases of the convolutions before it again, and nothing else is lost
    assert all(block.norm == "batch" and "norm" not in name and name.endswith(".bias") for name in silent)


def test_a_batch_norm_remembers_for_later() -> None:
    net, x = small(padding="same", block=NORMS[1]), images(4, 1, 16, 16)
    fresh = net.eval()(x)
    net.train()(x)
    assert not torch.allclose(net.eval()(x), fresh)
    rows = torch.cat([net(image[None]) for image in x])
    torch.testing.assert_close(net(x), rows, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [(6,), (4, 12), (12, 4, 6, 2)])
def test_each_level_has_its_own_width(channels: tuple[int, ...]) -> None:
    net = small(padding="same", channels=channels)
    assert [stage.conv_out.out_channels for stage in net.down] == list(channels)
    assert [stage.conv_in.in_channels for stage in net.up] == [2 * width for width in channels[-2::-1]]
    assert net(images(1, 1, 15, 13)).shape == (1, 2, 15, 13)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("skip", SKIPS)
def test_other_operators_join_as_well(skip: str, mode: Any, padding: Any) -> None:
    """Every down and up operator of the family but those that need its blocks."""
    downs, ups = ([name for name in table if name not in ("in_block", "none")] for table in (DOWNS, UPS))
    x = images(1, 1, 45, 44)
    for i in range(max(len(downs), len(ups))):
        parts: dict[str, Any] = {"down": downs[i % len(downs)], "up": ups[i % len(ups)], "skip": skip}
        y = small(padding=padding, padding_mode=mode, **parts)(x)
        assert y.shape == ((1, 2, 45, 44) if padding == "same" else (1, 2, 8, 4)), parts
        assert y.isfinite().all(), parts


@pytest.mark.parametrize("name", ["in_block", "none"])
def test_operators_of_the_other_family_are_refused_by_their_key(name: Any) -> None:
    for key in ("down", "up"):
        with pytest.raises(ValidationError, match=f"{key} = '{name}' is for 'unet' networks"):
            ClassicUNetConfig(**{key: name})


@pytest.mark.parametrize("kind", [kind for kind in TIMES if kind != "none"])
def test_it_can_be_told_the_time(kind: Any) -> None:
    net, x = small(padding="same", time=kind).eval(), images(2, 1, 16, 16)
    y = net(x, torch.tensor([3.0, 700.0]))
    torch.testing.assert_close(y[:1], net(x[:1], 3), rtol=0, atol=1e-5)
    assert not torch.allclose(y, net(x, torch.tensor([700.0, 3.0])), atol=1e-3)
    y.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    with pytest.raises(ValueError, match="t is needed"):
        net(x)


def test_a_time_that_it_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="t was given but the network has time = 'none'"):
        small(padding="same")(images(1, 1, 8, 8), 5)


def test_it_compiles_without_a_graph_break() -> None:
    net, x = small(padding="same", time="sinusoidal", block=NORMS[2]), images(2, 1, 9, 6)
    y = torch.compile(net, fullgraph=True, backend="eager")(x, torch.tensor([3, 4]))
    torch.testing.assert_close(y, net(x, torch.tensor([3, 4])), rtol=0, atol=1e-5)


def test_a_shift_of_a_circle_shifts_the_classes() -> None:
    net, x = small(padding="same", padding_mode="circular").double(), images(1, 1, 16, 8, dtype=torch.float64)
    torch.testing.assert_close(net(x.roll((4, -4), (2, 3))), net(x).roll((4, -4), (2, 3)), rtol=0, atol=1e-9)


def test_a_preset_of_the_other_family_is_refused() -> None:
    with pytest.raises(ConfigError, match="'ddpm-cifar10' is a 'unet' network, not a 'classic' one"):
        ClassicUNet.from_preset("ddpm-cifar10")
    assert ClassicUNet.from_preset("unet-2015", padding="same", levels=2).config.levels == 2


def test_fields_are_checked() -> None:
    with pytest.raises(ValidationError, match="padding"):
        ClassicUNet(padding="reflect")
    with pytest.raises(ValidationError, match="levels"):
        ClassicUNet(levels=0)
    with pytest.raises(ValidationError, match=r"a width of 4 is not divisible by block.groups = 8 \(base_channels"):
        ClassicUNet(base_channels=4, block={"norm": "group"})
    assert ClassicUNet(ClassicUNetConfig(base_channels=2), levels=2).config.base_channels == 2
    assert UNetConfig().kind != ClassicUNetConfig().kind
