"""Guidance by something beside the network: a weaker denoiser, or a classifier of noisy images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffunet.denoiser import per_sample
from diffunet.errors import ConfigError
from diffunet.guidance.base import Estimates, Guidance, Time, estimate


class Autoguidance(Guidance):
    """D_0 + w (D_1 - D_0), where D_0 is a weaker version of the denoiser D_1 (2406.02507).

    Both are given the same conditions. Either may be guided itself.

    Args:
        denoiser: D_1.
        guide: D_0, on the same schedule: trained less, smaller, or an earlier or shorter average of D_1's weights.
        scale: w; 1 is D_1 alone.

    Raises:
        ConfigError: the two denoisers have other schedules, or images of other shapes.
    """

    def __init__(self, denoiser: Any, guide: Any, scale: float) -> None:
        super().__init__(denoiser)
        self.guide, self.scale = guide, scale
        if guide.schedule != denoiser.schedule:
            raise ConfigError(f"the guide has {guide.schedule}, the denoiser {denoiser.schedule}: take one of the same")
        shapes = [getattr(getattr(den, "data", None), "shape", None) for den in (denoiser, guide)]
        if None not in shapes and shapes[0] != shapes[1]:
            raise ConfigError(f"the guide makes images of shape {shapes[1]}, the denoiser {shapes[0]}")

    def acts(self, t: Time) -> bool:
        return self.scale != 1

    def estimates(self, x_t: Tensor, t: Time, **cond: Any) -> Estimates:
        x0_1, x0_0 = estimate(self.denoiser, x_t, t, **cond), estimate(self.guide, x_t, t, **cond)
        return Estimates(x0_0 + self.scale * (x0_1 - x0_0), x0_1, x0_0)


class ClassifierGuidance(Guidance):
    """D + s sigma_t^2 / alpha_t grad log p(y | x_t), which is eps - s sigma_t grad log p in x_0 (2105.05233, alg 2).

    s = 0 leaves the denoiser as it is, and s = 1 is Bayes' rule where the denoiser is unconditional. At alpha_t = 0 x_t
    is noise alone, of which no classifier can tell anything, and nothing is added.

    Args:
        denoiser: D; conditional or not, guided or not.
        log_prob: called as log_prob(x_t, t, **cond) with x_t (B, C, *S), t a float or (B,) and the conditions of the
            batch (`class_labels` (B,) for example), gives log p(y | x_t) (B,), differentiable in x_t. Of a network that
            gives logits it is `logits.log_softmax(1).gather(1, class_labels[:, None])[:, 0]`.
        scale: s.
        private: names of the conditions that the denoiser is not given, because it takes none.
    """

    def __init__(
        self, denoiser: Any, log_prob: Callable[..., Tensor], scale: float = 1.0, private: Sequence[str] = ()
    ) -> None:
        super().__init__(denoiser)
        self.log_prob, self.scale, self.private = log_prob, scale, frozenset(private)

    def acts(self, t: Time) -> bool:
        return self.scale != 0

    def plain(self, x_t: Tensor, t: Time, **cond: Any) -> Tensor:
        told = {name: value for name, value in cond.items() if name not in self.private}
        return estimate(self.denoiser, x_t, t, **told)

    def estimates(self, x_t: Tensor, t: Time, **cond: Any) -> Estimates:
        x0 = self.plain(x_t, t, **cond)
        alpha, sigma = self.schedule.alpha_sigma(torch.as_tensor(t, dtype=torch.float64))
        size = torch.where(alpha > 0, sigma**2 / alpha, torch.zeros_like(alpha))
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(x, t, **cond).sum(), x)
        return Estimates(x0 + self.scale * per_sample(size, x0) * gradient, x0, x0)
