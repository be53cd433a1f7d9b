"""Where a run was started: versions and machine, for environment.json and the report."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from diffunet import __version__

LIBRARIES = ("accelerate", "diffusers", "numpy", "safetensors", "torchvision")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """What the machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _graphics(device: torch.device) -> dict[str, Any] | None:
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    return {"name": properties.name, "memory": properties.total_memory, "cuda": torch.version.cuda}


def environment(device: torch.device, precision: str, world: int, threads: int) -> dict[str, Any]:
    """What environment.json says, JSON values.

    Args:
        device: what the run computes on.
        precision: no, bf16 or fp16.
        world: number of processes.
        threads: CPU threads of each.
    """
    return {
        "diffunet": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version for name in LIBRARIES if (version := _version(name))},
        "platform": platform.platform(),
        "host": platform.node(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": device.type,
        "gpu": _graphics(device),
        "precision": precision,
        "world": world,
        "threads": threads,
        "executable": sys.executable,
    }
