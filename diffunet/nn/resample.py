"""Between levels: down operators halve every side (an odd side is padded to even), up operators double it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.nn.layers import conv
from diffunet.spec import NearestConv, StridedConv, UNetConfig
from diffunet.table import Table


def pad_to_even(x: Tensor) -> Tensor:
    """Append one zero row to each odd side of x (B, C, *S)."""
    pads = [p for side in reversed(x.shape[2:]) for p in (0, side % 2)]
    return F.pad(x, pads) if any(pads) else x


def crop_like(x: Tensor, reference: Tensor) -> Tensor:
    """Cut the far end of each side of x (B, C, *S) that is longer than in `reference`."""
    for dim, side in enumerate(reference.shape[2:], start=2):
        x = x.narrow(dim, 0, min(side, x.shape[dim]))
    return x


class StridedConvDown(nn.Module):
    """3x3 convolution of stride 2.

    Symmetric pads one zero on every side (ADM, and DDPM's PyTorch ports that kept it); asymmetric pads right and bottom
    only, which is TensorFlow's SAME and what converted DDPM weights need.
    """

    def __init__(self, config: StridedConv, network: UNetConfig, channels: int) -> None:
        super().__init__()
        self.asymmetric = config.pad == "asymmetric"
        self.conv = conv(network.dims, channels, channels, stride=2, padding=0 if self.asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the sides of x (B, C, *S), rounding up."""
        x = pad_to_even(x)
        return self.conv(F.pad(x, (0, 1) * (x.ndim - 2)) if self.asymmetric else x)


class NearestConvUp(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, config: NearestConv, network: UNetConfig, channels: int) -> None:
        super().__init__()
        self.conv = conv(network.dims, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Double the sides of x (B, C, *S)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


DOWNS: Table[type[nn.Module]] = Table("down operator", {"strided_conv": StridedConvDown})
UPS: Table[type[nn.Module]] = Table("up operator", {"nearest_conv": NearestConvUp})
