"""The time as features and as a vector (B, E).

Projects disagree on the sinusoids, and a wrong choice breaks converted weights silently: DDPM writes sines first with
frequencies 10000^(-i/(half-1)); ADM writes cosines first with 10000^(-i/half). Ours are DDPM's unless told otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.nn.magnitude import MPConv
from diffunet.spec import FourierTime, LearnedTime, MagnitudeTime, NoTime, SinusoidalTime
from diffunet.table import Table


class TimeMLP(nn.Module):
    """Features of t, plus what else is told, then Linear, SiLU, Linear.

    Args:
        config: what the features are.
        channels: base channels C; there are `config.features * C` features.
        embed: embedding channels E.
    """

    def __init__(self, config: Any, channels: int, embed: int) -> None:
        super().__init__()
        self.channels, self.out_channels = config.features * channels, embed
        self.mlp_in = nn.Linear(self.channels, self.out_channels)
        self.mlp_out = nn.Linear(self.out_channels, self.out_channels)

    def features(self, t: Tensor) -> Tensor:
        """Features (B, features) of t (B,)."""
        raise AssertionError("each kind of time has its own features")

    def forward(self, t: Tensor, told: Tensor | None = None) -> Tensor:
        """Embed times t (B,), float or integer, and told (B, features) as (B, E)."""
        features = self.features(t).to(self.mlp_in.weight.dtype)
        return self.mlp_out(F.silu(self.mlp_in(features if told is None else features + told)))


class Sinusoidal(TimeMLP):
    """sin and cos of t at geometric frequencies (DDPM, 2006.11239, appendix B); an odd last feature is zero."""

    def __init__(self, config: SinusoidalTime, channels: int, embed: int) -> None:
        super().__init__(config, channels, embed)
        self.shift, self.cosine_first, self.scale = config.shift, config.order == "cos_sin", config.scale

    def features(self, t: Tensor) -> Tensor:
        """Sinusoids (B, features) of t (B,)."""
        half = self.channels // 2
        # made here: a buffer would be rounded with the weights by `net.bfloat16()`, and lost on the meta device
        exponent = torch.arange(half, dtype=torch.float32, device=t.device) / max(half - self.shift, 1)
        angles = self.scale * t.float()[:, None] * torch.exp(-math.log(10_000) * exponent)
        waves = [angles.cos(), angles.sin()] if self.cosine_first else [angles.sin(), angles.cos()]
        return F.pad(torch.cat(waves, dim=1), (0, self.channels % 2))


class InFull(nn.Module):
    """Keeps its own buffers in float32 when the network changes its type: they are frequencies, not weights."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InFull:
        full = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, changed in self.named_buffers(recurse=False):
            if changed.dtype != full[name].dtype:
                self._buffers[name] = full[name].to(changed.device)
        return self


class Fourier(TimeMLP, InFull):
    """sin and cos of 2 pi f t, or of log t, at random frequencies f (score SDE, 2011.13456; 2006.10739)."""

    def __init__(self, config: FourierTime, channels: int, embed: int) -> None:
        super().__init__(config, channels, embed)
        self.log, self.cosine_first = config.log, config.order == "cos_sin"
        frequencies = torch.randn(self.channels // 2) * config.scale
        if config.trained:
            self.frequencies: Tensor = nn.Parameter(frequencies)
        else:
            self.register_buffer("frequencies", frequencies)

    def features(self, t: Tensor) -> Tensor:
        """Sinusoids (B, features) of t (B,)."""
        t, frequencies = t.float()[:, None], self.frequencies.float()
        # score SDE multiplies by 2 pi last, EDM first: in float32 that moves an angle of thousands by more than 1e-4
        angles = t.log() * frequencies * (2 * math.pi) if self.log else t * (2 * math.pi * frequencies)
        waves = [angles.cos(), angles.sin()] if self.cosine_first else [angles.sin(), angles.cos()]
        return F.pad(torch.cat(waves, dim=1), (0, self.channels % 2))


class Learned(TimeMLP):
    """A trained row for each index; between two of them, the line."""

    def __init__(self, config: LearnedTime, channels: int, embed: int) -> None:
        super().__init__(config, channels, embed)
        self.table = nn.Embedding(config.steps, self.channels)

    def features(self, t: Tensor) -> Tensor:
        """Rows (B, features) at t (B,), which is held within the table."""
        t = t.float().clamp(0, self.table.num_embeddings - 1)
        below = t.floor().long()
        above = (below + 1).clamp(max=self.table.num_embeddings - 1)
        return torch.lerp(self.table(below), self.table(above), (t - below)[:, None].to(self.table.weight.dtype))


class MPFourier(InFull):
    """sqrt(2) cos(f t + phase): features of unit magnitude (EDM2, 2312.02696, eq. 75)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, t: Tensor) -> Tensor:
        """Features (B, channels) of t (B,) in float32."""
        frequencies, phases = self.get_buffer("frequencies").float(), self.get_buffer("phases").float()
        return (t.float()[:, None] * frequencies + phases).cos() * math.sqrt(2)


class Magnitude(nn.Module):
    """Unit-magnitude cosines, then a normalised linear map (EDM2)."""

    def __init__(self, config: MagnitudeTime, channels: int, embed: int) -> None:
        super().__init__()
        self.out_channels = embed
        self.fourier = MPFourier(config.features * channels)
        self.linear = MPConv(0, config.features * channels, self.out_channels, 0)

    def forward(self, t: Tensor, told: Tensor | None = None) -> Tensor:
        """Embed times t (B,) as (B, E)."""
        return self.linear(self.fourier(t).to(self.linear.weight.dtype))


class Timeless(nn.Module):
    """Zeros, to which a class may be added."""

    def __init__(self, config: NoTime, channels: int, embed: int) -> None:
        super().__init__()
        self.out_channels = embed

    def forward(self, t: Tensor, told: Tensor | None = None) -> Tensor:
        """Zeros (B, E)."""
        return t.new_zeros(t.shape[0], self.out_channels)


TIMES: Table[type[nn.Module]] = Table(
    "time embedding",
    {
        "sinusoidal": Sinusoidal,
        "fourier": Fourier,
        "learned": Learned,
        "magnitude_preserving": Magnitude,
        "none": Timeless,
    },
)
