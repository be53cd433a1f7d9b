"""The variational bound of a chain: what ancestral sampling needs to send an image (DDPM, 2006.11239, eq. 5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffunet.errors import ConfigError
from diffunet.likelihood.base import (
    BINS,
    Batch,
    Likelihood,
    batches,
    bin_name,
    bin_of,
    check,
    decode,
    per_dimension,
    uniform,
)
from diffunet.posterior import Chain, gaussian_kl


@torch.no_grad()
def variational(
    den: Any,
    x0: Tensor,
    *,
    levels: int | None = None,
    variance: str | None = None,
    times: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    **cond: Any,
) -> Likelihood:
    """-log2 p(x0) at most: L_T + sum_k KL(q(x_{k-1} | x_k, x_0) | p(x_{k-1} | x_k)) + L_0, in bits per dimension.

    The model p is what `generate(den, sampler="ddpm")` draws from over all T steps, so its estimate is den(x_t, t),
    with the denoiser's threshold; a denoiser with clip = None leaves it out. L_T is against N(0, 1). L_0 is the mass of
    the grey value under the last step, whose fixed-small variance 0 is replaced by that of the step before, as DDPM
    does; of continuous data it is the density under N(D, beta_1), since a step without noise has none.

    Args:
        den: a denoiser on a schedule of T steps of its own.
        x0: images (N, C, *S) in [-1, 1].
        levels: L grey values (256 for 8-bit images); None for continuous data, whose bits are those of a density.
        variance: of a step: "small" (btilde), "large" (beta) or "learned"; None is the learned one where there is one,
            else small.
        times: network calls for each image, at random times, one in each of as many equal parts: the same in the mean,
            but noisier. None makes all T - 1 and the last.
        seed: image i draws its noise from seed + i, whatever its batch.
        batch_size: images at once.
        cond: class_labels (N,), ...: passed to the denoiser in rows.

    Raises:
        ConfigError: a schedule without steps of its own, images that do not have `levels` values, or no such variance.
    """
    check(x0, levels)
    if getattr(den.schedule.config, "T", None) is None:
        raise ConfigError(
            f"schedule '{den.schedule.config.kind}' has no steps of its own, so it has no bound: use the flow"
        )
    learned = getattr(den, "learned_variance", False)
    kind = variance or ("learned" if learned else "small")
    if kind not in ("small", "large", "learned") or (kind == "learned" and not learned):
        choices = "small, large" + (", learned" if learned else "")
        raise ConfigError(f"unknown variance '{kind}' for this network; one of: {choices}")
    model = Steps(den, Chain.of(den.schedule), kind, levels)
    return Likelihood.cat([model(batch, times) for batch in batches(x0, cond, seed, batch_size)])


class Steps:
    """The chain that a denoiser makes, and what each of its steps costs."""

    def __init__(self, den: Any, chain: Chain, kind: str, levels: int | None) -> None:
        self.den, self.chain, self.kind, self.levels = den, chain, kind, levels

    def __call__(self, batch: Batch, times: int | None) -> Likelihood:
        """The bound of a batch, each image at its own times."""
        T, x0, noise = self.chain.steps, batch.x0, batch.noise
        count = min(times or T - 1, T - 1)
        edges = torch.linspace(1, T, count + 1, dtype=torch.float64).round()
        parts = torch.zeros(BINS, len(x0), dtype=torch.float64)
        decoder = self._term(batch, torch.zeros(len(x0), dtype=torch.long))
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            k = torch.full((len(x0),), int(low))
            if high - low > 1:
                k = (low + uniform(noise, (), k.device) * (high - low)).floor().long()
            cost = (high - low) * self._term(batch, k).cpu()
            parts[bin_of((k + 1) / T), torch.arange(len(k))] += cost
        named = {bin_name(b): parts[b] for b in range(BINS)}
        return Likelihood.of({"decoder": decoder.cpu()} | named | {"prior": self.chain.prior(x0).cpu()})

    def _term(self, batch: Batch, k: Tensor) -> Tensor:
        """The cost of the steps at indices k (B,), all of them 0 or none, in bits per dimension (B,)."""
        x0, chain = batch.x0, self.chain
        t = (k + 1).double() / chain.steps
        alpha, sigma = (self._shaped(table[k], x0) for table in (chain.alphas, chain.sigmas))
        x_t = alpha * x0 + sigma * batch.noise.like(x0)
        guess, log_variance = self._ask(x_t, t, k, batch.cond)
        if k[0] == 0:
            if self.levels is None:
                log_variance = chain.fixed(k, x_t, "large")
            return decode(x0, chain.mean(guess, x_t, k), log_variance, self.levels)
        truth, mean = chain.mean(x0, x_t, k), chain.mean(guess, x_t, k)
        return per_dimension(gaussian_kl(truth, chain.fixed(k, x0), mean, log_variance))

    def _ask(self, x_t: Tensor, t: Tensor, k: Tensor, cond: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The clean estimate, and the log variance of the step."""
        if self.kind != "learned":
            return self.den(x_t, t, **cond), self.chain.fixed(k, x_t, self.kind)
        guess, v = self.den.with_variance(x_t, t, **cond)
        return guess, self.chain.log_variance(v, k)

    @staticmethod
    def _shaped(values: Tensor, like: Tensor) -> Tensor:
        return values.to(like).reshape(-1, *[1] * (like.ndim - 1))
