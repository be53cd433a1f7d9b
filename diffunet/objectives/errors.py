"""How far a guess is from its target: d = guess - target (B, C, *S) becomes one number a sample, (B,)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from diffunet.spec import objectives as spec
from diffunet.table import Table

POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class Error:
    """Base of every error; `config` is its spec."""

    def __call__(self, d: Tensor) -> Tensor:
        """The error (B,) of differences d (B, C, *S)."""
        raise AssertionError(f"{type(self).__name__} must say its error")


class Squared(Error):
    """The mean of d^2."""

    def __init__(self, config: spec.SquaredError) -> None:
        pass

    def __call__(self, d: Tensor) -> Tensor:
        return (d**2).flatten(1).mean(dim=1)


class Huber(Error):
    """The mean of 2 c (sqrt(d^2 + c^2) - c): the pseudo-Huber loss, d^2 near 0 and 2 c |d| far away (2403.16728)."""

    def __init__(self, config: spec.HuberError) -> None:
        self.c = config.c

    def __call__(self, d: Tensor) -> Tensor:
        # d^2 / (sqrt(d^2 + c^2) + c) is the same, and loses no digits where d is small
        root = torch.sqrt(d**2 + self.c**2)
        return (2 * self.c * d**2 / (root + self.c)).flatten(1).mean(dim=1)


class MultiScale(Error):
    """The mean of squared errors at several sizes, each the last averaged over 2 x 2 (2301.11093, section 3.2).

    A side of one value stays as it is; at an odd side the last window holds one value.
    """

    def __init__(self, config: spec.MultiScaleError) -> None:
        self.scales = config.scales

    def __call__(self, d: Tensor) -> Tensor:
        errors = [(d**2).flatten(1).mean(dim=1)]
        for _ in range(self.scales - 1):
            d = halved(d)
            errors.append((d**2).flatten(1).mean(dim=1))
        return torch.stack(errors).mean(dim=0)


def halved(d: Tensor) -> Tensor:
    """d (B, C, *S), one to three sides, averaged over windows of two along each side; without sides d itself."""
    sides = d.shape[2:]
    if not sides:
        return d
    window = [min(2, side) for side in sides]
    return POOLS[len(sides)](d, window, ceil_mode=True, count_include_pad=False)


ERRORS: Table[type[Error]] = Table("error", {"squared": Squared, "huber": Huber, "multi_scale": MultiScale})
