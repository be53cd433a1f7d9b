"""Every operator against linear algebra and other libraries: its adjoint, its pseudo-inverse, its ridge solution."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import ndimage, signal
from torch import Tensor
from torch.nn import functional as F

from benchmarks.posteriors import matrix
from diffunet.errors import ConfigError
from diffunet.inverse import OPERATORS, Convolution, Operator, build_operator
from diffunet.inverse.convolution import line

SHAPES = ((3, 7, 9), (3, 6, 5))
# options beside the defaults: other borders, sides that the scale does not divide, kernels larger than the image
OPTIONS: list[dict[str, Any]] = [{"kind": name} for name in OPERATORS] + [
    {"kind": "average", "scale": 4},
    {"kind": "bicubic", "scale": 3},
    {"kind": "gaussian_blur", "std": 3.0, "border": "reflect"},
    {"kind": "gaussian_blur", "std": 0.7, "border": "circular"},
    {"kind": "uniform_blur", "size": 4, "border": "circular"},
    {"kind": "uniform_blur", "size": 15, "border": "reflect"},
    {"kind": "motion_blur", "length": 21.0, "angle": 100.0},
    {"kind": "mask", "known": 0.0},
    {"kind": "mask", "known": 1.0},
    {"kind": "sensing", "share": 1.0},
]
every = pytest.mark.parametrize("options", OPTIONS, ids=[" ".join(map(str, o.values())) for o in OPTIONS])
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def made(options: dict[str, Any], shape: tuple[int, ...]) -> Operator:
    return build_operator(options, shape)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@every
@shapes
def test_the_adjoint_is_the_adjoint(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    A = made(options, shape)
    x, y = drawn(4, *A.shape), drawn(4, *A.measured, seed=1)
    assert A(x).shape == y.shape
    assert A.adjoint(y).shape == x.shape
    left, right = (A(x) * y).sum(), (x * A.adjoint(y)).sum()
    assert abs(left - right) <= 1e-12 * max(1.0, abs(float(left)))


@every
@shapes
def test_it_is_linear(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    A = made(options, shape)
    x, other = drawn(2, *A.shape), drawn(2, *A.shape, seed=1)
    assert torch.allclose(A(2 * x - other), 2 * A(x) - A(other), atol=1e-12)


@every
@shapes
def test_what_is_measured_again_is_the_same(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    """A A+ A = A, up to the share sqrt(eps) = 1.5e-8 of a picture that counts as lost."""
    A = made(options, shape)
    y = A(drawn(3, *A.shape))
    assert torch.allclose(A(A.pinv(y)), y, rtol=0, atol=1e-7)


@every
@shapes
def test_the_ways_back_are_linear_algebra(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    """A^T (A A^T + r I)^-1 y, and A+ y where no singular value is near the cut, by torch's solvers on the matrix."""
    A, r = made(options, shape), 0.03
    dense = matrix(A)
    y = drawn(2, *A.measured)
    system = dense @ dense.T + r * torch.eye(len(dense), dtype=torch.float64)
    expected = (dense.T @ torch.linalg.solve(system, y.flatten(1).T)).T.view(2, *A.shape)
    assert torch.allclose(A.ridge(y, r), expected, rtol=1e-9, atol=1e-9)
    s = torch.linalg.svdvals(dense)
    if float(s[0]) == 0 or float(s[s > 1e-12].min() / s[0]) > 1e-4:
        expected = (torch.linalg.pinv(dense, rtol=1e-9) @ y.flatten(1).T).T.view(2, *A.shape)
        assert torch.allclose(A.pinv(y), expected, rtol=1e-8, atol=1e-8)
    else:
        assert "blur" in options["kind"], "only blurs lose what they do not take away altogether"


@every
def test_every_operator_follows_float32(options: dict[str, Any]) -> None:
    A = made(options, SHAPES[0])
    y = A(drawn(1, *A.shape).float())
    assert y.dtype == A.adjoint(y).dtype == A.pinv(y).dtype == torch.float32
    assert torch.allclose(y, A(drawn(1, *A.shape)).float(), atol=1e-5)
    assert torch.allclose(A(A.pinv(y)), y, rtol=0, atol=2e-3), "sqrt(eps) is 3.5e-4 here"


@pytest.mark.parametrize("name", ["average", "bicubic", "gaussian_blur", "uniform_blur", "sensing", "mask", "identity"])
@pytest.mark.parametrize("shape", [(2, 11), (1, 4, 5, 3)], ids=str)
def test_one_and_three_dimensions(name: str, shape: tuple[int, ...]) -> None:
    A = build_operator(name, shape)
    x, y = drawn(2, *A.shape), drawn(2, *A.measured, seed=1)
    assert float((A(x) * y).sum()) == pytest.approx(float((x * A.adjoint(y)).sum()), abs=1e-12)


