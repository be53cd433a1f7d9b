"""How much an error weighs at a time: published weights, each turned into one on the squared error of the guess.

Each part is called with x0_weight (how much larger an error of x_0 is than one of the guess) and snr, S = alpha^2 /
sigma^2, both (B,) in float64, and gives (B,). A weight w on the error of x_0 is w x0_weight on that of the guess; one
on the error of eps is w S x0_weight, since |x_0 error|^2 = |eps error|^2 / S.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffunet.spec import objectives as spec
from diffunet.table import Table


class Weight:
    """Base of every weight; `config` is its spec."""

    def __call__(self, x0_weight: Tensor, snr: Tensor) -> Tensor:
        """Weights (B,) of the squared error of the guess."""
        raise AssertionError(f"{type(self).__name__} must say its weight")


class Simple(Weight):
    """1 on the guess (DDPM's L_simple, 2006.11239, eq. 14)."""

    def __init__(self, config: spec.SimpleWeight) -> None:
        pass

    def __call__(self, x0_weight: Tensor, snr: Tensor) -> Tensor:
        return torch.ones_like(snr)


class MinSNR(Weight):
    """min(S, gamma) on x_0: min(S, g) / S on eps, min(S, g) / (S + 1) on v (2303.09556).

    Where no signal is left, S = 0, the weight is 1 as in the authors' code.
    """

    def __init__(self, config: spec.MinSNRWeight) -> None:
        self.gamma = config.gamma

    def __call__(self, x0_weight: Tensor, snr: Tensor) -> Tensor:
        return torch.where(snr == 0, 1.0, snr.clamp(max=self.gamma) * x0_weight)


class SoftMinSNR(Weight):
    """S gamma / (S + gamma) on x_0, that is 1 / (r^2 + 1 / gamma) (2401.11605)."""

    def __init__(self, config: spec.SoftMinSNRWeight) -> None:
        self.gamma = config.gamma

    def __call__(self, x0_weight: Tensor, snr: Tensor) -> Tensor:
        return snr * self.gamma / (snr + self.gamma) * x0_weight


class P2(Weight):
    """1 / (k + S)^gamma on eps (2204.00227, eq. 8)."""

    def __init__(self, config: spec.P2Weight) -> None:
        self.k, self.gamma = config.k, config.gamma

    def __call__(self, x0_weight: Tensor, snr: Tensor) -> Tensor:
        return snr / (self.k + snr) ** self.gamma * x0_weight


class EDM(Weight):
    """lambda = (r^2 + sd^2) / (r sd)^2 = S + 1 / sd^2 on x_0; lambda c_out^2 = 1 (2206.00364, table 1)."""

    def __init__(self, config: spec.EDMWeight) -> None:
        self.sigma_data = config.sigma_data

    def __call__(self, x0_weight: Tensor, snr: Tensor) -> Tensor:
        return (snr + 1 / self.sigma_data**2) * x0_weight


class Sigmoid(Weight):
    """sigmoid(bias - log S) on eps (VDM++, 2303.00848); the paper's L_w where times are uniform in log S."""

    def __init__(self, config: spec.SigmoidWeight) -> None:
        self.bias = config.bias

    def __call__(self, x0_weight: Tensor, snr: Tensor) -> Tensor:
        return torch.sigmoid(self.bias - snr.log()) * snr * x0_weight


class TruncatedSNR(Weight):
    """max(S, 1) on x_0 (2202.00512, section 4)."""

    def __init__(self, config: spec.TruncatedSNRWeight) -> None:
        pass

    def __call__(self, x0_weight: Tensor, snr: Tensor) -> Tensor:
        return snr.clamp(min=1) * x0_weight


WEIGHTS: Table[type[Weight]] = Table(
    "weight",
    {
        "simple": Simple,
        "min_snr": MinSNR,
        "soft_min_snr": SoftMinSNR,
        "p2": P2,
        "edm": EDM,
        "sigmoid": Sigmoid,
        "truncated_snr": TruncatedSNR,
    },
)
