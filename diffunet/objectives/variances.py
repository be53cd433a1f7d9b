"""What a learned variance is trained by."""

from __future__ import annotations

from torch import Tensor

from diffunet.denoiser import Denoiser
from diffunet.errors import ConfigError
from diffunet.objectives.times import index, steps_of
from diffunet.posterior import Chain
from diffunet.spec import objectives as spec
from diffunet.table import Table


class Variance:
    """Base of what is added to the loss for the variance; `config` is its spec."""

    def __call__(self, den: Denoiser, x0: Tensor, x_t: Tensor, t: Tensor, guess: Tensor, v: Tensor | None) -> Tensor:
        """What is added to each sample's loss, (B,) or a number for all.

        Args:
            den: says schedule and prediction.
            x0, x_t: clean and noisy images (B, C, *S).
            t: times (B,) in float64.
            guess: what the network guessed.
            v: its variance (see `Denoiser.with_variance`), or None.
        """
        raise AssertionError(f"{type(self).__name__} must say its loss")


class Fixed(Variance):
    """Nothing: the network guesses no variance."""

    def __init__(self, config: spec.FixedVariance) -> None:
        pass

    def __call__(self, den: Denoiser, x0: Tensor, x_t: Tensor, t: Tensor, guess: Tensor, v: Tensor | None) -> Tensor:
        return x0.new_zeros((), dtype=guess.dtype)


class Hybrid(Variance):
    """weight L_vlb, where only the variance is free: the guess is held fixed (2102.09672, eq. 15-16).

    L_vlb is the sum of T terms in bits per dimension, of which each sample estimates one, so T times that one; the
    authors' code does the same.
    """

    def __init__(self, config: spec.HybridVariance) -> None:
        self.weight = config.weight

    def __call__(self, den: Denoiser, x0: Tensor, x_t: Tensor, t: Tensor, guess: Tensor, v: Tensor | None) -> Tensor:
        if v is None:
            raise ConfigError("objective.variance = 'hybrid' needs a network with model.learned_variance = true")
        T = steps_of(den.schedule)
        chain, k = Chain.of(den.schedule), index(t, T)
        _, alpha, sigma = den.levels(t, x0)
        mean = den.rule.x0(x_t, guess.detach().to(x0.dtype), alpha, sigma).float()
        log_variance = chain.log_variance(v.float(), k)
        return self.weight * T * chain.bound(x0.float(), x_t.float(), k, mean, log_variance)


VARIANCES: Table[type[Variance]] = Table("variance", {"fixed": Fixed, "hybrid": Hybrid})
