"""ClassicUNet: the segmentation U-Net of Ronneberger, Fischer and Brox (1505.04597), from the same small parts.

Two 3x3 convolutions with ReLU per level, 2x2 max-pool down, 2x2 transposed convolution up, one skip per level, which is
cropped to the centre, stands first and is followed by the decoder's channels, and a 1x1 head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.nn.layers import conv
from diffunet.nn.resample import crop_like, pad_to_even
from diffunet.spec import ClassicUNetConfig
from diffunet.zoo import preset

POOLS: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
UP_CONVS: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def crop_centre(x: Tensor, sides: torch.Size) -> Tensor:
    """Cut x (B, C, *S) to `sides` around its centre."""
    for dim, side in enumerate(sides, start=2):
        x = x.narrow(dim, (x.shape[dim] - side) // 2, side)
    return x


class ClassicUNet(nn.Module):
    """The original U-Net: `net(x)` maps (B, C, *S) to (B, C_out, *S'), with S' = S for `same` padding.

    Args:
        config: a ClassicUNetConfig; or give its fields as keywords, `ClassicUNet(padding="same")`.
    """

    def __init__(self, config: ClassicUNetConfig | None = None, **fields: Any) -> None:
        super().__init__()
        self.config = config = ClassicUNetConfig(**(dict(config or {}) | fields))
        widths = [config.base_channels * 2**level for level in range(config.levels)]
        ins = [config.in_channels, *widths[:-1]]
        self.down = nn.ModuleList(self._double(i, o) for i, o in zip(ins, widths, strict=True))
        lifts = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.lift = nn.ModuleList(UP_CONVS[config.dims](i, o, 2, stride=2) for i, o in lifts)
        self.up = nn.ModuleList(self._double(i, o) for i, o in lifts)
        self.head = conv(config.dims, widths[0], config.out_channels, kernel=1)

    def _double(self, in_channels: int, out_channels: int) -> nn.Sequential:
        padding = 1 if self.config.padding == "same" else 0
        first = conv(self.config.dims, in_channels, out_channels, padding=padding)
        second = conv(self.config.dims, out_channels, out_channels, padding=padding)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, *S) to (B, C_out, *S').

        Raises:
            ValueError: valid convolutions leave nothing of so small an image.
        """
        if self.config.padding == "valid" and min(x.shape[2:]) < self.smallest:
            raise ValueError(
                f"sides of {tuple(x.shape[2:])} are too small: valid padding needs {self.smallest} or more"
            )
        skips: list[Tensor] = []
        for level, stage in enumerate(self.down):
            x = stage(POOLS[self.config.dims](pad_to_even(x), 2) if level else x)
            skips.append(x)
        skips.pop()
        for lift, stage in zip(self.lift, self.up, strict=True):
            x, skip = lift(x), skips.pop()
            x = crop_like(x, skip)  # same padding, odd side: one row too many
            x = stage(torch.cat([crop_centre(skip, x.shape[2:]), x], dim=1))
        return self.head(x)

    @property
    def smallest(self) -> int:
        """Smallest side that valid convolutions leave something of."""
        side = 1
        for _ in range(self.config.levels - 1):
            side = -(-(side + 4) // 2)  # what the level below must give
        for _ in range(self.config.levels - 1):
            side = 2 * (side + 4) - 1  # an odd side is padded before the pool
        return side + 4

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> ClassicUNet:
        """Make the network of a preset, with some fields of its config changed.

        Raises:
            ConfigError: unknown preset, or one of another family.
        """
        return cls(ClassicUNetConfig(**(dict(preset(name, ClassicUNetConfig)) | changes)))
