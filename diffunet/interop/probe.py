"""Do two things compute the same? Random inputs for a network, and the largest difference of what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffunet.schedules import Schedule

Runner = Callable[[Mapping[str, Tensor]], Tensor]  # keyword inputs of a UNet -> what it guesses
LIMIT = 1e-4  # of the largest value: float32 sums in another order differ by a hundredth of it
SMALLEST = 16  # pixels of a side


def divisor(config: Any) -> int:
    """What a side must divide by so that no level pads it."""
    downs = getattr(config, "downs", None) or [config.down] * (len(config.widths) - 1)
    return 2 ** sum(down.kind != "none" for down in downs)


def sizes(config: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A square and an oblong that every format can take: the deepest level has two positions a side or more."""
    step = divisor(config)
    side = max(2 * step, -(-SMALLEST // step) * step)
    return (side,) * config.dims, (side + step, *[side] * (config.dims - 1))


def inputs(net: nn.Module, sides: tuple[int, ...], schedule: Schedule | None, seed: int = 0) -> dict[str, Tensor]:
    """Two random images of `sides`, random times as the schedule tells them, and all else that the network takes."""
    config: Any = net.config
    draw = torch.Generator().manual_seed(seed)
    t = 1 - torch.rand(2, generator=draw, dtype=torch.float64)
    given = {"x": torch.randn(2, config.in_channels, *sides, generator=draw)}
    if config.time.kind != "none":
        given["t"] = schedule.network_time(t) if schedule else (t * 999).float()
    if classes := getattr(config, "num_classes", None):
        given["class_labels"] = torch.randint(classes + config.null_class, (2,), generator=draw)
    if channels := getattr(config, "cond_channels", 0):
        given["cond"] = torch.randn(2, channels, *sides, generator=draw)
    if channels := getattr(config, "vector_channels", 0):
        given["vector"] = torch.randn(2, channels, generator=draw)
    if getattr(config, "self_conditioning", False):
        given["previous"] = torch.randn(2, config.in_channels, *sides, generator=draw)
    return given


def runner(net: nn.Module) -> Runner:
    """A network of ours."""
    return lambda given: net(**given)


@torch.no_grad()
def difference(one: Runner, other: Runner, net: nn.Module, schedule: Schedule | None) -> float:
    """The largest difference on two sizes, as a share of the largest value of `one`."""
    worst = 0.0
    for seed, sides in enumerate(sizes(net.config)):
        given = inputs(net, sides, schedule, seed)
        first, second = one(given).double(), other(given).double()
        if first.shape != second.shape:
            return float("inf")
        gap, scale = (first - second).abs().max(), first.abs().max()
        worst = max(worst, float(gap / scale) if scale > 0 else float(gap))
    return worst if worst == worst else float("inf")
