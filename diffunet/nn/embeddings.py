"""What the network is told beside the image: the time and the class, as one vector (B, E).

Projects disagree on the sinusoids, and a wrong choice breaks converted weights silently: DDPM writes sines first with
frequencies 10000^(-i/(half-1)); ADM writes cosines first with 10000^(-i/half). Ours are DDPM's unless told otherwise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.spec import SinusoidalTime, UNetConfig
from diffunet.table import Table


class Sinusoidal(nn.Module):
    """sin and cos of t at geometric frequencies, then Linear, SiLU, Linear (DDPM, 2006.11239, appendix B).

    Args:
        config: order and shift of the sinusoids, width of the embedding.
        channels: number of sinusoids C (an odd last one is zero); the embedding has `config.width * channels`.
    """

    def __init__(self, config: SinusoidalTime, channels: int) -> None:
        super().__init__()
        self.channels, self.shift = channels, config.shift
        self.out_channels = config.width * channels
        self.cosine_first = config.order == "cos_sin"
        self.mlp_in = nn.Linear(channels, self.out_channels)
        self.mlp_out = nn.Linear(self.out_channels, self.out_channels)

    def forward(self, t: Tensor) -> Tensor:
        """Embed times t (B,), float or integer, as (B, E)."""
        half = self.channels // 2
        # made here: a buffer would be rounded with the weights by `net.bfloat16()`, and lost on the meta device
        exponent = torch.arange(half, dtype=torch.float32, device=t.device) / max(half - self.shift, 1)
        angles = t.float()[:, None] * torch.exp(-math.log(10_000) * exponent)
        waves = [angles.cos(), angles.sin()] if self.cosine_first else [angles.sin(), angles.cos()]
        features = F.pad(torch.cat(waves, dim=1), (0, self.channels % 2))
        return self.mlp_out(F.silu(self.mlp_in(features.to(self.mlp_in.weight.dtype))))


class Conditioning(nn.Module):
    """Time plus class: the vector that every `Timed` part receives.

    A class table has `num_classes` rows, one more where the config has a null class; `null_label` is that row.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.time = TIMES.build(config.time, config.base_channels)
        self.out_channels: int = self.time.out_channels
        self.num_classes = config.num_classes
        self.null_label = config.num_classes if config.null_class else None
        rows = (config.num_classes or 0) + config.null_class
        self.classes = nn.Embedding(rows, self.out_channels) if rows else None

    def forward(self, t: Tensor, class_labels: Tensor | None) -> Tensor:
        """Embed t (B,) and labels (B,) of integers as (B, E); no labels means the null class.

        Raises:
            ValueError: labels for a network without classes, or none for one that has classes and no null class.
        """
        embedding = self.time(t)
        if self.classes is None:
            if class_labels is not None:
                raise ValueError("class_labels were given but the network has no classes (num_classes is unset)")
            return embedding
        if class_labels is None:
            if self.null_label is None:
                raise ValueError("class_labels are needed: the network has classes and no null class")
            class_labels = torch.full_like(t, self.null_label, dtype=torch.long)
        return embedding + self.classes(class_labels)


TIMES: Table[type[nn.Module]] = Table("time embedding", {"sinusoidal": Sinusoidal})
