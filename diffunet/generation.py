"""generate(): seeds, batches, a sampler, guidance and a callback, for any denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffunet import guidance as guides
from diffunet.errors import ConfigError, NumericError
from diffunet.samplers import Noise, Sampler, Spacing, build


class Progress(NamedTuple):
    """What `on_step` sees after each step: how many of how many are done, the time reached, x there, and x0."""

    step: int
    steps: int
    t: float
    x: Tensor
    x0: Tensor
    first: int  # index of the batch's first image


class Ask:
    """What a sampler asks: a denoiser with the conditions of a batch, told its own last estimate if it wants that."""

    def __init__(self, den: Any, cond: dict[str, Any]) -> None:
        self.den, self.cond = den, cond
        self.recalls = getattr(den, "self_conditioning", False)
        self.last: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The clean estimate of x (B, C, *S) at t."""
        x0: Tensor = self.den(x, t, **self._given())
        self.last = x0.detach() if self.recalls else None
        return x0

    def pair(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """The guided estimate, and the one that guidance leads away from: one and the same without guidance."""
        if not hasattr(self.den, "pair"):
            x0 = self(x, t)
            return x0, x0
        x0, origin = self.den.pair(x, t, **self._given())
        self.last = x0.detach() if self.recalls else None
        return x0, origin

    def with_variance(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """The clean estimate, and the learned place v in [0, 1] of log variance between its two bounds."""
        x0, v = self.den.with_variance(x, t, **self._given())
        self.last = x0.detach() if self.recalls else None
        return x0, v

    def threshold(self, x0: Tensor) -> Tensor:
        """The denoiser's own threshold, if it has one."""
        own = getattr(self.den, "threshold", None)
        return x0 if own is None else own(x0)

    def _given(self) -> dict[str, Any]:
        return self.cond if self.last is None else self.cond | {"previous": self.last}


def _shape(den: Any, n_or_shape: int | Sequence[int]) -> tuple[int, ...]:
    if not isinstance(n_or_shape, int):
        return tuple(n_or_shape)
    data = getattr(den, "data", None)
    if data is None:
        raise ConfigError("this denoiser does not know its data's shape: give the whole shape (N, C, *S), not only N")
    return (n_or_shape, *data.shape)


def _device(den: Any) -> torch.device:
    parameters = getattr(den, "parameters", None)
    first = next(parameters(), None) if parameters else None
    return torch.device("cpu") if first is None else first.device


def _labels(den: Any, cond: dict[str, Any], n: int, device: torch.device) -> dict[str, Any]:
    """Conditions as tensors of n rows; an integer class stands for n of it."""
    labels = cond.get("class_labels")
    if labels is None:
        return cond
    labels = torch.as_tensor(labels, device=device, dtype=torch.long)
    if labels.shape not in {(), (1,), (n,)} and not (labels.ndim == 2 and len(labels) == n):
        raise ConfigError(f"{tuple(labels.shape)} class labels were given for {n} images: give one, or one per image")
    classes = getattr(den, "num_classes", None)
    known = None if classes is None else classes + (getattr(den, "null_label", None) is not None)
    if known is not None and not bool(((labels >= 0) & (labels < known)).all()):
        raise ConfigError(f"class labels must be 0 to {known - 1}, not {sorted(set(labels.flatten().tolist()))[:5]}")
    return cond | {"class_labels": labels if labels.ndim == 2 else labels.expand(n)}


@torch.no_grad()
def generate(
    den: Any,
    n_or_shape: int | Sequence[int],
    sampler: Any = "arc",
    steps: int = 20,
    spacing: Spacing = None,
    seed: int | Sequence[int] = 0,
    guidance: Any = None,
    on_step: Callable[[Progress], None] | None = None,
    *,
    batch_size: int | None = None,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    noise: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    """Sample N images.

    Args:
        den: a Denoiser, or anything called as den(x_t, t, **cond) -> x0 that has `.schedule`.
        n_or_shape: N, or the whole shape (N, C, *S); S may be empty.
        sampler: a name (`arc`, `ddim`, `ddpm`, ..., a diffusers class such as `UniPCMultistepScheduler`), a dict with
            `kind`, or a Sampler.
        steps: sampler steps.
        spacing: leading, trailing, karras, ..., or a list of falling times; None takes the sampler's or schedule's own.
        seed: image i has seed `seed + i` and never depends on the batch; or one seed per image.
        guidance: scale w of classifier-free guidance, where 1 is the conditional model (needs class_labels); or a dict
            or spec with `kind`, or a callable den -> guided denoiser (see `diffunet.guidance.build`).
        on_step: called after each step with a Progress; raise in it to stop.
        batch_size: images at once; None takes all.
        guidance_interval: (low, high); guidance acts for low < t <= high.
        noise: unit noise (N, C, *S) to start from, in place of the seeds' (which still drive stochastic steps).
        cond: class_labels (an int, N of them, or (N, K) for guidance by K classes), cond (N, C', *S), ...: passed to
            the denoiser in rows.

    Returns:
        (N, C, *S) float32 on the denoiser's device, not clipped beyond the denoiser's own threshold.

    Raises:
        ConfigError: unknown sampler or spacing, guidance without a null class or labels, a shape that cannot be
            known, or labels, seeds or noise that do not fit it.
        NumericError: the denoiser produced values that are not finite.
    """
    shape, device, rule = _shape(den, n_or_shape), _device(den), build(sampler)
    seeds = range(seed, seed + shape[0]) if isinstance(seed, int) else list(seed)
    if len(seeds) != shape[0]:
        raise ConfigError(f"{len(seeds)} seeds were given for {shape[0]} images")
    if noise is not None and noise.shape != shape:
        raise ConfigError(f"noise of shape {tuple(noise.shape)} was given for images of shape {shape}")
    cond, size = _labels(den, cond, shape[0], device), batch_size or shape[0]
    guided = guides.build(den, guidance, guidance_interval)
    # each module's own mode: a denoiser may stand around a network that never was in training, as an average of weights
    modes = [(module, module.training) for module in den.modules()] if isinstance(den, torch.nn.Module) else []
    images = []
    try:
        for module, _ in modes:
            module.training = False
        for first in range(0, shape[0], max(size, 1)):
            rows = slice(first, first + size)
            part = {name: value[rows] if isinstance(value, Tensor) else value for name, value in cond.items()}
            source = Noise(seeds[rows])
            start = source(shape[1:], device)
            x = start if noise is None else noise[rows].to(device)
            images.append(_run(Ask(guided, part), rule, x, steps, spacing, source, on_step, first))
    finally:
        for module, training in modes:
            module.training = training
    return torch.cat(images) if images else torch.empty(shape)


def _run(
    ask: Ask,
    rule: Sampler,
    noise: Tensor,
    steps: int,
    spacing: Spacing,
    source: Noise,
    on_step: Callable[[Progress], None] | None,
    first: int,
) -> Tensor:
    x = noise
    for state in rule.run(ask, ask.den.schedule, noise, steps, spacing, source):
        # a rule may extrapolate its last estimates a little beyond what the denoiser allows
        x = ask.threshold(state.x) if state.t == 0 else state.x
        if on_step is not None:
            on_step(Progress(*state._replace(x=x), first))
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x.reshape(len(x), -1))).any(dim=1).sum())
        raise NumericError(f"{bad} of {len(x)} images are not finite; the weights or the input are broken")
    return x
