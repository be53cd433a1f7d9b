"""The waist of the house: network + schedule + prediction become "noisy in, clean estimate out".

Samplers, guidance and restorers speak only to this: a callable with `.schedule`, `den(x_t, t, **cond) -> x0`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffunet.errors import ConfigError
from diffunet.predictions import PREDICTIONS, Size
from diffunet.schedules import Schedule
from diffunet.spec import DataInfo, DynamicClip, clip_config
from diffunet.spec.process import mismatch

Clip = tuple[float, float] | DynamicClip | None


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """Shape value (B,) or () so that it multiplies like (B, C, *S), in `like`'s dtype and on its device."""
    return value.to(like).reshape(-1, *[1] * (like.ndim - 1))


def percentile(x: Tensor, share: float) -> Tensor:
    """The value below which a share of each sample's values lies, (B,): linear between neighbours, as NumPy's."""
    flat = x.flatten(1)
    place = share * (flat.shape[1] - 1)
    low = math.floor(place)
    # only what lies above is sorted, which of an image is a few hundred values
    top = flat.topk(flat.shape[1] - low).values
    above = top[:, max(0, top.shape[1] - 2)]
    return torch.lerp(top[:, -1], above, place - low)


def dynamic_threshold(x0: Tensor, config: DynamicClip) -> Tensor:
    """x0 (B, C, *S) cut at s and divided by it, s = max(1, percentile of a sample's |x0|) (2205.11487, sec. 2.3)."""
    s = percentile(x0.abs().float(), config.percentile).clamp(min=1, max=config.limit)
    s = per_sample(s, x0)
    return x0.clamp(-s, s) / s


def unchanged(x0: Tensor) -> Tensor:
    """No threshold."""
    return x0


def threshold_of(clip: Clip) -> Callable[[Tensor], Tensor]:
    """The function x0 -> x0 that a threshold stands for; None leaves x0 as it is."""
    if clip is None:
        return unchanged
    if isinstance(clip, DynamicClip):
        return partial(dynamic_threshold, config=clip)
    return partial(torch.clamp, min=clip[0], max=clip[1])


class Traits(NamedTuple):
    """What is known of a network, under wrappers of parallel training."""

    network: nn.Module
    inner: nn.Module
    null_label: int | None
    num_classes: int | None
    learned_variance: bool
    self_conditioning: bool
    first: tuple[dict[str, Any], str] | None  # where its first parameter lives, which may be cast or replaced

    @classmethod
    def of(cls, network: nn.Module) -> Traits:
        """Those of a network; one that has no config is told nothing and guesses no variance."""
        inner = getattr(network, "module", network)
        inner = inner if isinstance(inner, nn.Module) else network
        config = getattr(inner, "config", None)
        classes, variance = getattr(config, "num_classes", None), getattr(config, "learned_variance", False)
        recalls = getattr(config, "self_conditioning", False)
        homes = ((m._parameters, name) for m in inner.modules() for name, p in m._parameters.items() if p is not None)
        return cls(network, inner, getattr(inner, "null_label", None), classes, variance, recalls, next(homes, None))

    @property
    def dtype(self) -> torch.dtype | None:
        """Kind of number of its weights, or None where it has none."""
        if self.first is None:
            return None
        parameters, name = self.first
        dtype: torch.dtype = parameters[name].dtype
        return dtype


