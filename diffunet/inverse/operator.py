"""What a linear operator A is to a restorer: y = A x, its adjoint, and its ways back.

With the singular value decomposition A = U S V^T every method here needs only A, A^T and V f(S) U^T, which an operator
knows how to apply cheaply: f = 1 / s is the pseudo-inverse, f = s / (s^2 + r) the ridge solution, and so on.

Legend: x (B, C, *S), y (B, *M); s the singular values, a number or a tensor that multiplies in U's basis.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Spectrum = Callable[[Tensor], Tensor]


class Operator:
    """A linear map of images of one shape.

    Attributes:
        shape: (C, *S) of an image.
        measured: (*M) of what it becomes.
    """

    shape: tuple[int, ...]
    measured: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """A x: (B, *measured) of x (B, *shape)."""
        raise AssertionError(f"{type(self).__name__} must say what it does")

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y: (B, *shape) of y (B, *measured)."""
        raise AssertionError(f"{type(self).__name__} must say its adjoint")

    def back(self, f: Spectrum, y: Tensor) -> Tensor:
        """V f(S) U^T y: (B, *shape) of y (B, *measured); f maps singular values to numbers."""
        raise AssertionError(f"{type(self).__name__} must say its ways back")

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y, the smallest x that explains y best: (B, *shape) of y (B, *measured).

        A direction in which y keeps less than half of its type's digits counts as lost: singular values up to sqrt(eps)
        of the largest are 0.
        """
        return self.back(inverse, y)

    def ridge(self, y: Tensor, r: float) -> Tensor:
        """A^T (A A^T + r I)^-1 y = argmin_x |y - A x|^2 + r |x|^2 for r > 0; A^+ y for r = 0."""
        return self.back(inverse if r == 0 else lambda s: s / (s**2 + r), y)

    def guess(self, y: Tensor) -> Tensor:
        """A first picture (B, *shape) that explains y; A^+ y where nothing better is known."""
        return self.pinv(y)


def inverse(s: Tensor) -> Tensor:
    """1 / s, and 0 where s counts as 0."""
    dead = s <= torch.finfo(s.dtype).eps ** 0.5 * s.max()
    return torch.where(dead, 0.0, 1 / torch.where(dead, 1.0, s))
