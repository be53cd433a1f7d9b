"""How a skip joins the way up. Each reports `out_channels`, so the network never asks which kind it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffunet.spec import ConcatSkip
from diffunet.table import Table


class Concat(nn.Module):
    """The skip's channels behind the decoder's (U-Net, 1505.04597)."""

    def __init__(self, config: ConcatSkip, channels: int, skip_channels: int) -> None:
        super().__init__()
        self.out_channels = channels + skip_channels

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join x (B, C, *S) and skip (B, C', *S) as (B, C + C', *S)."""
        return torch.cat([x, skip], dim=1)


SKIPS: Table[type[nn.Module]] = Table("skip", {"concat": Concat})
