"""The smallest parts: borders and convolutions in any dimension, norms, zero initialisation, routing of the embedding.

Legend: B batch, C channels, *S spatial sides (1, 2 or 3 of them), E embedding channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.table import Table

M = TypeVar("M", bound=nn.Module)


# --- borders ---------------------------------------------------------------------------------------------------------


def _edge(x: Tensor, dim: int, left: int, right: int) -> Tensor:
    first, last = x.narrow(dim, 0, 1), x.narrow(dim, x.shape[dim] - 1, 1)
    return torch.cat([first] * left + [x] + [last] * right, dim=dim)


def _reflect(x: Tensor, dim: int, left: int, right: int) -> Tensor:
    side = x.shape[dim]
    if max(left, right) >= side:  # nothing to mirror
        return _edge(x, dim, left, right)
    before, behind = x.narrow(dim, 1, left).flip(dim), x.narrow(dim, side - 1 - right, right).flip(dim)
    return torch.cat([before, x, behind], dim=dim)


def _circular(x: Tensor, dim: int, left: int, right: int) -> Tensor:
    side = x.shape[dim]
    turns = -(-max(left, right, 1) // side)  # a border wider than the image goes round more than once
    around = torch.cat([x] * turns, dim=dim) if turns > 1 else x
    return torch.cat([around.narrow(dim, turns * side - left, left), x, around.narrow(dim, 0, right)], dim=dim)


# made of slices, since torch's own reflection has no backward of equal bits on a GPU
BORDERS: Table[Callable[[Tensor, int, int, int], Tensor]] = Table(
    "padding", {"edge": _edge, "reflect": _reflect, "circular": _circular}
)


def pad(x: Tensor, left: int, right: int, mode: str = "zeros") -> Tensor:
    """Widen each side of x (B, C, *S) by `left` and `right` values.

    A mirror image wider than the image repeats the edge; a circular one goes round again.
    """
    if mode == "zeros":
        return F.pad(x, (left, right) * (x.ndim - 2))
    for dim in range(2, x.ndim):
        x = BORDERS[mode](x, dim, left, right)
    return x


def pad_to_even(x: Tensor, mode: str = "zeros") -> Tensor:
    """Append one row to each odd side of x (B, C, *S)."""
    if mode == "zeros":
        pads = [p for side in reversed(x.shape[2:]) for p in (0, side % 2)]
        return F.pad(x, pads) if any(pads) else x
    for dim in range(2, x.ndim):
        x = BORDERS[mode](x, dim, 0, 1) if x.shape[dim] % 2 else x
    return x


def crop_like(x: Tensor, reference: Tensor) -> Tensor:
    """Cut the far end of each side of x (B, C, *S) that is longer than in `reference`."""
    for dim, side in enumerate(reference.shape[2:], start=2):
        x = x.narrow(dim, 0, min(side, x.shape[dim]))
    return x


def crop_centre(x: Tensor, sides: Sequence[int]) -> Tensor:
    """Cut x (B, C, *S) to `sides` around its centre."""
    for dim, side in enumerate(sides, start=2):
        x = x.narrow(dim, (x.shape[dim] - side) // 2, side)
    return x


# --- convolutions ----------------------------------------------------------------------------------------------------


class _Bordered:
    """A convolution that makes its own border first."""

    def __init__(self, *args: Any, border: int, mode: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.border, self.mode = border, mode

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad(x, self.border, self.border, self.mode))  # type: ignore[misc]


class BorderedConv1d(_Bordered, nn.Conv1d):
    """Conv1d behind a reflected or circular border."""


class BorderedConv2d(_Bordered, nn.Conv2d):
    """Conv2d behind a reflected or circular border."""


class BorderedConv3d(_Bordered, nn.Conv3d):
    """Conv3d behind a reflected or circular border."""


CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BORDERED: dict[int, Any] = {1: BorderedConv1d, 2: BorderedConv2d, 3: BorderedConv3d}


def conv(
    dims: int,
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    stride: int = 1,
    dilation: int = 1,
    padding: str = "zeros",
    **options: Any,
) -> nn.Module:
    """Convolution in `dims` dimensions that keeps the size at stride 1.

    Args:
        padding: zeros, reflect or circular; or valid, which loses a border.
    """
    border, shape = dilation * (kernel // 2), (in_channels, out_channels, kernel)
    options |= {"stride": stride, "dilation": dilation}
    if padding in ("zeros", "valid"):
        return CONVS[dims](*shape, padding=border if padding == "zeros" else 0, **options)
    if border == 0:
        return CONVS[dims](*shape, **options)
    return BORDERED[dims](*shape, border=border, mode=padding, **options)


def zero(module: M) -> M:
    """Set every parameter of `module` to zero: a residual branch that starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


# --- norms -----------------------------------------------------------------------------------------------------------


class GroupNorm(nn.GroupNorm):
    """Group norm that also takes a single value, whose norm is its bias (torch's own refuses it)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, *S) over each group of channels and all positions."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm in any dimension; of a single value it is its bias."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of x (B, C, *S) over batch and positions."""
        if self.training and x.numel() == x.shape[1]:  # no variance, and none to remember
            weight, bias = (p.view(-1, *[1] * (x.ndim - 2)) for p in (self.weight, self.bias))
            return x * 0 * weight + bias
        return super().forward(x)


NORMS: Table[Callable[[Any, int], nn.Module]] = Table(
    "norm",
    {
        "group": lambda block, channels: GroupNorm(block.groups_of(channels), channels, block.eps),
        "batch": lambda block, channels: BatchNorm(channels, block.eps),
        "none": lambda block, channels: nn.Identity(),
    },
)


# --- the embedding's way ---------------------------------------------------------------------------------------------


class Timed(nn.Module):
    """Mark of a part whose forward takes (x, embedding) in place of (x)."""


def tell(part: nn.Module, x: Tensor, embedding: Tensor | None) -> Tensor:
    """Send x (B, C, *S) through a part, with embedding (B, E) where the part is `Timed`."""
    return part(x, embedding) if isinstance(part, Timed) else part(x)


class Chain(Timed):
    """Parts in a row; those that are `Timed` also get the embedding."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Send x (B, C, *S) through the parts; embedding (B, E)."""
        for part in self.parts:
            x = tell(part, x, embedding)
        return x
