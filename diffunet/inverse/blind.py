"""How much noise is in a picture that nobody measured it in: principal components of its patches (Chen et al., 2015).

Patches of a picture fill few of their dimensions; in the others there is noise alone. Of the eigenvalues of their
covariance those belong to the noise that, taken together, lie evenly about their mean (ICCV 2015, algorithm 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffunet.errors import ConfigError

PATCH = 8  # side, as in the paper
LEAST = 4  # patches for each of their dimensions: with fewer a smaller side is taken
MOST = 200_000  # patches looked at


def estimate_noise(images: Tensor) -> Tensor:
    """Standard deviation (B,) of white Gaussian noise in images (B, C, *S), in their own units.

    It is the root of the mean variance over channels. Texture as fine as noise reads as noise.

    Raises:
        ConfigError: a picture with a side below 3.
    """
    if min(images.shape[2:]) < 3:
        raise ConfigError(f"pictures of {tuple(images.shape[2:])} pixels are too small to find their noise: give sigma")
    return torch.stack([torch.stack([_variance(channel) for channel in image]).mean().sqrt() for image in images])


def _patches(image: Tensor) -> Tensor:
    """Overlapping patches (N, d) of one channel (*S), as many of them as count."""
    dims = image.ndim
    side = next(d for d in range(min(PATCH, *image.shape), 0, -1) if d <= 2 or _count(image, d) >= LEAST * d**dims)
    every = max(1, round((_count(image, side) / MOST) ** (1 / dims)))
    for dim in range(dims):
        image = image.unfold(dim, side, every)
    return image.flatten(dims).flatten(0, dims - 1)


def _count(image: Tensor, side: int) -> int:
    total = 1
    for n in image.shape:
        total *= max(0, n - side + 1)
    return total


def _variance(image: Tensor) -> Tensor:
    """Of the noise in one channel (*S)."""
    patches = _patches(image.double())
    falling = torch.linalg.eigvalsh(torch.cov(patches.T, correction=0)).clamp(min=0).flip(0)
    for first in range(len(falling)):
        rest = falling[first:]
        # the mean has come down to the median: no eigenvalue of the picture is left
        if (rest > rest.mean()).sum() <= (rest < rest.mean()).sum() + (len(rest) == 1):
            continue
        return rest.mean()
    return falling[-1]
