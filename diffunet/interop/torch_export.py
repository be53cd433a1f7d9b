"""A network as a program of torch.export: any batch, and any size that divides by 2 for each level but the last."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from diffunet.errors import ConfigError
from diffunet.interop import probe
from diffunet.schedules import Schedule

SIDES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
DESCRIPTION = "diffunet.json"  # file in the archive


class Call(nn.Module):
    """The network with its inputs by position, in a fixed order."""

    def __init__(self, net: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, *given: Tensor) -> Tensor:
        """What the network guesses."""
        return self.net(**dict(zip(self.names, given, strict=True)))


def supported(config: Any) -> str:
    """The sizes that an exported network takes, in words."""
    step = probe.divisor(config)
    return f"every batch; sides that are multiples of {step}, at least {2 * step}"


def program(net: nn.Module, schedule: Schedule | None = None) -> ExportedProgram:
    """The network's program, with its batch and its sides open.

    Raises:
        ConfigError: torch cannot follow this network.
    """
    config: Any = net.config
    if config.padding == "valid":
        raise ConfigError(
            "with padding = 'valid' every image loses a border; only a network that keeps sizes is a program"
        )
    given = probe.inputs(net, probe.sizes(config)[1], schedule)
    step, batch = probe.divisor(config), Dim("batch", min=1)
    sides = {2 + i: step * Dim(name, min=2) for i, name in enumerate(SIDES[config.dims])}
    shapes = {name: {0: batch} | (sides if value.ndim > 2 else {}) for name, value in given.items()}
    try:
        # torch warns of its own deprecated ways
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(
                Call(net.eval(), tuple(given)), tuple(given.values()), dynamic_shapes=(tuple(shapes.values()),)
            )
    except Exception as error:  # torch's own errors share no base class
        raise ConfigError(f"torch.export cannot follow this network: {str(error).splitlines()[0][:200]}") from None


def write(net: nn.Module, path: Path, description: dict[str, Any], schedule: Schedule | None) -> None:
    """Write a network's program to a .pt2 file."""
    save(program(net, schedule), path, description)


def save(exported: ExportedProgram, path: Path, description: dict[str, Any]) -> None:
    """Write a program with the description of its denoiser inside."""
    torch.export.save(exported, path, extra_files={DESCRIPTION: json.dumps(description)})


def open_runner(path: Path) -> probe.Runner:
    """What a .pt2 file computes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(path).module()
    return lambda given: module(*given.values())
