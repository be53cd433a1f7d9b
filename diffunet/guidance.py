"""Guidance: a denoiser around a denoiser. Samplers never know.

Scale w is eps_u + w (eps_c - eps_u), so w = 1 is the conditional model and w = 0 the unconditional one (the paper and
azula write 1 + w for our w).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffunet.denoiser import threshold
from diffunet.errors import ConfigError


class ClassifierFree:
    """x0_u + w (x0_c - x0_u) in one call of twice the batch, then the denoiser's threshold (2207.12598, eq 6).

    At one x_t and t, x0 is affine in eps, so mixing either gives the same result.

    Args:
        denoiser: a Denoiser whose network has a null class.
        scale: w.
        interval: (low, high) times; guidance acts for low < t <= high, elsewhere w = 1 (2404.07724, there in sigma).

    Raises:
        ConfigError: the denoiser has no null class.
    """

    def __init__(self, denoiser: Any, scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> None:
        self.denoiser, self.scale, self.interval = denoiser, scale, interval
        self.schedule, self.data = denoiser.schedule, getattr(denoiser, "data", None)
        if getattr(denoiser, "null_label", None) is None:
            raise ConfigError("guidance needs a model trained with model.null_class = true and class dropout")

    def __call__(self, x_t: Tensor, t: float, *, class_labels: Tensor | None = None, **cond: Any) -> Tensor:
        """x0 estimated from x_t (B, C, *S) at t, guided towards class_labels (B,)."""
        low, high = self.interval
        if self.scale == 1 or class_labels is None or not low < t <= high:
            return self.denoiser(x_t, t, class_labels=class_labels, **cond)
        null = torch.full_like(class_labels, self.denoiser.null_label)
        twice = {name: torch.cat([value, value]) for name, value in cond.items()}
        labels = torch.cat([class_labels, null])
        x0_c, x0_u = self.denoiser.estimate(torch.cat([x_t, x_t]), t, class_labels=labels, **twice).chunk(2)
        return threshold(x0_u + self.scale * (x0_c - x0_u), self.denoiser.clip)
