"""UNet: the noise-prediction U-Net in the DDPM topology (2006.11239), for signals, images and volumes.

stem; then for every level its blocks, each followed by attention where the level has it, and a down operator; mid;
then the levels upwards, with one block more where a stem or operator has left a skip too. A skip is taken after the
stem, after every block and after every down operator, and joins before each block of the way up: the layout that the
weights of DDPM, improved DDPM, ADM, EDM, EDM2 and diffusers share.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffunet.nn.attention import ATTENTIONS
from diffunet.nn.blocks import BLOCKS
from diffunet.nn.conditioning import Conditioning, Uncertainty
from diffunet.nn.ends import ENDS
from diffunet.nn.layers import Chain, Timed, crop_like, tell
from diffunet.nn.pyramids import INPUT_PYRAMIDS, OUTPUT_PYRAMIDS, SkipOutput
from diffunet.nn.resample import DOWNS, UPS
from diffunet.nn.site import Site
from diffunet.nn.skips import SKIPS
from diffunet.spec import UNetConfig
from diffunet.zoo import preset


class UpStep(Timed):
    """Join one skip, then transform."""

    def __init__(self, skip: nn.Module, body: Chain) -> None:
        super().__init__()
        self.skip, self.body = skip, body

    def forward(self, x: Tensor, skip: Tensor, embedding: Tensor | None) -> Tensor:
        """Join x (B, C, *S) with skip (B, C', *S), told by embedding (B, E)."""
        return self.body(self.skip(x, skip), embedding)


class Level(nn.Module):
    """The blocks of one level, the operator that leaves it (None: the size stays), and its share of a pyramid."""

    def __init__(self, blocks: list[nn.Module], resample: nn.Module | None, pyramid: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks, self.resample, self.pyramid = nn.ModuleList(blocks), resample, pyramid


class Builder:
    """Makes the parts of one config; shared by the way down, mid and the way up."""

    def __init__(self, config: UNetConfig) -> None:
        self.config = config
        self.site = Site(config.dims, config.block, config.embed_channels, config.padding)

    def body(self, site: Site, in_channels: int, out_channels: int, attends: bool) -> Chain:
        """A block, with attention behind it."""
        parts = [BLOCKS.build(self.config.block, site, in_channels, out_channels)]
        if attends:
            parts.append(ATTENTIONS.build(self.config.attention_at(site.level), site, out_channels))
        return Chain(*parts)

    def down(self, level: int, in_channels: int, aux_channels: int) -> Level:
        """One level of the way down."""
        config, site, out = self.config, self.site.at(level=level), self.config.widths[level]
        attends, last = level in config.attention_levels, level == len(config.widths) - 1
        ins = [in_channels] + [out] * (config.depths[level] - 1)
        resample = None if last else DOWNS.build(config.down_at(level), site, out)
        pyramid = None
        if config.input_pyramid and not last:
            pyramid = INPUT_PYRAMIDS.build(config.input_pyramid, site, aux_channels, out)
        return Level([self.body(site, i, out, attends) for i in ins], resample, pyramid)

    def mid(self, width: int) -> Chain:
        """Block, attention, block."""
        config, site = self.config, self.site.at(level=len(self.config.widths) - 1, encoder=False)
        parts = [BLOCKS.build(config.block, site, width, width), BLOCKS.build(config.block, site, width, width)]
        if config.attention_in_mid:
            plain = site.at(plain=not config.mid_attention_norm)
            parts.insert(1, ATTENTIONS.build(config.attention_at(site.level), plain, width))
        return Chain(*parts)

    def up(self, level: int, in_channels: int, skips: list[int]) -> Level:
        """One level of the way up; takes the channels of its skips from the end of `skips`."""
        config, site, out = self.config, self.site.at(level=level, encoder=False), self.config.widths[level]
        blocks: list[nn.Module] = []
        # one block more where an operator, or at the top the stem, has left a skip too
        arrives = level == 0 or config.down_at(level - 1).kind != "none"
        width, depth = in_channels, config.depths[level] + arrives
        for block in range(depth):
            attends = level in config.attention_levels and (config.attention_up == "every" or block == depth - 1)
            join = SKIPS.build(config.skip, site, width, skips.pop())
            blocks.append(UpStep(join, self.body(site, join.out_channels, out, attends)))
            width = out
        resample = UPS.build(config.up_at(level - 1), site, out, out) if level else None
        pyramid = None
        if config.output_pyramid and level:
            pyramid = OUTPUT_PYRAMIDS.build(config.output_pyramid, site, out, config.head_channels)
        return Level(blocks, resample, pyramid)


class UNet(nn.Module):
    """A network that guesses the noise (or another target) in x_t, told t.

    Args:
        config: a UNetConfig; or give its fields as keywords, `UNet(base_channels=64)`.

    `net(x, t, class_labels=None, cond=None, vector=None, previous=None)`: x (B, C, *S) of any size >= 1; t a scalar or
    (B,), float or integer, which only a network without time may do without; class_labels (B,) integers;
    cond (B, cond_channels, *S); vector (B, vector_channels), zeros if left out; previous (B, C, *S), the last estimate
    of a self-conditioning network, zeros if left out. Gives a plain tensor (B, C_out, *S); twice the channels with a
    learned variance, which stands behind.
    """

    def __init__(self, config: UNetConfig | None = None, **fields: Any) -> None:
        super().__init__()
        config = config.model_copy() if config and not fields else UNetConfig(**(dict(config or {}) | fields))
        self.config, build = config, Builder(config)
        self.conditioning = Conditioning(config)
        ends, image = ENDS[config.block.ends], config.in_channels * (1 + config.self_conditioning)
        image += config.cond_channels
        self.stem = ends.stem(build.site, image, config.stem_width)
        width, skips = config.stem_width, [config.stem_width]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, depth in enumerate(config.depths):
            self.down.append(stage := build.down(level, width, image))
            width = config.widths[level]
            skips += [width] * (depth + (stage.resample is not None))
            image = getattr(stage.pyramid, "out_channels", image)
        self.mid = build.mid(width)
        for level in reversed(range(len(config.depths))):
            self.up.append(build.up(level, width, skips))
            width = config.widths[level]
        self.norm, self.act, self.head = ends.head(build.site, width, config.head_channels)
        self.uncertainty = Uncertainty(config.uncertainty_channels) if config.uncertainty_channels else None

    def forward(
        self,
        x: Tensor,
        t: Tensor | float | None = None,
        class_labels: Tensor | None = None,
        cond: Tensor | None = None,
        vector: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        """Guess from x (B, C, *S) at time t; see the class for the shapes.

        Raises:
            ValueError: t, cond or class labels are missing, or something that the network does not take was given.
        """
        times, embedding = self._told(x, t, class_labels, vector)
        aux = self._image(x, cond, previous)
        x = self.stem(aux)
        skips = [x]
        for level, stage in enumerate(cast(Iterable[Level], self.down)):
            for block in stage.blocks:
                skips.append(x := self._run(level, block, x, embedding))
            if stage.resample is not None:
                x = tell(stage.resample, x, embedding)
                if stage.pyramid is not None:
                    x, aux = stage.pyramid(x, aux)
                skips.append(x)
        x = self._run(len(self.down) - 1, self.mid, x, embedding)
        out = None
        for level, stage in zip(range(len(self.up) - 1, -1, -1), cast(Iterable[Level], self.up), strict=True):
            for block in stage.blocks:
                skip = skips.pop()
                x = self._run(level, block, crop_like(x, skip), skip, embedding)
            if stage.pyramid is not None:
                out = stage.pyramid(x, out)
            if stage.resample is not None:
                x = tell(stage.resample, x, embedding)
        y = self.head(self.act(self.norm(x)))
        if out is not None:
            y = y + cast(SkipOutput, cast(Level, self.up[-2]).pyramid).lift(out, y)
        return y / times.view(-1, *[1] * (y.ndim - 1)).to(y.dtype) if self.config.divide_by_time else y

    def log_variance(self, t: Tensor | float) -> Tensor:
        """u (B,) at times t, a scalar or (B,): the learned log variance of the loss (EDM2, 2312.02696, eq. 16).

        Raises:
            ValueError: the network has none.
        """
        if self.uncertainty is None:
            raise ValueError("the network has no learned log variance (uncertainty_channels is 0)")
        return self.uncertainty(torch.as_tensor(t, device=next(self.parameters()).device).reshape(-1))

    @property
    def null_label(self) -> int | None:
        """The class label that means 'no class', or None where the network has none."""
        return self.conditioning.null_label

    def _told(
        self, x: Tensor, t: Tensor | float | None, class_labels: Tensor | None, vector: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Times (B,) and what the blocks are told, (B, E) or None."""
        if t is None and self.config.time.kind != "none":
            raise ValueError("t is needed: only a network with time = 'none' does without")
        times = torch.as_tensor(0 if t is None else t, device=x.device).expand(x.shape[0])
        embedding = self.conditioning(times, class_labels, vector)
        return times, embedding if self.config.embed_channels else None

    def _image(self, x: Tensor, cond: Tensor | None, previous: Tensor | None) -> Tensor:
        """x beside the images that the network is told."""
        if (cond is None) != (self.config.cond_channels == 0):
            raise ValueError(f"the network takes cond of {self.config.cond_channels} channels")
        if previous is not None and not self.config.self_conditioning:
            raise ValueError("previous was given but the network does not take it (self_conditioning is false)")
        if self.config.self_conditioning:
            x = torch.cat([x, torch.zeros_like(x) if previous is None else previous], dim=1)
        return x if cond is None else torch.cat([x, cond], dim=1)

    def _run(self, level: int, block: nn.Module, *inputs: Tensor | None) -> Tensor:
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
