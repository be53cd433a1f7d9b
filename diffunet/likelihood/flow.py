"""The likelihood of the probability flow: a change of variables along the ODE that deterministic samplers follow.

log p(x at t_min) = log N(w at 1) + the integral over the way of div dw/du (2011.13456, eq. 39), in the frame of the
`rk45` sampler: w = x / sqrt(alpha^2 + sigma^2) against the angle u = atan2(sigma, alpha), where
dw/du = (cos(u) w - D) / sin(u), and so div = (d cos(u) - tr dD/dw) / sin(u).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffunet.errors import ConfigError
from diffunet.likelihood.base import (
    BINS,
    LOG2,
    Batch,
    Likelihood,
    batches,
    bin_name,
    check,
    decode,
    per_dimension,
    uniform,
)
from diffunet.samplers.base import Noise
from diffunet.samplers.rk45 import RK45, Flow, Place
from diffunet.spec import RK45Sampler
from diffunet.table import Table, choose

Start = tuple[Tensor, dict[str, Tensor]]  # x at t_min, and what the choice of it costs in bits per dimension (B,)


def flow(
    den: Any,
    x0: Tensor,
    *,
    levels: int | None = None,
    start: str | None = None,
    trace: str = "hutchinson",
    tolerance: float = 1e-5,
    seed: int = 0,
    batch_size: int = 64,
    **cond: Any,
) -> Likelihood:
    """-log2 p(x0) of what the deterministic sampler draws, in bits per dimension.

    The flow is followed from t = schedule.t_min, the smallest time that the network is asked about, to t = 1, where w
    is held to be N(0, 1). Its estimate is den(x_t, t), with the denoiser's threshold, as in `variational`; a denoiser
    with clip = None leaves it out. A network in training mode would give every call another dropout: use `den.eval()`.

    What stands at t_min (`start`):
      data: x0 itself, as if the flow ended there; for continuous data.
      uniform: x0 + u, u uniform over the bin of a grey value: an upper bound for the grey value (1511.01844, eq. 4). A
        bin is 2 / (L - 1) wide. Where that is much more than sigma(t_min) and the model was trained on bare grey
        values, most of a bin is where no training image ever was, and the figure may say that above all.
      noise: alpha x0 + sigma z, as in training, with the density of z and the decoder of `variational` paid for: an
        upper bound too, by variational dequantisation with the process's own noise (2305.03935, there truncated).

    Args:
        den: a denoiser.
        x0: images (N, C, *S) in [-1, 1].
        levels: L grey values (256 for 8-bit images); None for continuous data, whose bits are those of a density.
        start: data, uniform or noise; None is noise for grey values and data for continuous ones.
        trace: of the Jacobian: "hutchinson", one Rademacher vector for each image, unbiased; or "exact", with d times
            the backward passes.
        tolerance: error allowed a step of the integrator, absolute and relative; each image has its own steps.
        seed: image i draws from seed + i, whatever its batch.
        batch_size: images at once.
        cond: class_labels (N,), ...: passed to the denoiser in rows.

    Raises:
        ConfigError: unknown start or trace, one that the data cannot have, or images that do not have `levels` values.
        NumericError: values that are not finite, or no end within the integrator's limit of calls.
    """
    check(x0, levels)
    begin = STARTS[choose("start", start or ("data" if levels is None else "noise"), STARTS)]
    divergence = TRACES[choose("trace", trace, TRACES)]
    rule = RK45(RK45Sampler(tolerance=tolerance))
    done = []
    for batch in batches(x0, cond, seed, batch_size):
        x, costs = begin(den, batch, levels)
        way = Way(den, batch, divergence)
        done.append(Likelihood.of({name: cost.cpu() for name, cost in (costs | way.run(rule, x)).items()}))
    return Likelihood.cat(done)


def as_data(den: Any, batch: Batch, levels: int | None) -> Start:
    """x0 itself."""
    if levels is not None:
        raise ConfigError("start = 'data' is for continuous data: grey values have no density; use uniform or noise")
    return batch.x0, {}


def as_uniform(den: Any, batch: Batch, levels: int | None) -> Start:
    """x0 somewhere in its bin; -log2 P = -log2 p - log2(width of the bin)."""
    if levels is None:
        raise ConfigError("start = 'uniform' needs levels: continuous data has no bins")
    width, x0 = 2 / (levels - 1), batch.x0
    x = x0 + width * (uniform(batch.noise, x0.shape[1:], x0.device) - 0.5)
    return x, {"bins": x0.new_full((len(x0),), -math.log2(width))}


@torch.no_grad()
def as_noise(den: Any, batch: Batch, levels: int | None) -> Start:
    """x_t at t_min: -log2 P <= E[-log2 p(x_t) + log2 q(x_t | x0) - log2 P(x0 | x_t)], where the second is known."""
    x0, t = batch.x0, den.schedule.t_min
    alpha, sigma = den.schedule.alpha(t), den.schedule.sigma(t)
    x_t = alpha * x0 + sigma * batch.noise.like(x0)
    guess, log_variance = den(x_t, t, **batch.cond), x0.new_tensor(2 * math.log(sigma))
    entropy = math.log2(2 * math.pi * math.e * sigma**2) / 2
    return x_t, {
        "decoder": decode(x0, guess, log_variance, levels),
        "noise": x0.new_full((len(x0),), -entropy),
    }


def hutchinson(x0: Tensor, w: Tensor, probe: Tensor) -> Tensor:
    """v^T (dx0/dw) v of each image (B,), whose mean over v is the trace (2011.13456, eq. 40)."""
    (gradient,) = torch.autograd.grad((x0 * probe).sum(), w)
    return (gradient * probe).flatten(1).sum(dim=1)


def exact(x0: Tensor, w: Tensor, probe: Tensor) -> Tensor:
    """The trace of dx0/dw of each image (B,), one backward pass for each value."""
    total = torch.zeros(len(w), dtype=w.dtype, device=w.device)
    for i, value in enumerate(x0.flatten(1).unbind(dim=1)):
        (gradient,) = torch.autograd.grad(value.sum(), w, retain_graph=True)
        total = total + gradient.flatten(1)[:, i]
    return total


class Way(Flow):
    """The flow of w together with the log density that it gathers, one more value behind those of an image."""

    def __init__(self, den: Any, batch: Batch, trace: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__(lambda x, t: den(x, t, **batch.cond), den.schedule)
        self.batch, self.trace, self.shape = batch, trace, batch.x0.shape
        self.probe = rademacher(batch.noise, batch.x0)

    def __call__(self, u: Sequence[float], w: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            image = w[:, :-1].reshape(self.shape).detach().requires_grad_()
            slope, x0 = super().__call__(u, image)
            traces = self.trace(x0, image, self.probe)
        cos, sin = (torch.tensor([f(angle) for angle in u]).to(w) for f in (math.cos, math.sin))
        gathered = (image[0].numel() * cos - traces) / sin
        return torch.cat([slope.detach().flatten(1), gathered[:, None]], dim=1), w

    def run(self, rule: RK45, x: Tensor) -> dict[str, Tensor]:
        """What the way from x (B, C, *S) at t_min to t = 1 costs, by tenths of time, in bits per dimension (B,)."""
        first, d = self.schedule.t_min, x[0].numel()
        stops = [first, *[b / BINS for b in range(1, BINS + 1) if b / BINS > first]]
        u, w = [self.angle(first)] * len(x), torch.cat([x.flatten(1) / self.norm(first), x.new_zeros(len(x), 1)], dim=1)
        place, costs = Place(u, w, *self(u, w), u), {}
        for stop in stops[1:]:
            before, end = place.w[:, -1], self.angle(stop)
            # whoever has arrived at the last stop has no step left to go on with
            place = place._replace(h=[0.2 * (end - angle) for angle in place.u])
            while any(angle != end for angle in place.u):
                place = rule.attempt(self, place, end)
            costs[bin_name(round(stop * BINS) - 1)] = (before - place.w[:, -1]) / (d * LOG2)
        gaussian = (place.w[:, :-1] ** 2 + math.log(2 * math.pi)) / 2
        size = x.new_full((len(x),), math.log2(self.norm(first)))
        return {"size": size} | costs | {"prior": per_dimension(gaussian)}


def rademacher(noise: Noise, like: Tensor) -> Tensor:
    """-1 or 1 at random, each image from its own generator."""
    return torch.where(uniform(noise, like.shape[1:], like.device) < 0.5, -1.0, 1.0).to(like.dtype)


STARTS: Table[Callable[[Any, Batch, int | None], Start]] = Table(
    "start", {"data": as_data, "uniform": as_uniform, "noise": as_noise}
)
TRACES: Table[Callable[[Tensor, Tensor, Tensor], Tensor]] = Table("trace", {"hutchinson": hutchinson, "exact": exact})
