"""ClassicUNet: the segmentation U-Net of Ronneberger, Fischer and Brox (1505.04597), from the same parts as UNet.

Two 3x3 convolutions with ReLU per level, 2x2 max-pool down, 2x2 transposed convolution up, one skip per level, which is
cropped to the centre, stands first and is followed by the decoder's channels, and a 1x1 head. Logits come out: sigmoid
and softmax belong to the loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffunet.nn.blocks import BLOCKS
from diffunet.nn.embeddings import TIMES
from diffunet.nn.layers import crop_centre, crop_like
from diffunet.nn.resample import DOWNS, UPS
from diffunet.nn.site import Site
from diffunet.nn.skips import SKIPS
from diffunet.spec import ClassicUNetConfig
from diffunet.zoo import preset


class ClassicUNet(nn.Module):
    """The original U-Net: `net(x)` maps (B, C, *S) to logits (B, C_out, *S'), with S' = S for `same` padding.

    Args:
        config: a ClassicUNetConfig; or give its fields as keywords, `ClassicUNet(padding="same")`.

    `net(x, t)`, t a scalar or (B,), where the config has a time embedding.
    """

    def __init__(self, config: ClassicUNetConfig | None = None, **fields: Any) -> None:
        super().__init__()
        self.config = config = ClassicUNetConfig(**(dict(config or {}) | fields))
        widths, embed = config.widths, config.embed_channels
        self.time = TIMES.build(config.time, config.base_channels, embed) if embed else None
        outer = Site(config.dims, config.block, embed, config.padding_mode)  # operators keep what they halve and double
        inner = outer.at(padding="valid") if config.padding == "valid" else outer

        def block(in_channels: int, out_channels: int) -> nn.Module:
            return BLOCKS.build(config.block, inner, in_channels, out_channels)

        ins = [config.in_channels, *widths[:-1]]
        self.down = nn.ModuleList(block(i, o) for i, o in zip(ins, widths, strict=True))
        self.pool = nn.ModuleList(DOWNS.build(config.down, outer, width) for width in widths[:-1])
        self.lift, self.skips, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for below, width in zip(widths[:0:-1], widths[-2::-1], strict=True):
            self.lift.append(UPS.build(config.up, outer, below, width))
            self.skips.append(join := SKIPS.build(config.skip, outer, width, width))
            self.up.append(block(join.out_channels, width))
        self.head = outer.conv(widths[0], config.out_channels, kernel=1)

    def forward(self, x: Tensor, t: Tensor | float | None = None) -> Tensor:
        """Map x (B, C, *S) to logits (B, C_out, *S').

        Raises:
            ValueError: valid convolutions leave nothing of so small an image; or t is missing or not taken.
        """
        if self.config.padding == "valid" and min(x.shape[2:]) < self.smallest:
            raise ValueError(
                f"sides of {tuple(x.shape[2:])} are too small: valid padding needs {self.smallest} or more"
            )
        embedding = self._embed(x, t)
        skips: list[Tensor] = []
        for level, stage in enumerate(self.down):
            x = stage(self.pool[level - 1](x) if level else x, embedding)
            skips.append(x)
        skips.pop()
        for lift, join, stage in zip(self.lift, self.skips, self.up, strict=True):
            x, skip = lift(x), skips.pop()
            x = crop_like(x, skip)  # same padding, odd side: one row too many
            x = stage(join(x, crop_centre(skip, x.shape[2:])), embedding)
        return self.head(x)

    def _embed(self, x: Tensor, t: Tensor | float | None) -> Tensor | None:
        if (t is None) != (self.time is None):
            raise ValueError("t is needed" if t is None else "t was given but the network has time = 'none'")
        return None if self.time is None else self.time(torch.as_tensor(t, device=x.device).expand(x.shape[0]))

    @property
    def smallest(self) -> int:
        """Smallest side that valid convolutions leave something of."""
        side, levels = 1, len(self.config.widths)
        for _ in range(levels - 1):
            side = -(-(side + 4) // 2)  # what the level below must give
        for _ in range(levels - 1):
            side = 2 * (side + 4) - 1  # an odd side is padded before the pool
        return side + 4

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> ClassicUNet:
        """Make the network of a preset, with some fields of its config changed.

        Raises:
            ConfigError: unknown preset, or one of another family.
        """
        return cls(ClassicUNetConfig(**(dict(preset(name, ClassicUNetConfig)) | changes)))
