"""What training minimises: weight(t) |guess - target|^2, averaged over a sample's values."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffunet import spec
from diffunet.denoiser import Denoiser
from diffunet.table import Table


class Simple:
    """1 (DDPM's L_simple)."""

    def __init__(self, config: spec.SimpleWeight) -> None:
        pass

    def __call__(self, x0_weight: Tensor, snr: Tensor) -> Tensor:
        return snr.new_ones(snr.shape)


class MinSNR:
    """min(SNR, gamma) on the error of x0: min(S, g) / S on eps, min(S, g) / (S + 1) on v (2303.09556)."""

    def __init__(self, config: spec.MinSNRWeight) -> None:
        self.gamma = config.gamma

    def __call__(self, x0_weight: Tensor, snr: Tensor) -> Tensor:
        return snr.clamp(max=self.gamma) * x0_weight


class Objective:
    """Per-sample loss of a denoiser.

    Args:
        weight: name or spec of the weight over times: simple, min_snr.
        options: fields of that weight's spec, as keywords.

    `objective(den, x0, eps, t, **cond)`: x0, eps (B, C, *S), t (B,) in (0, 1]; gives losses (B,) in float32.
    """

    def __init__(self, weight: Any = "simple", **options: Any) -> None:
        self.weight = WEIGHTS.build(spec.weight_config({"kind": weight, **options} if options else weight))

    def times(self, den: Denoiser, u: Tensor) -> Tensor:
        """Times (B,) in float64 for uniform draws u (B,) in [0, 1)."""
        return den.schedule.training_time(u)

    def __call__(self, den: Denoiser, x0: Tensor, eps: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Weighted mean squared error of each sample, (B,)."""
        t, alpha, sigma = den.levels(t, x0)
        guess = den.guess(alpha * x0 + sigma * eps, t, **cond).float()
        error = (guess - den.rule.target(x0, eps, alpha, sigma).float()) ** 2
        alpha, sigma = den.schedule.alpha_sigma(t)
        weight = self.weight(den.rule.x0_weight(alpha, sigma), (alpha / sigma) ** 2)
        return weight.to(error) * error.flatten(1).mean(dim=1)


WEIGHTS: Table[Any] = Table("weight", {"simple": Simple, "min_snr": MinSNR})
