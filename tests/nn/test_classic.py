"""ClassicUNet: the network of 2015, number by number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from diffunet import ClassicUNet, ClassicUNetConfig, UNetConfig
from diffunet.errors import ConfigError
from diffunet.nn.classic import crop_centre
from tests.nn.networks import perturbed


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


def test_a_preset_of_the_other_family_is_refused() -> None:
    with pytest.raises(ConfigError, match="'ddpm-cifar10' is a 'unet' network, not a 'classic' one"):
        ClassicUNet.from_preset("ddpm-cifar10")
    assert ClassicUNet.from_preset("unet-2015", padding="same", levels=2).config.levels == 2


def test_fields_are_checked() -> None:
    with pytest.raises(ValidationError, match="padding"):
        ClassicUNet(padding="reflect")
    with pytest.raises(ValidationError, match="levels"):
        ClassicUNet(levels=0)
    assert ClassicUNet(ClassicUNetConfig(base_channels=2), levels=2).config.base_channels == 2
    assert UNetConfig().kind != ClassicUNetConfig().kind
