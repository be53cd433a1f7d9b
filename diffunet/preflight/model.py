"""The network: its parameters by part, and whether a step of training fits into the memory that is free."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from diffunet.analysis.memory import Memory, estimate
from diffunet.analysis.parts import parts_of
from diffunet.doctor.machine import free_on, size
from diffunet.preflight.section import Section, bars
from diffunet.spec import RunConfig

# Share of the bytes of float32 activations that a forward pass in half precision keeps (on a CPU 0.60 and 0.65 were
# measured; a GPU keeps more of the norms in float32).
HALF = 0.7


@dataclass(frozen=True)
class Need:
    """Bytes of a training step.

    Args:
        parameters: their number.
        memory: the estimate for float32 and one average.
        averages: how many there are.
        activations: share of the float32 ones that this precision has.
    """

    parameters: int
    memory: Memory
    averages: int
    activations: float

    @property
    def parts(self) -> dict[str, int]:
        """What takes how much at the peak."""
        memory = self.memory
        return {
            "weights": memory.weights,
            "gradients at the peak": memory.gradients,
            "moments": memory.moments,
            "averages": self.averages * memory.average,
            "activations": round(self.activations * memory.working),
        }

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint: network, averages and moments in float32."""
        return 4 * self.parameters * (3 + self.averages)


def averages_of(config: RunConfig) -> int:
    """How many averages of the weights a run keeps."""
    return 1 + len(config.ema.sigma_rel)


def roles(network: nn.Module) -> dict[str, int]:
    """Parameters by the role of the part that holds them."""
    parts, counts = parts_of(network), Counter[str]()
    for path, module in network.named_modules():
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if own:
            counts[parts[path].role if path else "other"] += own
    return dict(counts.most_common())


def need_of(config: RunConfig, batch: int, sides: tuple[int, ...], device: torch.device, precision: str) -> Need:
    """What a training step of `batch` images of `sides` takes on a device.

    Args:
        config: the resolved run.
        batch: images of one forward pass.
        sides: (*S) of an image.
        device: where.
        precision: no, bf16 or fp16.
    """
    memory = estimate(config.model, batch, sides, device.type)
    share = 1.0 if precision == "no" else HALF
    return Need(memory.weights // 4, memory, averages_of(config), share)


def section(network: nn.Module, need: Need, batch: int, device: torch.device, precision: str) -> Section:
    """All that is to be said of the network and its memory.

    Args:
        network: one without memory will do.
        need: from `need_of`.
        batch: images of one forward pass.
        device, precision: where and how it computes.
    """
    counts = roles(network)
    free, parts = free_on(device), need.parts
    shown = [f"{count:,} ({100 * count / need.parameters:.1f} %)" for count in counts.values()]
    found = Section("model", bars(list(counts), list(counts.values()), shown))
    found.lines.append(
        f"memory of a step, estimated, at {batch} images in precision {precision}: {size(need.total)} "
        f"({', '.join(f'{name} {size(count)}' for name, count in parts.items())})"
    )
    found.lines.append(f"free on {device.type}: {'unknown' if free is None else size(free)}")
    values: dict[str, Any] = {"parts": counts, "memory": {**parts, "total": need.total}, "free_memory": free}
    found.values = values
    if free is not None and need.total > free:
        found.warnings.append(
            f"a step needs about {size(need.total)} and {size(free)} are free: raise train.accumulation, set "
            "model.checkpoint_levels, or use train.precision = 'bf16'"
        )
    return found
