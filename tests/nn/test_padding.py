"""Borders: against torch's own, beyond what torch can do, and as a symmetry of whole networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.nn import BORDERS, DOWNS, UPS
from diffunet.nn.layers import conv, crop_centre, crop_like, pad, pad_to_even
from diffunet.spec import BlurPool, FirUp, InBlock, StridedConv, TransposedConv
from tests.nn.networks import images, tiny

TORCH = {"edge": "replicate", "reflect": "reflect", "circular": "circular"}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
every_mode = pytest.mark.parametrize("mode", ["reflect", "circular"])
every_padding = pytest.mark.parametrize("padding", ["zeros", "reflect", "circular"])
every_shape = pytest.mark.parametrize("sides", [(7,), (5, 6), (4, 5, 6)], ids=str)


@every_shape
@pytest.mark.parametrize(("left", "right"), [(0, 0), (1, 1), (3, 0), (0, 1), (2, 3)])
@pytest.mark.parametrize("mode", BORDERS)
def test_a_border_is_that_of_torch(mode: str, left: int, right: int, sides: tuple[int, ...]) -> None:
    x = images(2, 3, *sides)
    assert torch.equal(pad(x, left, right, mode), F.pad(x, (left, right) * len(sides), mode=TORCH[mode]))
    assert torch.equal(pad(x, left, right), F.pad(x, (left, right) * len(sides)))


@every_shape
@pytest.mark.parametrize("mode", BORDERS)
def test_a_borders_gradient_is_that_of_torch(mode: str, sides: tuple[int, ...]) -> None:
    x = images(2, 3, *sides, dtype=torch.float64).requires_grad_()
    y = pad(x, 2, 3, mode)
    weights = torch.randn_like(y)
    (ours,) = torch.autograd.grad((y * weights).sum(), x)
    (torchs,) = torch.autograd.grad((F.pad(x, (2, 3) * len(sides), mode=TORCH[mode]) * weights).sum(), x)
    torch.testing.assert_close(ours, torchs)


def nodes(tensor: Tensor) -> set[str]:
    """The kinds of operations that made a tensor."""
    found, stack = set(), [tensor.grad_fn]
    while stack:
        if (node := stack.pop()) is not None:
            found.add(node.name().rpartition("::")[2])
            stack += [before for before, _ in node.next_functions]
    return found


@pytest.mark.parametrize("mode", BORDERS)
def test_a_borders_gradient_has_the_same_bits_each_time(mode: str) -> None:
    """Torch's own reflection adds its gradients in any order on a GPU; slices, flips and joints do not."""
    x = images(1, 2, 5, 6).requires_grad_()
    allowed = {"CatBackward0", "SliceBackward0", "FlipBackward0", "AccumulateGrad"}
    assert nodes(pad(pad_to_even(x, mode), 2, 1, mode)) <= allowed


@pytest.mark.parametrize(("side", "border"), [(1, 1), (1, 3), (2, 2), (2, 5), (3, 3)])
def test_a_mirror_wider_than_the_image_repeats_the_edge(side: int, border: int) -> None:
    x = images(1, 2, side, 9)
    with pytest.raises(RuntimeError):
        F.pad(x, (border,) * 4, mode="reflect")
    mirrored = F.pad(x, (border, border, 0, 0), mode="reflect")
    assert torch.equal(pad(x, border, border, "reflect"), F.pad(mirrored, (0, 0, border, border), mode="replicate"))


@pytest.mark.parametrize(("side", "left", "right"), [(1, 1, 1), (1, 5, 2), (2, 3, 0), (3, 7, 8), (2, 0, 3)])
def test_a_circle_wider_than_the_image_goes_round_again(side: int, left: int, right: int) -> None:
    x = images(1, 2, side)
    around = torch.arange(-left, side + right) % side
    assert torch.equal(pad(x, left, right, "circular"), x[:, :, around])


