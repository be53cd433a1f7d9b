"""What training minimises: weight(t) error(guess - target), and what a variance and an uncertainty add to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffunet import spec
from diffunet.denoiser import Denoiser
from diffunet.errors import ConfigError
from diffunet.objectives.errors import ERRORS
from diffunet.objectives.times import TIMES
from diffunet.objectives.variances import VARIANCES
from diffunet.objectives.weights import WEIGHTS


class Objective:
    """Per-sample loss of a denoiser.

    Args:
        weight: name or spec of the weight over times: simple, min_snr, ...
        times: name, dict or spec of the distribution of training times.
        error: name, dict or spec of the error of a guess: squared, huber, multi_scale.
        variance: name, dict or spec of what trains a learned variance: fixed (nothing), hybrid.
        uncertainty: divide the loss by exp(u) and add u, the network's own log variance at t (EDM2, 2312.02696).
        options: fields of the weight's spec, as keywords.

    `objective(den, x0, eps, t, **cond)`: x0, eps (B, C, *S), t (B,) in (0, 1]; gives losses (B,) in float32.

    Raises:
        ConfigError: an unknown name or option.
    """

    def __init__(
        self,
        weight: Any = "simple",
        times: Any = "schedule",
        error: Any = "squared",
        variance: Any = "fixed",
        uncertainty: bool = False,
        **options: Any,
    ) -> None:
        named = spec.weight_config({"kind": weight, **options} if options else weight)
        config = spec.objective_config(weight=named, times=times, error=error, variance=variance)
        self.weight, self.error = WEIGHTS.build(config.weight), ERRORS.build(config.error)
        self.distribution, self.variance = TIMES.build(config.times), VARIANCES.build(config.variance)
        self.uncertainty = uncertainty

    @classmethod
    def of(cls, config: spec.ObjectiveConfig) -> Objective:
        """The objective of a config's section."""
        return cls(config.weight, config.times, config.error, config.variance, config.uncertainty)

    def times(self, den: Denoiser, u: Tensor) -> Tensor:
        """Times (B,) in float64 for uniform draws u (B,) in [0, 1).

        Raises:
            ConfigError: the schedule cannot have such times.
        """
        times: Tensor = self.distribution(den.schedule, u)
        return times

    def held_out_times(self, den: Denoiser, u: Tensor) -> Tensor:
        """The same for a score that must not change with what training has seen."""
        times: Tensor = self.distribution.held_out(den.schedule, u)
        return times

    def correction(self, den: Denoiser, t: Tensor) -> Tensor:
        """What losses at t (B,) are multiplied by in a mean, so that how times are drawn does not bias it, (B,)."""
        factor: Tensor = self.distribution.correction(den.schedule, t)
        return factor

    def __call__(
        self, den: Denoiser, x0: Tensor, eps: Tensor, t: Tensor, *, shown: Tensor | None = None, **cond: Any
    ) -> Tensor:
        """Loss of each sample, (B,) in float32.

        Args:
            den: what is trained.
            x0, eps: clean images and the noise that is to be told, (B, C, *S).
            t: times (B,).
            shown: the noise that the network's input has; eps if left out.
            cond: what else the network is told.

        Raises:
            ConfigError: the network lacks the variance or the uncertainty that is to be trained.
        """
        t, alpha, sigma = den.levels(t, x0)
        x_t = alpha * x0 + sigma * (eps if shown is None else shown)
        guess, v, _, _ = den.outputs(x_t, t, **cond)
        difference = guess.float() - den.rule.target(x0, eps, alpha, sigma).float()
        alpha, sigma = den.schedule.alpha_sigma(t)
        weight: Tensor = self.weight(den.rule.x0_weight(alpha, sigma), (alpha / sigma) ** 2)
        loss: Tensor = weight.to(difference) * self.error(difference)
        if self.uncertainty:
            u = log_variance(den, t).float()
            loss = loss * torch.exp(-u) + u
        return loss + self.variance(den, x0, x_t, t, guess, v)


def log_variance(den: Denoiser, t: Tensor) -> Tensor:
    """u (B,) of the network at times t (B,) (EDM2, 2312.02696).

    Raises:
        ConfigError: the network has none.
    """
    network: Any = den.traits.inner
    if getattr(network, "uncertainty", None) is None:
        raise ConfigError("objective.uncertainty needs a network with model.uncertainty_channels > 0")
    u: Tensor = network.log_variance(den.network_time(t, t))
    return u


def first_estimate(den: Denoiser, x_t: Tensor, t: Tensor, chosen: Tensor, **cond: Any) -> Tensor:
    """What a self-conditioning network is shown as `previous` (2208.04202, algorithm 1), (B, C, *S).

    Its own estimate without one, as a constant, where `chosen` (B,) is true; zeros elsewhere. The estimate has the
    denoiser's threshold, as it has when one samples. All samples are asked about, so that every rank calls the network
    alike.
    """
    with torch.no_grad():
        estimate: Tensor = den(x_t, t, **cond)
    return estimate * chosen.to(estimate).reshape(-1, *[1] * (estimate.ndim - 1))
