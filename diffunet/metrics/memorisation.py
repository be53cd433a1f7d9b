"""Is a sample a copy of a training image? The distance of each to its nearest training images."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from diffunet.errors import DataError

LOW = 0.01  # share of the held-out images; a sample nearer than all but these counts as near
THIRD = 1 / 3  # of the distance to the second nearest image (2310.02664, section 2: a memorised sample)
CHANCE = 1e-3  # how likely as many near samples may be by chance before they are suspicious


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Of N images: distance to the nearest training image, to the second nearest (inf where there is one only), and
    which one the nearest is; (N,) float32, float32 and int64."""

    distance: Tensor
    second: Tensor
    index: Tensor


@dataclass(frozen=True)
class Nearness:
    """How near samples lie to the training images, beside new images in their place.

    Attributes:
        median: of the samples' distances.
        floor: median of the held-out images' distances; None without held-out images, as the next three.
        ratio: median / floor; far below 1 for copies.
        nearer: share of the samples below the k-th least of the M held-out images' distances, k = M / 100 rounded up.
        flag: whether that many are so near in fewer than one of a thousand models that copy nothing: then the N + M
            distances come in any order alike, and c samples lie before the k-th held-out image where fewer than k of
            the first c + k - 1 are held-out ones, which is hypergeometric.
        alone: share of the samples whose nearest image is at less than a third of the distance of the second nearest.
    """

    median: float
    floor: float | None
    ratio: float | None
    nearer: float | None
    flag: bool | None
    alone: float

    def to_json(self) -> dict[str, Any]:
        """The same as a dict that JSON can hold, six digits after the point."""
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


def _two_nearest(x: Tensor, train: Tensor, chunk: int) -> Tensor:
    """(B, 2) indices of the rows of train (M, P) nearest to each row of x (B, P); one column where M is 1."""
    best = torch.full((len(x), 0), torch.inf, dtype=torch.float64, device=x.device)
    index = torch.zeros((len(x), 0), dtype=torch.long, device=x.device)
    for start in range(0, len(train), chunk):
        y = train[start : start + chunk].double()
        # |x - y|^2 less |x|^2, which is the same for all y; float64, since the terms nearly cancel for a copy
        distance = y.square().sum(1) - 2 * x @ y.T
        near, row = distance.topk(min(2, len(y)), largest=False, sorted=True)
        candidates, places = torch.cat([best, near], 1), torch.cat([index, row + start], 1)
        # stable, so that of equal ones the first stays
        order = candidates.argsort(dim=1, stable=True)[:, :2]
        best, index = candidates.gather(1, order), places.gather(1, order)
    return index


def neighbours(samples: Tensor, train: Tensor, chunk: int = 1024) -> Neighbours:
    """The two nearest training images of each sample, over all of them.

    The distance is the root mean square over channels and pixels, so it does not grow with the size of the image: 0 is
    a copy, 2 is black against white.

    Args:
        samples: (N, C, *S) in [-1, 1], or features (N, D).
        train: (M, C, *S) in [-1, 1], or features (M, D); M >= 1.
        chunk: images of either side compared at a time; memory is O(chunk^2 + chunk x pixels).

    Raises:
        DataError: there is no training image, or the shapes differ.
    """
    if not len(train) or samples.shape[1:] != train.shape[1:]:
        shapes = f"{tuple(samples.shape)} and {tuple(train.shape)}"
        raise DataError(
            f"samples and training images must be images of one shape, at least one to train on, not {shapes}"
        )
    distances, indices = [], []
    rows = train.flatten(1)
    for batch in samples.flatten(1).split(chunk):
        x = batch.double()
        index = _two_nearest(x, rows, chunk)
        both = [(x - rows[column].double()).square().mean(1).sqrt().float() for column in index.unbind(1)]
        distances.append(torch.stack([both[0], both[1] if len(both) > 1 else torch.full_like(both[0], torch.inf)]))
        indices.append(index[:, 0])
    first, second = torch.cat(distances, 1)
    return Neighbours(first, second, torch.cat(indices))


def nearest_distances(samples: Tensor, train: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Distance of each sample to its nearest training image and which one that is; see `neighbours`.

    Returns:
        (N,) float32 distances and (N,) int64 indices into train.

    Raises:
        DataError: there is no training image, or the shapes differ.
    """
    found = neighbours(samples, train, chunk)
    return found.distance, found.index


def nearness(samples: Neighbours, held_out: Neighbours | None) -> Nearness:
    """Hold the distances of samples against those of images that the model never saw.

    Args:
        samples: of N >= 1 samples.
        held_out: of M >= 1 held-out images among the same training images; None where there are none.
    """
    median = float(samples.distance.median())
    alone = float((samples.distance < THIRD * samples.second).float().mean())
    if held_out is None:
        return Nearness(median, None, None, None, None, alone)
    floor, n, m = float(held_out.distance.median()), len(samples.distance), len(held_out.distance)
    k = math.ceil(LOW * m)
    count = int((samples.distance < held_out.distance.sort().values[k - 1]).sum())
    flag = count > 0 and _chance(count, k, n, m) < CHANCE
    return Nearness(median, floor, median / floor if floor > 0 else None, count / n, flag, alone)


def _chance(count: int, k: int, n: int, m: int) -> float:
    """How likely `count` or more of n values lie before the k-th of m others, where all orders are alike."""
    first = count + k - 1
    ways = sum(math.comb(m, j) * math.comb(n, first - j) for j in range(k))
    return ways / math.comb(n + m, first)
