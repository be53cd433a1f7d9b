"""The waist of the house: network + schedule + prediction become "noisy in, clean estimate out".

Samplers, guidance and restorers speak only to this: a callable with `.schedule`, `den(x_t, t, **cond) -> x0`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffunet.errors import ConfigError
from diffunet.predictions import PREDICTIONS
from diffunet.schedules import Schedule
from diffunet.spec import DataInfo
from diffunet.spec.process import mismatch


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """Shape value (B,) or () so that it multiplies like (B, C, *S), in `like`'s dtype and on its device."""
    return value.to(like).reshape(-1, *[1] * (like.ndim - 1))


class Denoiser(nn.Module):
    """Estimates x_0 = E[x_0 | x_t].

    Args:
        network: called as network(x, time, **cond); its time input is the schedule's `network_time`.
        schedule: alpha(t), sigma(t).
        prediction: what the network guesses: eps, x0, v, flow or edm.
        clip: (low, high), a static threshold of the estimate; samplers recompute eps from the clipped estimate.
        data: shape, classes and class counts of the data, where known: what `generate(den, n)` needs.

    Raises:
        ConfigError: unknown prediction, or one that the schedule cannot have.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction: str = "eps",
        clip: tuple[float, float] | None = None,
        data: DataInfo | None = None,
    ) -> None:
        super().__init__()
        self.network, self.schedule, self.prediction = network, schedule, prediction
        self.rule = PREDICTIONS[prediction]()
        if problems := mismatch(schedule.config.kind, prediction):
            raise ConfigError("; ".join(problems))
        self.clip, self.data = clip, data

    @property
    def null_label(self) -> int | None:
        """The class label that means 'no class', or None."""
        return getattr(self.network, "null_label", None)

    @property
    def learned_variance(self) -> bool:
        """Does the network give a variance behind its guess?"""
        return getattr(getattr(self.network, "config", None), "learned_variance", False)

    @property
    def num_classes(self) -> int | None:
        """Classes of the network, or None."""
        return getattr(getattr(self.network, "config", None), "num_classes", None)

    def levels(self, t: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """t (B,) in float64, and alpha, sigma shaped to multiply `like` (B, C, *S)."""
        exact = torch.device("cpu") if like.device.type == "mps" else like.device  # Apple's GPUs have no float64
        t = torch.as_tensor(t, device=exact).to(torch.float64).expand(like.shape[0])
        alpha, sigma = self.schedule.alpha_sigma(t)
        return t, per_sample(alpha, like), per_sample(sigma, like)

    def guess(self, x_t: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """What the network says of x_t (B, C, *S) at times t in (0, 1], a scalar or (B,)."""
        t, alpha, sigma = self.levels(t, x_t)
        weight = next(self.network.parameters(), x_t)
        guess = self.network(
            self.rule.input(x_t, alpha, sigma).to(weight.dtype), self.schedule.network_time(t).to(x_t.device), **cond
        )
        # a learned variance stands behind the guess; samplers of a fixed variance leave it aside
        return guess[:, : x_t.shape[1]] if self.learned_variance else guess

    def estimate(self, x_t: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """x_0 without the threshold."""
        guess = self.guess(x_t, t, **cond).to(x_t.dtype)
        _, alpha, sigma = self.levels(t, x_t)
        return self.rule.x0(x_t, guess, alpha, sigma)

    def forward(self, x_t: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """x_0 estimated from x_t (B, C, *S) at times t in (0, 1], a scalar or (B,)."""
        return threshold(self.estimate(x_t, t, **cond), self.clip)


def threshold(x0: Tensor, clip: tuple[float, float] | None) -> Tensor:
    """Clamp x0 to `clip`, or leave it."""
    return x0 if clip is None else x0.clamp(*clip)
