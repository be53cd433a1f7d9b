"""The grid of least DDIM error on Gaussian data: found by dynamic programming, for any two ends.

With y = x / alpha and r = sigma / alpha every schedule runs through the same ODE, dy/dr = (y - D) / r. For data
N(0, v) its exact solution from r to q is y sqrt((v + q^2) / (v + r^2)), and a DDIM step multiplies y by
q/r + (1 - q/r) v / (v + r^2). What a whole grid multiplies by too little is the product of these quotients, so that
the error of a grid is a sum over its legs:

    E(grid) = sum over v of w(v) sum over legs (log exact(v, r, q) - log ddim(v, r, q)),   every term >= 0.

Data of about unit deviation have directions of many sizes: v runs over the squares of DEVIATIONS, and each direction
counts by its share of the variance, w(v) = v / sum of v. "Align your steps" (2404.14507) minimises a bound of the same
form, a sum over legs, but measures it on a trained network; this one needs neither network nor data.

A sum over legs is what dynamic programming minimises exactly over a fine set of candidate levels; one run of it gives
the grids of every number of steps up to MOST. More steps are read off that longest grid, log(r) against the step.
A rule of second order needs other grids; and where t is already even in arctan(r) (cosine) the gain over uniform is
nil, since that is the optimum for v = 1.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

DEVIATIONS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4)
CANDIDATES, MOST = 320, 64


def levels(high: float, low: float, steps: int) -> Tensor:
    """r of `steps` falling levels from `high` down to at least `low`, (steps,) float64; the sampler then goes to 0."""
    if steps <= MOST:
        return _best(high, low)[steps - 1].clone()
    longest = _best(high, low)[MOST - 1].log()
    place = torch.linspace(0, MOST - 1, steps, dtype=torch.float64)
    k = place.floor().long().clamp(max=MOST - 2)
    return torch.lerp(longest[k], longest[k + 1], place - k).exp()


def leg_errors(r: Tensor, q: Tensor) -> Tensor:
    """What one DDIM step from r to q adds to E, broadcast over both."""
    variances = [deviation**2 for deviation in DEVIATIONS]
    total = torch.zeros(torch.broadcast_shapes(r.shape, q.shape), dtype=torch.float64)
    for v in variances:
        exact = ((v + q**2) / (v + r**2)).log() / 2
        ddim = (q / r + (1 - q / r) * v / (v + r**2)).log()
        total += v * (exact - ddim)
    return total / sum(variances)


@lru_cache(maxsize=64)
def _best(high: float, low: float) -> list[Tensor]:
    """The best grids of 1 to MOST levels between two ends."""
    r = torch.linspace(math.log(high), math.log(low), CANDIDATES, dtype=torch.float64).exp()
    legs = leg_errors(r[:, None], r[None, :])
    legs = legs.masked_fill(torch.ones_like(legs).tril().bool(), torch.inf)  # a grid falls
    home = leg_errors(r, torch.zeros_like(r))
    cost = torch.full_like(r, torch.inf)
    cost[0] = 0  # of the best way to each level in so many legs, and for each leg where it came from
    came: list[Tensor] = []
    grids = []
    for _ in range(MOST):
        place, path = int((cost + home).argmin()), []
        for row in reversed(came):
            path.append(place)
            place = int(row[place])
        grids.append(r[[0, *reversed(path)]])
        cost, row = (cost[:, None] + legs).min(dim=0)
        came.append(row)
    return grids
