"""Time our UNet beside diffusers' UNet2DModel with the same weights, and write benchmarks/speed.md.

    python -m benchmarks.speed [--quick] [--json] [--seconds 90]

Both run in this process on one thread in float32, in turn: ours, theirs, theirs, ours. What counts is CPU time, so that
other work on the machine is not counted, and the ratio within each turn, so that a slow minute slows both. The figure
is the median of the ratios with its 95 % interval (order statistics). The exit code is 1 where a whole interval lies
above LIMIT. `--quick` takes a minute, judges and writes nothing, and its intervals are the range of three turns.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from torch.nn import functional as F

from diffunet import UNet, compat
from diffunet.interop import diffusers as hub
from diffunet.spec import InBlock, ResidualBlock, SelfAttention, UNetConfig
from diffunet.zoo import preset

HERE = Path(__file__).parent
LIMIT = 1.03
FEWEST, QUICK = 7, 3  # turns; with fewer than 7 the 95 % interval is wider than what was seen
WHATS = ("forward", "training step")
HEADER = [
    "| network | images | parameters | | diffunet | diffusers | ratio | 95 % interval | turns |",
    "|---|---|---|---|---|---|---|---|---|",
]
CASES: dict[str, tuple[UNetConfig, int, int]] = {  # network, batch, side
    "small": (preset("small", UNetConfig), 8, 32),
    "ddpm-cifar10": (preset("ddpm-cifar10", UNetConfig), 4, 32),
    "resampling in the blocks": (
        UNetConfig(
            base_channels=64,
            channel_multipliers=(1, 2, 3, 4),
            attention_levels=(2, 3),
            attention=SelfAttention(head_channels=64),
            block=ResidualBlock(condition="scale_shift"),
            down=InBlock(),
            up=InBlock(),
        ),
        2,
        64,
    ),
}


@dataclass(frozen=True)
class Measure:
    """Median milliseconds of both, and the median of the ratios within its interval."""

    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    turns: int


def both(config: UNetConfig) -> tuple[UNet, Any]:
    """Our network and theirs with the same weights, none of them zero."""
    torch.manual_seed(0)
    net = UNet(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return net, hub.to_unet2d(net)


def forwards(models: tuple[UNet, Any], x: torch.Tensor, t: torch.Tensor) -> list[Callable[[], torch.Tensor]]:
    """A forward pass of each, in eval mode."""
    ours, theirs = (model.eval() for model in models)
    return [torch.no_grad()(lambda: ours(x, t)), torch.no_grad()(lambda: theirs(x, t, return_dict=False)[0])]


def training_steps(models: tuple[UNet, Any], x: torch.Tensor, t: torch.Tensor) -> list[Callable[[], None]]:
    """A training step of each: forward, mean squared error, backward, AdamW."""
    noise = torch.randn_like(x)

    def step(model: Any, optimizer: torch.optim.Optimizer, guess: Callable[[], torch.Tensor]) -> None:
        optimizer.zero_grad()
        F.mse_loss(guess(), noise).backward()
        optimizer.step()

    ours, theirs = (model.train() for model in models)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-5) for model in (ours, theirs)]
    return [
        lambda: step(ours, optimizers[0], lambda: ours(x, t)),
        lambda: step(theirs, optimizers[1], lambda: theirs(x, t, return_dict=False)[0]),
    ]


def seconds(call: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    start = process_time()
    call()
    return process_time() - start


def compare(calls: list[Callable[[], Any]], budget: float) -> Measure:
    """Take turns until `budget` seconds are over, after one turn that does not count."""
    ours, theirs = calls
    times: list[tuple[float, float]] = []
    gc.collect()
    gc.disable()
    try:
        end = perf_counter() + budget
        while len(times) <= (FEWEST if budget else QUICK) or perf_counter() < end:
            first, second, third, fourth = (seconds(call) for call in (ours, theirs, theirs, ours))
            times.append(((first + fourth) / 2, (second + third) / 2))
    finally:
        gc.enable()
    times = times[1:]
    ratios, n = sorted(a / b for a, b in times), len(times)
    rank = max(0, math.floor((n - 1.96 * math.sqrt(n)) / 2))
    mine, other = (1000 * median(side) for side in zip(*times, strict=True))
    return Measure(mine, other, median(ratios), ratios[rank], ratios[n - 1 - rank], n)


def measure(config: UNetConfig, batch: int, side: int, budget: float) -> dict[str, Any]:
    """Both measures of one case."""
    models = both(config)
    x, t = torch.randn(batch, config.in_channels, side, side), torch.linspace(0, 999, batch).long()
    ours, theirs = (call() for call in forwards(models, x, t))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    size = {"parameters": sum(p.numel() for p in models[0].parameters()), "batch": batch, "side": side}
    calls: dict[str, Callable[..., list[Callable[[], Any]]]] = {"forward": forwards, "training step": training_steps}
    return size | {what: vars(compare(calls[what](models, x, t), budget)) for what in WHATS}


def rows(name: str, result: dict[str, Any]) -> list[str]:
    """A case's rows of Markdown."""
    size = f"{name} | {result['batch']} of {result['side']}x{result['side']} | {result['parameters']:,}"
    lines = []
    for what in WHATS:
        m = Measure(**result[what])
        times = f"{m.ours:.1f} ms | {m.theirs:.1f} ms"
        lines.append(f"| {size} | {what} | {times} | {m.ratio:.3f} | {m.low:.3f} to {m.high:.3f} | {m.turns} |")
    return lines


def page(results: dict[str, dict[str, Any]], budget: float) -> str:
    """benchmarks/speed.md."""
    lines = [
        "# Speed beside diffusers",
        "",
        f"Made by `python -m benchmarks.speed --seconds {budget:g}`: our UNet and diffusers' UNet2DModel with the same "
        "weights (their outputs are equal to 1e-5), in one process, one thread, float32, in turns of ours, theirs, "
        "theirs, ours. Times are medians of CPU time; the ratio is the median over turns of ours to theirs, below 1 "
        f"where ours is faster. A training step is forward, loss, backward and AdamW. torch {torch.__version__}, "
        f"diffusers {compat.diffusers().__version__}, {platform.machine()}.",
        "",
        *HEADER,
        *(row for name, result in results.items() for row in rows(name, result)),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run it all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=90, help="of each measure")
    arguments = parser.parse_args()
    budget, results = 0 if arguments.quick else arguments.seconds, {}
    torch.set_num_threads(1)
    lines = sys.stderr if arguments.json else sys.stdout
    print("\n".join(HEADER), file=lines)
    for name, (config, batch, side) in CASES.items():
        results[name] = measure(config, batch, side, budget)
        print("\n".join(rows(name, results[name])), file=lines, flush=True)
    if arguments.json:
        print(json.dumps(results))
    if arguments.quick:
        return 0
    (HERE / "speed.md").write_text(page(results, budget))
    slow = [f"{n}, {w}" for n, r in results.items() for w in WHATS if r[w]["low"] > LIMIT]
    if slow:
        print(f"slower than {LIMIT} of diffusers' time: {'; '.join(slow)}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
