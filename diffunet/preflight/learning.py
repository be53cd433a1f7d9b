"""Does it learn at all? The loss before the first step, and whether the network can fit one batch by heart."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from diffunet.preflight.bench import DTYPES, Bench, Learner
from diffunet.preflight.section import Section, duration
from diffunet.spec import RunConfig

STEPS, SECONDS = 60, 20.0  # of fitting one batch
IMAGES = 16  # in it, at most
JUDGED = 30  # steps before which nothing can be said
FALL = 0.9  # share of its first loss below which a batch should have been brought
RISE = 1.3  # times its first loss, above which the steps are too long
CUT = 1000  # times the largest norm that is let through, from where AdamW's eps begins to matter
AGREE = 1.5  # times that the first loss may differ from that of a network which says nothing
ROOM = 8  # times that the largest activation should fit into the range of fp16


@contextmanager
def silent(network: nn.Module) -> Iterator[None]:
    """A network that answers 0 everywhere."""
    hook = network.register_forward_hook(lambda module, told, output: output * 0)
    try:
        yield
    finally:
        hook.remove()


def first_loss(learner: Learner, batch: dict[str, Tensor]) -> tuple[float, float]:
    """The loss of the network as it begins, and that of one which says 0."""
    with torch.no_grad():
        found = float(learner.loss(batch))
        with silent(learner.network):
            expected = float(learner.loss(batch))
    return found, expected


def first_warning(found: float, expected: float) -> str | None:
    """What a first loss far from that of a silent network means."""
    if math.isfinite(found) and found <= AGREE * expected and expected <= AGREE * found:
        return None
    return (
        f"the first loss is {found:.4g}, but {expected:.4g} if the network said nothing: it begins by saying something "
        "wrong; look at the range of the data, process.prediction and the weights that the network begins with"
    )


def fit(learner: Learner, batch: dict[str, Tensor], config: RunConfig) -> tuple[list[float], list[float]]:
    """Losses and gradient norms while one batch is learnt by heart: same noise, times and dropout in every step.

    The rate is the run's largest, warmed up over a tenth of these steps if the run has a warm-up.
    """
    losses: list[float] = []
    norms: list[float] = []
    warm = min(config.train.warmup_steps, STEPS // 10)
    end = time.monotonic() + SECONDS
    for step in range(STEPS):
        rate = config.train.learning_rate * min(1.0, (step + 1) / (warm + 1))
        loss, norm = learner.step([batch], rate)
        losses.append(loss)
        norms.append(norm)
        if time.monotonic() > end or not (math.isfinite(loss) and math.isfinite(norm)):
            break
    return losses, norms


def fit_warning(losses: list[float], norms: list[float], config: RunConfig) -> str | None:
    """Why a batch was not learnt, as far as the curve tells."""
    train, (first, last) = config.train, (losses[0], losses[-1])
    if not all(map(math.isfinite, (*losses, *norms))):
        return (
            f"the loss is no longer finite after {len(losses)} steps on one batch: lower train.learning_rate "
            f"({train.learning_rate:g}), or use train.precision = 'no'"
        )
    if len(losses) < JUDGED or last <= FALL * first:
        return None
    if max(losses) > RISE * first:
        return (
            f"the loss of one batch went from {first:.4g} up to {max(losses):.4g} and ended at {last:.4g}: "
            f"train.learning_rate = {train.learning_rate:g} looks too high"
        )
    causes = [f"train.learning_rate ({train.learning_rate:g}, too low?)"]
    if (usual := median(norms)) > CUT * train.clip_norm:
        causes.append(f"train.clip_norm ({train.clip_norm:g}, where the gradient has norm {usual:.3g})")
    return (
        f"the loss of one batch fell only from {first:.4g} to {last:.4g} in {len(losses)} steps (expected below "
        f"{FALL * first:.4g}): look at {', '.join(causes)}, the range of the data, and the norm of model.block"
    )


@contextmanager
def watched(network: nn.Module) -> Iterator[dict[str, float]]:
    """The largest absolute value that each innermost module gives, NaN counted as infinite."""
    largest: dict[str, float] = {}

    def watch(name: str) -> Callable[..., None]:
        def see(module: nn.Module, told: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                value = float(output.detach().abs().max().float().nan_to_num(nan=math.inf, posinf=math.inf))
                largest[name] = max(value, largest.get(name, 0.0))

        return see

    leaves = [(name, module) for name, module in network.named_modules() if not list(module.children())]
    hooks = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()


def overflow(learner: Learner, batch: dict[str, Tensor], precision: str) -> tuple[str, dict[str, Any], str | None]:
    """Whether half precision holds what the network computes: a line, values, and a warning."""
    with watched(learner.network) as largest, torch.no_grad():
        loss = float(learner.loss(batch))
    name, value = max(largest.items(), key=lambda item: item[1])
    most = torch.finfo(DTYPES[precision]).max
    line = f"largest activation in {precision}: {value:.4g} in {name} (range {most:.4g})"
    values = {"largest": value if math.isfinite(value) else None, "module": name, "range": most}
    if not math.isfinite(value) or not math.isfinite(loss):
        return line, values, f"{precision} overflows in {name}: use train.precision = 'bf16' or 'no'"
    if value * ROOM > most:
        return line, values, f"{precision} has little room above {value:.4g} in {name}: use train.precision = 'bf16'"
    return line, values, None


def section(bench: Bench, learner: Learner) -> Section:
    """All that is to be said of learning; the learner has learnt one batch afterwards.

    Args:
        bench: the run.
        learner: its network as it begins.
    """
    config = bench.config
    batch = bench.batch(min(IMAGES, config.train.batch_size))
    found, expected = first_loss(learner, batch)
    begun = time.perf_counter()
    losses, norms = fit(learner, batch, config)
    took = time.perf_counter() - begun
    judged = len(losses) >= JUDGED or not math.isfinite(losses[-1])
    lines = [
        f"first loss {found:.4g}; a network that says nothing has {expected:.4g}",
        f"one batch of {len(batch['index'])} by heart: loss {losses[0]:.4g} to {losses[-1]:.4g} in {len(losses)} steps "
        f"({duration(took)}){'' if judged else ': too few to judge'}",
    ]
    warnings = [first_warning(found, expected), fit_warning(losses, norms, config)]
    values: dict[str, Any] = {
        "first_loss": _number(found),
        "expected_loss": _number(expected),
        "fit": {
            "first": _number(losses[0]),
            "last": _number(losses[-1]),
            "steps": len(losses),
            "images": len(batch["index"]),
        },
    }
    if bench.precision in DTYPES:
        line, values["precision"], warning = overflow(learner, batch, bench.precision)
        lines.append(line)
        warnings.append(warning)
    return Section("learning", lines, values, [warning for warning in warnings if warning])


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None
