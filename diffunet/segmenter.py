"""Segmenter: a network without time and what it knows of its data, from pictures to label values."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from torch import Tensor, nn

from diffunet.losses import probabilities
from diffunet.spec import SegmentInfo
from diffunet.tiles import Fit, fit, tiled


class Segmenter(nn.Module):
    """Images in [-1, 1] in, class probabilities out, whatever their size.

    Args:
        network: maps (B, C, *S) to logits (B, K or 1, *S'), without time; valid or size-keeping.
        info: classes, label values, range of the pictures, tile.
    """

    def __init__(self, network: nn.Module, info: SegmentInfo) -> None:
        super().__init__()
        self.network, self.info = network, info

    @cached_property
    def fits(self) -> Fit:
        """The sides that the network takes."""
        return fit(self.network)

    def forward(self, x: Tensor) -> Tensor:
        """The network's own logits (B, K or 1, *S') of one batch of crops."""
        return self.network(x)

    def logits(self, image: Tensor, tile: int | None = None, batch_size: int = 1) -> Tensor:
        """Logits (K or 1, *S) of one image (C, *S) in [-1, 1]; `tile` is the largest side that is seen at once."""
        image = image.to(next(self.network.parameters()).device)
        return tiled(self.network, image, tile or self.info.tile, self.info.margin, batch_size, self.fits)

    def probabilities(self, image: Tensor, tile: int | None = None, batch_size: int = 1) -> Tensor:
        """Class probabilities (K, *S) of one image (C, *S) in [-1, 1]."""
        return probabilities(self.logits(image, tile, batch_size)[None])[0]

    def classes(self, image: Tensor, tile: int | None = None, batch_size: int = 1) -> Tensor:
        """The likeliest class (*S) of each pixel, 0 .. K - 1."""
        return self.probabilities(image, tile, batch_size).argmax(dim=0)

    def values(self, classes: Tensor) -> np.ndarray:
        """The label value of each pixel, uint8 where all of them fit and uint16 otherwise."""
        table = np.asarray(self.info.values, dtype=np.uint16)
        return (table.astype(np.uint8) if table.max() <= 255 else table)[classes.cpu().numpy()]
