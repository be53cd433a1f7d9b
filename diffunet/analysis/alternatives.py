"""The U beside networks that stay at full resolution, at the same number of multiplications.

`direct` is the same stack of blocks without down and up operators; `dilated` widens its kernels by a rate for each
level in their place. Attention is left out of both: at full resolution it would cost the square of all positions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from diffunet.analysis.cost import summarize
from diffunet.analysis.memory import Memory, estimate
from diffunet.analysis.receptive import receptive_field
from diffunet.analysis.weightless import inputs
from diffunet.nn import NETWORKS
from diffunet.spec import DilatedBlock, NetworkConfig, NoResample, ResidualBlock, UNetConfig

PASSES = 3


@dataclass(frozen=True)
class Rival:
    """One network of the comparison.

    Args:
        name: what it is; config: how it is built.
        width: channels of its levels.
        parameters, macs, memory, reach: what it costs, and its receptive field.
    """

    name: str
    config: NetworkConfig
    width: tuple[int, ...]
    parameters: int
    macs: int
    memory: Memory
    reach: int


def rivals(config: NetworkConfig, batch: int, sides: tuple[int, ...]) -> list[Rival]:
    """The network itself, then those without down and up operators, as wide as its multiplications allow."""
    target = summarize(config, batch, sides).total.macs

    def rival(name: str, chosen: NetworkConfig) -> Rival:
        total = summarize(chosen, batch, sides).total
        memory, reach = estimate(chosen, batch, sides), receptive_field(chosen).size
        return Rival(name, chosen, chosen.widths, total.parameters, total.macs, memory, reach)

    def fit(make: Callable[[int], NetworkConfig]) -> NetworkConfig:
        def macs(width: int) -> int:
            return summarize(make(width), batch, sides).total.macs

        # macs = a w^2 + b w with a small b: two steps of the square root reach the nearest width
        width = 32
        for _ in range(3):
            width = max(1, round(width * (target / macs(width)) ** 0.5))
        return make(min((max(1, width - 1), width, width + 1), key=lambda w: abs(macs(w) - target)))

    return [
        rival("as configured", config),
        *(rival(name, fit(partial(flat, config, block))) for name, block in FLAT.items()),
    ]


def flat(config: NetworkConfig, block: type[ResidualBlock], width: int) -> UNetConfig:
    """A network of `width` channels that keeps the resolution, with as many blocks as this one."""
    own = config.block.model_dump() if isinstance(config.block, ResidualBlock) else {}
    kept = {key: own[key] for key in ("condition", "dropout", "eps", "zero_init", "rescale") if key in own}
    groups = next(n for n in range(max(1, min(32, width // 4)), 0, -1) if width % n == 0)
    levels = len(config.widths)
    changes: dict[str, Any] = {
        "base_channels": width,
        "channels": (width,) * levels,
        "stem_channels": None,
        "attention_levels": (),
        "attention_in_mid": False,
        "block": block(groups=groups, **kept),
        **dict.fromkeys(("down", "up"), NoResample()),
        **dict.fromkeys(("downs", "ups", "input_pyramid", "output_pyramid", "attentions")),
    }
    if isinstance(config, UNetConfig):
        return UNetConfig(**(dict(config) | changes))
    told = {key: getattr(config, key) for key in ("dims", "in_channels", "out_channels", "time")}
    return UNetConfig(blocks_per_level=1, **(told | changes))


FLAT: dict[str, type[ResidualBlock]] = {"direct": ResidualBlock, "dilated": DilatedBlock}


def seconds(config: NetworkConfig, batch: int, sides: tuple[int, ...]) -> float:
    """Median time of a forward pass without gradients, after one that is not counted."""
    net, told = NETWORKS.build(config).eval(), inputs(config, batch, sides)
    taken = []
    with torch.no_grad():
        for _ in range(1 + PASSES):
            start = time.perf_counter()
            net(**told)
            taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])
