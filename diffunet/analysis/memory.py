"""How much memory training and inference take: by arithmetic on a weightless network, and measured in a fresh process.

The same step runs both times. On the meta device every tensor is counted from its birth to its death, so that what the
backward pass needs, and what lives only for a moment, are exact; weights, average and moments are arithmetic.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from diffunet.analysis.trace import Trace, nbytes
from diffunet.analysis.weightless import inputs, weightless
from diffunet.errors import MemoryLimitError
from diffunet.nn import NETWORKS
from diffunet.spec import NetworkConfig, UNetConfig

STATUS = Path("/proc/self/status")  # Linux
STEPS = 2  # the second one has the optimizer's moments from the start


@dataclass(frozen=True)
class Memory:
    """Bytes in float32 at the peak of a training step (AdamW, one average of the weights), and of an inference.

    Args:
        weights, average, moments: what stays all the time.
        gradients: those alive at the peak.
        kept: activations that the forward pass leaves for the backward pass.
        working: what else is alive at the peak: activations, their gradients, work space of the convolutions.
        inference_working: the same of a forward pass without gradients.
    """

    weights: int
    average: int
    moments: int
    gradients: int
    kept: int
    working: int
    inference_working: int

    @property
    def training(self) -> int:
        """Peak of a training step."""
        return self.weights + self.average + self.moments + self.gradients + self.working

    @property
    def inference(self) -> int:
        """Peak of an inference."""
        return self.weights + self.inference_working


def workspace(name: str, args: Any, out: Any) -> int:
    """Bytes that a convolution of oneDNN, torch's library on a CPU, needs besides: copies in its own layout."""
    return nbytes((args, out)) if "convolution" in name else 0


def estimate(config: NetworkConfig, batch: int, sides: tuple[int, ...], device: str = "cpu") -> Memory:
    """Memory of a network at a batch and size, without allocating it."""
    extra = workspace if device == "cpu" else lambda name, args, out: 0
    with weightless(config) as net:
        told = inputs(config, batch, sides)
        with Trace(net, extra, counting=False).watching(told) as step:
            loss = forward(net.train(), told)
            kept = step.live
            loss.backward()
            gradients = {
                p.grad.untyped_storage()._cdata: nbytes(p.grad) for p in net.parameters() if p.grad is not None
            }
            at_peak = sum(size for key, size in gradients.items() if step.born[key] <= step.peak_event)
        for parameter in net.parameters():
            parameter.grad = None
        with Trace(net.eval(), extra, counting=False).watching(told) as inference, torch.no_grad():
            net(**told)
        weights, given = nbytes(list(net.parameters())), nbytes(told)
    working = step.peak - at_peak + given
    return Memory(weights, weights, 2 * weights, at_peak, kept, working, inference.peak + given)


def forward(net: nn.Module, told: dict[str, Any]) -> Tensor:
    """The loss of one training step."""
    return net(**told).square().mean()


# --- measured --------------------------------------------------------------------------------------------------------


def measure(config: NetworkConfig, batch: int, sides: tuple[int, ...], keeps: bool = False) -> dict[str, int]:
    """Peak bytes of an `inference` and of `training` in a fresh process, over what it has when idle.

    Args:
        config, batch, sides: as for `estimate`.
        keeps: let malloc keep what is freed, as it does unless told otherwise; else what is freed goes back to the
            system at once, and the peak is what was alive.

    Raises:
        MemoryLimitError: the process was killed, or could not allocate.
    """
    task = {"config": config.model_dump(mode="json"), "batch": batch, "sides": sides}
    run = subprocess.run(
        [sys.executable, "-m", "diffunet.analysis.memory"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        env=os.environ | ({} if keeps else {"MALLOC_MMAP_THRESHOLD_": "131072"}),
    )
    if run.returncode:
        last = (run.stderr.strip().splitlines() or [f"it ended with {run.returncode}"])[-1]
        raise MemoryLimitError(f"the measured process failed ({last}); measure a smaller --size or --batch-size")
    peaks: dict[str, int] = json.loads(run.stdout)
    return peaks


def _resident(key: str) -> int:
    """Bytes that this process has (VmRSS), or has had at most since the last reset (VmHWM), on its device."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
        return 1024 * int(line.split()[1])
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: the peak, in bytes


def _made(config: NetworkConfig, batch: int, sides: tuple[int, ...]) -> tuple[nn.Module, dict[str, Any]]:
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return NETWORKS.build(config), inputs(config, batch, sides)


@torch.no_grad()
def _infer(config: NetworkConfig, batch: int, sides: tuple[int, ...]) -> None:
    net, told = _made(config, batch, sides)
    for _ in range(STEPS):
        net.eval()(**told)


def _train(config: NetworkConfig, batch: int, sides: tuple[int, ...]) -> None:
    net, told = _made(config, batch, sides)
    average = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    for _ in range(STEPS):
        optimizer.zero_grad()
        forward(net.train(), told).backward()
        optimizer.step()
        torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in net.parameters()], 0.1)


def _peak(task: Callable[..., None], *arguments: Any) -> int:
    """What a task adds to this process at most."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif STATUS.exists():
        (STATUS.parent / "clear_refs").write_text("5")  # the peak starts anew
    idle = _resident("VmRSS")
    task(*arguments)
    return max(1, _resident("VmHWM") - idle)


def _main() -> None:
    """Read a network from stdin, write its peaks to stdout."""
    task = json.load(sys.stdin)
    config: NetworkConfig = TypeAdapter(NetworkConfig).validate_python(task["config"])
    # code is loaded when it first runs; that belongs to the idle process
    small = UNetConfig(dims=config.dims, base_channels=32, channel_multipliers=(1, 1), blocks_per_level=1)
    _train(small, 1, (8,) * config.dims)
    place = (config, task["batch"], tuple(task["sides"]))
    json.dump({"inference": _peak(_infer, *place), "training": _peak(_train, *place)}, sys.stdout)


def as_json(memory: Memory) -> dict[str, int]:
    """The memory as JSON values."""
    return asdict(memory) | {"training": memory.training, "inference": memory.inference}


if __name__ == "__main__":
    _main()
