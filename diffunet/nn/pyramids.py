"""The image at every level: pyramids beside the way down and the way up (NCSN++ of score SDE, 2011.13456)."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.nn.filters import Double, Halve
from diffunet.nn.layers import crop_like, pad, pad_to_even
from diffunet.nn.site import Site
from diffunet.spec import ResidualPyramid, SkipPyramid
from diffunet.table import Table


class SkipInput(nn.Module):
    """aux = halve(aux); x + conv1x1(aux)."""

    def __init__(self, config: SkipPyramid, site: Site, aux_channels: int, channels: int) -> None:
        super().__init__()
        self.out_channels = aux_channels
        self.halve = Halve(config.taps, site.padding)
        self.conv = site.conv(aux_channels, channels, kernel=1)

    def forward(self, x: Tensor, aux: Tensor) -> tuple[Tensor, Tensor]:
        """Join aux (B, C', *S above) to x (B, C, *S): the new x and aux."""
        aux = self.halve(aux)
        return x + self.conv(aux), aux


class ResidualInput(nn.Module):
    """x = aux = (x + halve(conv(aux))) / sqrt(2)."""

    def __init__(self, config: ResidualPyramid, site: Site, aux_channels: int, channels: int) -> None:
        super().__init__()
        self.out_channels, self.padding = channels, site.padding
        # one border for both: the filter sees convolved values beyond the image, not zeros
        self.border = 1 + (config.taps - 1) // 2
        self.conv = site.conv(aux_channels, channels, padding="valid")
        self.halve = Halve(config.taps, site.padding, border=0)

    def forward(self, x: Tensor, aux: Tensor) -> tuple[Tensor, Tensor]:
        """Join aux (B, C', *S above) to x (B, C, *S): the new x and aux."""
        aux = pad(pad_to_even(aux, self.padding), self.border, self.border, self.padding)
        x = (x + self.halve(self.conv(aux))) * math.sqrt(0.5)
        return x, x


class SkipOutput(nn.Module):
    """aux = conv(SiLU(norm(x))) of the deepest level; above, the doubled aux is added to each level's own."""

    def __init__(self, config: SkipPyramid, site: Site, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = site.norm(channels)
        self.conv = site.conv(channels, out_channels)
        self.up = Double(config.taps, site.padding)

    def forward(self, x: Tensor, aux: Tensor | None) -> Tensor:
        """The output's part that stands at this level: from x (B, C, *S) and that of the level below."""
        y = self.conv(F.silu(self.norm(x)))
        return y if aux is None else y + self.lift(aux, y)

    def lift(self, aux: Tensor, reference: Tensor) -> Tensor:
        """Double aux (B, C, *S) to the sides of `reference`."""
        return crop_like(self.up(aux), reference)


INPUT_PYRAMIDS: Table[type[SkipInput] | type[ResidualInput]] = Table(
    "input pyramid", {"skip": SkipInput, "residual": ResidualInput}
)
OUTPUT_PYRAMIDS: Table[type[SkipOutput]] = Table("output pyramid", {"skip": SkipOutput})
