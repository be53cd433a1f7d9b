"""UNet: the noise-prediction U-Net in the DDPM topology (2006.11239), for signals, images and volumes.

stem; then for every level its blocks, each followed by attention where the level has it, and a down operator; mid;
then the levels upwards with one block more. A skip is taken after the stem, after every block and after every down
operator, and joins before each block of the way up: the layout that the weights of DDPM, improved DDPM, ADM and
diffusers share.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from diffunet.nn.attention import ATTENTIONS
from diffunet.nn.blocks import BLOCKS
from diffunet.nn.embeddings import Conditioning
from diffunet.nn.layers import Chain, GroupNorm, Timed, conv, zero
from diffunet.nn.resample import DOWNS, UPS, crop_like
from diffunet.nn.skips import SKIPS
from diffunet.spec import UNetConfig
from diffunet.zoo import preset


class UpStep(Timed):
    """Join one skip, then transform."""

    def __init__(self, skip: nn.Module, body: Chain) -> None:
        super().__init__()
        self.skip, self.body = skip, body

    def forward(self, x: Tensor, skip: Tensor, embedding: Tensor) -> Tensor:
        """Join x (B, C, *S) with skip (B, C', *S), told by embedding (B, E)."""
        return self.body(self.skip(x, skip), embedding)


class Level(nn.Module):
    """The blocks of one level, and the operator that leaves it."""

    def __init__(self, blocks: list[nn.Module], resample: nn.Module | None) -> None:
        super().__init__()
        self.blocks, self.resample = nn.ModuleList(blocks), resample


class Builder:
    """Makes the parts of one config; shared by the way down, mid and the way up."""

    def __init__(self, config: UNetConfig, embed: int) -> None:
        self.config, self.embed = config, embed

    def body(self, level: int, in_channels: int, out_channels: int) -> Chain:
        """A block, with attention behind it where the level has it."""
        attends = level in self.config.attention_levels
        return Chain(self.block(in_channels, out_channels), *([self.attention(out_channels)] if attends else []))

    def block(self, in_channels: int, out_channels: int) -> nn.Module:
        return BLOCKS.build(self.config.block, self.config, in_channels, out_channels, self.embed)

    def attention(self, channels: int) -> nn.Module:
        return ATTENTIONS.build(self.config.attention, self.config, channels)

    def mid(self, channels: int) -> Chain:
        """Block, attention, block at the lowest level."""
        middle = [self.attention(channels)] if self.config.attention_in_mid else []
        return Chain(self.block(channels, channels), *middle, self.block(channels, channels))


class UNet(nn.Module):
    """A network that guesses the noise (or whatever the prediction says) in x_t from x_t and t.

    Args:
        config: a UNetConfig; or give its fields as keywords, `UNet(base_channels=64)`.

    `net(x, t, class_labels=None, cond=None)`: x (B, C, *S) of any size >= 1; t a scalar or (B,), float or integer;
    class_labels (B,) integers; cond (B, cond_channels, *S). Gives a plain tensor (B, C_out, *S).
    """

    def __init__(self, config: UNetConfig | None = None, **fields: Any) -> None:
        super().__init__()
        config = config.model_copy() if config and not fields else UNetConfig(**(dict(config or {}) | fields))
        self.config, widths, depths = config, config.widths, config.depths
        self.conditioning = Conditioning(config)
        build = Builder(config, self.conditioning.out_channels)
        self.stem = conv(config.dims, config.in_channels + config.cond_channels, config.base_channels)
        width, skips, last = config.base_channels, [config.base_channels], len(widths) - 1
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, (out, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks: list[nn.Module] = [build.body(level, i, out) for i in (width, *[out] * (depth - 1))]
            self.down.append(Level(blocks, DOWNS.build(config.down, config, out) if level < last else None))
            width = out
            skips += [out] * (depth + (level < last))
        self.mid = build.mid(width)
        for level in range(last, -1, -1):
            blocks = []
            for _ in range(depths[level] + 1):
                join = SKIPS.build(config.skip, width, skips.pop())
                width = widths[level]
                blocks.append(UpStep(join, build.body(level, join.out_channels, width)))
            self.up.append(Level(blocks, UPS.build(config.up, config, width) if level else None))
        self.norm = GroupNorm(config.block.groups, width, config.block.eps)
        self.head = conv(config.dims, width, config.out_channels)
        if config.block.zero_init:
            zero(self.head)

    @property
    def null_label(self) -> int | None:
        """The class label that means 'no class', or None where the network has none."""
        return self.conditioning.null_label

    def forward(
        self, x: Tensor, t: Tensor | float = 0, class_labels: Tensor | None = None, cond: Tensor | None = None
    ) -> Tensor:
        """Guess from x (B, C, *S) at time t; see the class for the shapes.

        Raises:
            ValueError: cond is missing, unexpected, or class labels are.
        """
        if (cond is None) != (self.config.cond_channels == 0):
            raise ValueError(f"the network takes cond of {self.config.cond_channels} channels")
        t = torch.as_tensor(t, device=x.device).expand(x.shape[0])
        embedding = self.conditioning(t, class_labels)
        x = self.stem(x if cond is None else torch.cat([x, cond], dim=1))
        skips = [x]
        for level, stage in enumerate(cast(Iterable[Level], self.down)):
            for block in stage.blocks:
                skips.append(x := self._run(level, block, x, embedding))
            if stage.resample is not None:
                skips.append(x := stage.resample(x))
        x = self._run(len(self.down) - 1, self.mid, x, embedding)
        for level, stage in zip(range(len(self.up) - 1, -1, -1), cast(Iterable[Level], self.up), strict=True):
            for block in stage.blocks:
                skip = skips.pop()
                x = self._run(level, block, crop_like(x, skip), skip, embedding)
            if stage.resample is not None:
                x = stage.resample(x)
        return self.head(F.silu(self.norm(x)))

    def _run(self, level: int, block: nn.Module, *inputs: Tensor) -> Tensor:
        if level in self.config.checkpoint_levels and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> UNet:
        """Make the network of a preset, with some fields of its config changed.

        Raises:
            ConfigError: unknown preset, or one of another family.
        """
        return cls(UNetConfig(**(dict(preset(name, UNetConfig)) | changes)))
