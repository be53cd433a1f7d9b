"""Is a sample a copy of a training image? The distance of each to its nearest training image."""

from __future__ import annotations

import torch
from torch import Tensor

from diffunet.errors import DataError


def _nearest(x: Tensor, train: Tensor, chunk: int) -> Tensor:
    """(B,) index of the row of train (M, P) nearest to each row of x (B, P)."""
    best = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    index = torch.zeros(len(x), dtype=torch.long, device=x.device)
    for start in range(0, len(train), chunk):
        y = train[start : start + chunk].double()
        # |x - y|^2 less |x|^2, which is the same for all y; float64, since the terms nearly cancel for a copy
        distance, row = (y.square().sum(1) - 2 * x @ y.T).min(1)
        nearer = distance < best
        best = torch.where(nearer, distance, best)
        index = torch.where(nearer, row + start, index)
    return index


def nearest_distances(samples: Tensor, train: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Distance of each sample to its nearest training image, over all of them, and which one that is.

    The distance is the root mean square over channels and pixels, so it does not grow with the size of the image: 0 is
    a copy, 2 is black against white.

    Args:
        samples: (N, C, *S) in [-1, 1].
        train: (M, C, *S) in [-1, 1], M >= 1.
        chunk: images of either side compared at a time; memory is O(chunk^2 + chunk x pixels).

    Returns:
        (N,) float32 distances and (N,) int64 indices into train.

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
        index = _nearest(x, rows, chunk)
        distances.append((x - rows[index].double()).square().mean(1).sqrt().float())
        indices.append(index)
    return torch.cat(distances), torch.cat(indices)