@every_shape
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 3), (7, 1, 1)])
@every_mode
def test_a_convolution_is_that_of_torch_with_this_border(
    mode: Any, kernel: int, stride: int, dilation: int, sides: tuple[int, ...]
) -> None:
    ours = conv(len(sides), 3, 4, kernel, stride, dilation, padding=mode)
    border = dilation * (kernel // 2)
    torchs = CONVS[len(sides)](3, 4, kernel, stride, border, dilation, padding_mode=mode)
    torchs.load_state_dict(ours.state_dict())  # the names are the same, too
    x = images(2, 3, *sides)
    torch.testing.assert_close(ours(x), torchs(x))


@pytest.mark.parametrize("sides", [(1,), (2,), (1, 1), (2, 1), (1, 2, 1)], ids=str)
@every_padding
def test_a_wide_convolution_takes_the_smallest_image(padding: str, sides: tuple[int, ...]) -> None:
    part, x = conv(len(sides), 2, 3, kernel=7, padding=padding), images(1, 2, *sides)
    assert part(x).shape == (1, 3, *sides)
    assert part(x).isfinite().all()


@pytest.mark.parametrize(("mode", "row"), [("reflect", 1), ("circular", 0), ("edge", 2)])
def test_an_odd_side_gets_the_row_that_its_border_has(mode: str, row: int) -> None:
    x = images(1, 2, 3, 4)
    assert torch.equal(pad_to_even(x, mode), torch.cat([x, x[:, :, row : row + 1]], dim=2))
    assert pad_to_even(x[:, :, :2], mode).shape == (1, 2, 2, 4)
    assert torch.equal(pad_to_even(x[..., :1], mode)[..., 0], pad_to_even(x[..., :1], mode)[..., 1])


def test_odd_sides_are_padded_at_their_end_and_cropped_there() -> None:
    x = images(1, 2, 3, 4, 5)
    padded = pad_to_even(x)
    assert padded.shape == (1, 2, 4, 4, 6)
    assert torch.equal(crop_like(padded, x), x)
    assert not padded[:, :, 3].any()
    assert not padded[..., 5].any()
    assert pad_to_even(padded) is padded


@pytest.mark.parametrize(("side", "to", "first"), [(7, 3, 2), (6, 3, 1), (5, 5, 0), (8, 2, 3)])
def test_the_centre_is_cropped(side: int, to: int, first: int) -> None:
    x = images(1, 1, side, side)
    assert torch.equal(crop_centre(x, (to, side)), x[:, :, first : first + to])
    assert torch.equal(crop_centre(x, (to, to)), x[:, :, first : first + to, first : first + to])


# --- networks on a circle --------------------------------------------------------------------------------------------

NAMED = [(down, up) for down in DOWNS for up in UPS if (down == "none") == (up == "none")]
FURTHER: list[tuple[Any, Any]] = [
    (StridedConv(pad="asymmetric"), TransposedConv(kernel=4)),
    *((BlurPool(taps=taps, conv=taps % 2 == 0), FirUp(taps=taps, conv=taps % 2 == 1)) for taps in range(2, 8)),
    *((InBlock(taps=taps, project=True), InBlock(taps=taps, project=True)) for taps in range(3, 8)),
]


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize(("down", "up"), [*NAMED, *FURTHER], ids=str)
def test_a_shift_of_a_circle_shifts_the_answer(down: Any, up: Any, dims: int) -> None:
    """By as many values as one of the deepest level stands for: two levels down, four."""
    net = tiny(dims=dims, padding="circular", down=down, up=up, input_pyramid=None).double()
    x, dim = images(1, 3, *(16, 8)[:dims], dtype=torch.float64), 2
    y, t = net(x, 7), torch.tensor([7.0])
    assert y.abs().max() > 0.1
    torch.testing.assert_close(net(x.roll(4, dim), t), y.roll(4, dim), rtol=0, atol=1e-9)


@pytest.mark.parametrize("block", ["residual", "dilated", "multi_scale", "double_conv", "magnitude_preserving"])
@pytest.mark.parametrize("pyramid", ["skip", "residual"])
def test_blocks_and_pyramids_of_a_circle_shift_with_it(block: str, pyramid: str) -> None:
    groups = {} if block == "magnitude_preserving" else {"groups": 2}
    parts = {"block": {"kind": block, **groups}, "input_pyramid": pyramid, "output_pyramid": "skip"}
    net, x = tiny(padding="circular", **parts).double(), images(1, 3, 16, 8, dtype=torch.float64)
    torch.testing.assert_close(net(x.roll((4, -4), (2, 3)), 7), net(x, 7).roll((4, -4), (2, 3)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_other_borders_do_not_shift(padding: str) -> None:
    net, x = tiny(padding=padding), images(1, 3, 16, 8)
    assert not torch.allclose(net(x.roll(4, 2), 7), net(x, 7).roll(4, 2), atol=1e-3)


@every_padding
@pytest.mark.parametrize(
    "sides", [(1,), (2,), (7,), (1, 1), (2, 2), (15, 13), (30, 30), (9, 10, 11), (1, 2, 1)], ids=str
)
def test_every_border_takes_every_size(sides: tuple[int, ...], padding: Any) -> None:
    net = tiny(dims=len(sides), padding=padding)
    y = net(images(1, 3, *sides), 7)
    assert y.shape == (1, 3, *sides)
    assert y.isfinite().all()
