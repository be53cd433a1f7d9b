"""restore(): y, what became of a picture, and a denoiser give the picture back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffunet.errors import ConfigError, NumericError
from diffunet.generation import Ask
from diffunet.inverse.method import Method, Problem
from diffunet.inverse.methods import METHODS
from diffunet.inverse.operator import Operator
from diffunet.inverse.operators import build_operator
from diffunet.samplers import Noise, State
from diffunet.spec.inverse import method_config
from diffunet.table import choose


def build_method(method: Any, problem: Problem, den: Any) -> Method:
    """The method of a name, or of a dict or spec with `kind`, for one problem.

    Raises:
        ConfigError: unknown method or option, or an operator that it cannot have.
    """
    if isinstance(method, str):
        choose("method", method, METHODS)
    built: Method = METHODS.build(method_config(method), problem, den)
    return built


def denoise(den: Any, y: Tensor, sigma: float, **cond: Any) -> Tensor:
    """E[x_0 | y] of pictures y = x_0 + sigma n, (B, C, *S) in [-1, 1] and beyond, in one call of the denoiser.

    Raises:
        ConfigError: no noise, or more than the denoiser knows.
    """
    return restore(den, "identity", y, sigma, "mean", **cond)


@torch.no_grad()
def restore(
    den: Any,
    operator: Operator | str,
    y: Tensor,
    sigma: float = 0.0,
    method: Any = "ddnm",
    *,
    steps: int | None = None,
    start: float | None = None,
    guess: Tensor | None = None,
    seed: int | Sequence[int] = 0,
    on_step: Callable[[State], None] | None = None,
    **cond: Any,
) -> Tensor:
    """Draw x_0 given y = A x_0 + sigma n.

    The walk begins at alpha g + sigma(start) z, where g is a first guess: on a schedule whose largest noise is small
    g matters, on the others it drowns. An earlier `start` keeps more of g (SDEdit, 2108.01073).

    Args:
        den: a Denoiser, or anything called as den(x_t, t, **cond) -> x0 that has `.schedule`.
        operator: A, built for images of one shape; `identity` fits itself to y.
        y: (B, *operator.measured).
        sigma: standard deviation of the noise in y, where images are in [-1, 1] (25 of 255 is 25 / 127.5).
        method: a name of METHODS, or a dict or spec with `kind`.
        steps: sampler steps; None takes the method's own number.
        start: time in (0, 1] to begin at; None is 1, or for `mean` and `sample` the time of sigma itself.
        guess: (B, *operator.shape), a first picture; None asks the operator.
        seed: image i has seed `seed + i` and never depends on the batch; or one seed per image.
        on_step: called after each step with a State; raise in it to stop.
        cond: class_labels (B,), ...: passed to the denoiser.

    Returns:
        (B, *operator.shape), of y's type.

    Raises:
        ConfigError: unknown method, one for other operators, or noise that the denoiser does not know.
        NumericError: values that are not finite came out.
    """
    A = build_operator(operator, y.shape[1:])
    if tuple(y.shape[1:]) != A.measured:
        raise ConfigError(f"y of shape {tuple(y.shape)} does not fit an operator that measures {A.measured}")
    schedule = den.schedule
    walker = build_method(method, Problem(A, y, float(sigma)), den)
    t = walker.first_time(start)
    seeds = range(seed, seed + len(y)) if isinstance(seed, int) else list(seed)
    noise, ask = Noise(seeds), Ask(den, cond)
    x = walker.begin(A.guess(y) if guess is None else guess, t, noise)
    times = walker.times(schedule, steps or walker.config.steps, start=t)
    for state in walker.walk(ask, schedule, x, times, noise):
        x = state.x
        if on_step is not None:
            on_step(state)
    if not torch.isfinite(x).all():
        raise NumericError(f"method '{walker.config.kind}' left values that are not finite; try another, or more steps")
    return x