class Denoiser(nn.Module):
    """Estimates x_0 = E[x_0 | x_t].

    Args:
        network: called as network(x, time, **cond); its time input is the schedule's `network_time`.
        schedule: alpha(t), sigma(t).
        prediction: what the network guesses: eps, x0, v, flow or edm.
        clip: threshold of the estimate: (low, high), "dynamic" or a DynamicClip, None. Samplers recompute eps from
            the clipped estimate.
        data: shape, classes and class counts of the data, where known: what `generate(den, n)` needs.

    Times t lie in (0, 1]: a float for all samples, which is the fast way, or a tensor () or (B,).

    Raises:
        ConfigError: unknown prediction or threshold, or a prediction that the schedule cannot have.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction: str = "eps",
        clip: Any = None,
        data: DataInfo | None = None,
    ) -> None:
        super().__init__()
        self.network, self.schedule, self.prediction = network, schedule, prediction
        self.rule = PREDICTIONS[prediction]()
        if problems := mismatch(schedule.config, prediction):
            raise ConfigError("; ".join(problems))
        self.clip: Clip = clip_config(clip)
        self.threshold, self.data = threshold_of(self.clip), data

    @property
    def traits(self) -> Traits:
        """What is known of the network."""
        known: Traits | None = self.__dict__.get("_traits")
        if known is None or known.network is not self._modules["network"]:
            known = self.__dict__["_traits"] = Traits.of(self.network)
        return known

    @property
    def null_label(self) -> int | None:
        """The class label that means 'no class', or None."""
        return self.traits.null_label

    @property
    def learned_variance(self) -> bool:
        """Does the network give a variance behind its guess?"""
        return self.traits.learned_variance

    @property
    def self_conditioning(self) -> bool:
        """Does the network take its last estimate as `previous`?"""
        return self.traits.self_conditioning

    @property
    def num_classes(self) -> int | None:
        """Classes of the network, or None."""
        return self.traits.num_classes

    def levels(self, t: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """t (B,) in float64, and alpha, sigma shaped to multiply `like` (B, C, *S)."""
        exact = torch.device("cpu") if like.device.type == "mps" else like.device  # Apple's GPUs have no float64
        t = torch.as_tensor(t, device=exact).to(torch.float64).expand(like.shape[0])
        alpha, sigma = self.schedule.alpha_sigma(t)
        return t, per_sample(alpha, like), per_sample(sigma, like)

    def network_time(self, t: Tensor | float, like: Tensor) -> Tensor:
        """What the network is told of t: (B,) in float32 on the device of `like`."""
        if isinstance(t, Tensor):
            return self.schedule.network_time(t).to(like.device).expand(like.shape[0])
        return like.new_full((like.shape[0],), self.schedule.network_time(t), dtype=torch.float32)

    def outputs(self, x_t: Tensor, t: Tensor | float, **cond: Any) -> tuple[Tensor, Tensor | None, Size, Size]:
        """What the network says of x_t (B, C, *S): its guess, its variance v or None; and alpha, sigma there.

        v is in the scale of improved DDPM, 0 for the posterior's variance and 1 for beta (2102.09672, eq. 15).
        """
        alpha: Size
        sigma: Size
        if isinstance(t, Tensor):
            t, alpha, sigma = self.levels(t, x_t)
        else:
            alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        traits = self.traits
        shown = self.rule.input(x_t, alpha, sigma).to(traits.dtype or x_t.dtype)
        output = traits.network(shown, self.network_time(t, x_t), **cond)
        if not traits.learned_variance:
            return output, None, alpha, sigma
        guess, variance = output.chunk(2, dim=1)
        return guess, (variance.to(x_t.dtype) + 1) / 2, alpha, sigma

    def guess(self, x_t: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """What the network says of x_t (B, C, *S) at t; a learned variance is left aside."""
        return self.outputs(x_t, t, **cond)[0]

    def estimate(self, x_t: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """x_0 without the threshold."""
        guess, _, alpha, sigma = self.outputs(x_t, t, **cond)
        return self.rule.x0(x_t, guess.to(x_t.dtype), alpha, sigma)

    def with_variance(self, x_t: Tensor, t: Tensor | float, **cond: Any) -> tuple[Tensor, Tensor]:
        """x_0 with the threshold, and the learned v (B, C, *S): log variance v log beta + (1 - v) log btilde.

        v = (output + 1) / 2 may leave [0, 1]; `Chain.log_variance` takes it (2102.09672, eq. 15).

        Raises:
            ConfigError: the network has no learned variance.
        """
        guess, v, alpha, sigma = self.outputs(x_t, t, **cond)
        if v is None:
            raise ConfigError("this network has no learned variance (model.learned_variance is false)")
        return self.threshold(self.rule.x0(x_t, guess.to(x_t.dtype), alpha, sigma)), v

    def forward(self, x_t: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """x_0 estimated from x_t (B, C, *S) at times t in (0, 1], a scalar or (B,)."""
        return self.threshold(self.estimate(x_t, t, **cond))