def test_averages_are_torchs_pooling() -> None:
    x = drawn(2, 3, 7, 9)
    expected = F.avg_pool2d(x, 4, ceil_mode=True, count_include_pad=False)
    assert torch.allclose(build_operator({"kind": "average", "scale": 4}, (3, 7, 9))(x), expected)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_is_torchs_antialiased_interpolation(scale: int) -> None:
    x = drawn(2, 3, 13, 10)
    sides = (math.ceil(13 / scale), math.ceil(10 / scale))
    expected = F.interpolate(x, size=sides, mode="bicubic", antialias=True)
    assert torch.allclose(build_operator({"kind": "bicubic", "scale": scale}, (3, 13, 10))(x), expected, atol=1e-12)


@pytest.mark.parametrize(("border", "mode"), [("replicate", "nearest"), ("reflect", "mirror"), ("circular", "wrap")])
def test_blurs_are_scipys(border: str, mode: str) -> None:
    x = drawn(1, 1, 14, 11)
    A = build_operator({"kind": "gaussian_blur", "std": 1.3, "border": border}, (1, 14, 11))
    assert torch.allclose(A(x)[0, 0], torch.from_numpy(ndimage.gaussian_filter(x[0, 0].numpy(), 1.3, mode=mode)))
    A = build_operator({"kind": "uniform_blur", "size": 5, "border": border}, (1, 14, 11))
    assert torch.allclose(A(x)[0, 0], torch.from_numpy(ndimage.uniform_filter(x[0, 0].numpy(), 5, mode=mode)))


def test_a_convolution_is_scipys_on_a_torus() -> None:
    x, kernel = drawn(1, 2, 8, 9), drawn(3, 5, seed=1)
    expected = [signal.convolve2d(channel.numpy(), kernel.numpy(), mode="same", boundary="wrap") for channel in x[0]]
    found = Convolution(kernel, (2, 8, 9))(x)[0]
    assert torch.allclose(found, torch.stack([torch.from_numpy(part) for part in expected]), atol=1e-12)


@pytest.mark.parametrize(("angle", "alike"), [(0, lambda k: k), (90, lambda k: k.T), (180, lambda k: k.flip(0, 1))])
def test_a_line_turns_with_its_angle(angle: float, alike: Any) -> None:
    kernel = line(7, angle)
    assert float(kernel.sum()) == pytest.approx(1)
    assert torch.allclose(kernel, alike(line(7, 0)), atol=1e-12)
    middle = line(7, 0)[len(kernel) // 2]
    assert float(middle.sum()) == pytest.approx(1), "a horizontal line is one row"
    assert line(7, 45).fliplr().diagonal().sum() > 0.5, "anticlockwise: up to the right"


def test_sensing_rows_are_orthonormal() -> None:
    A = matrix(build_operator({"kind": "sensing", "share": 0.4}, (2, 5, 4)))
    assert A.shape == (16, 40)
    assert torch.allclose(A @ A.T, torch.eye(16, dtype=torch.float64), atol=1e-12)


def test_a_mask_may_be_given_for_all_channels_or_each() -> None:
    known = torch.tensor([[True, False], [False, True]])
    x = torch.arange(8.0).view(1, 2, 2, 2)
    one = build_operator("mask", (2, 2, 2), known=known)
    assert one(x).tolist() == [[[[0, 0], [0, 3]], [[4, 0], [0, 7]]]]
    each = build_operator("mask", (2, 2, 2), known=torch.stack([known, ~known]))
    assert each(x).tolist() == [[[[0, 0], [0, 3]], [[0, 5], [6, 0]]]]
    assert bool((one(torch.full_like(x, math.nan)) == 0).logical_or(known).all()), "what is missing may be anything"
    with pytest.raises(ConfigError, match=r"a mask of shape \(3, 2\) does not fit"):
        build_operator("mask", (2, 2, 2), known=torch.ones(3, 2))


def test_the_first_guess_of_a_hole_is_its_nearest_pixel() -> None:
    known = torch.tensor([[True, False, False, False, True]])
    A = build_operator("mask", (1, 1, 5), known=known)
    y = torch.tensor([[[[3.0, 0, 0, 0, 8.0]]]])
    assert A.guess(y).tolist()[0][0][0][:2] == [3, 3]
    assert A.guess(y).tolist()[0][0][0][3:] == [8, 8]
    nothing = build_operator({"kind": "mask", "known": 0.0}, (1, 1, 5))
    assert nothing.guess(y).abs().max() == 0


def test_operators_refuse_what_they_cannot_have() -> None:
    with pytest.raises(ConfigError, match="unknown operator 'blurr'"):
        build_operator("blurr", (1, 4, 4))
    with pytest.raises(ConfigError, match="'grey' needs images of 3 channels, not 1"):
        build_operator("grey", (1, 4, 4))
    with pytest.raises(ConfigError, match="kernel of 2 dimensions cannot blur"):
        build_operator("motion_blur", (1, 4))
    with pytest.raises(ConfigError, match="scale"):
        build_operator({"kind": "average", "scale": 0}, (1, 4))
