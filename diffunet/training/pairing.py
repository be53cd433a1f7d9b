"""Which noise of a batch goes to which of its images.

The batch is a rank's micro-batch: other ranks and micro-steps pair among themselves, so that a run of two ranks is not
that of one, and larger micro-batches pair better.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from diffunet.table import Table


def random(x0: Tensor, eps: Tensor) -> slice:
    """As they come."""
    return slice(None)


def optimal(x0: Tensor, eps: Tensor) -> Tensor:
    """The permutation p (B,) with the least sum of |x0_i - eps_p(i)|^2 (2302.00482, section 4; 2406.12303).

    The squares of x0 and eps are the same in every permutation, so only the products count.
    """
    products = x0.flatten(1) @ eps.flatten(1).T
    _, order = linear_sum_assignment(products.cpu().numpy(), maximize=True)
    return torch.from_numpy(order).to(x0.device)


# x0, eps (B, C, *S) -> the rows of eps
PAIRINGS: Table[Callable[[Tensor, Tensor], Any]] = Table("pairing", {"random": random, "optimal": optimal})
