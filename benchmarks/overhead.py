"""What a sampler costs beside the network: microseconds a call, beside diffusers' schedulers; writes overhead.md.

    python -m benchmarks.overhead [--quick] [--json] [--rounds 41]

The network is a function that returns a tensor at no cost, and the image is one of 3x8x8, so that what is left is the
sampler: the steps of `Sampler.walk`, as `generate` takes them, and the plan of all legs, which is made once. Theirs is
scale_model_input and step; their set_timesteps is not counted. All run in this process on one
thread, in turns, in CPU time; figures are medians over rounds. The exit code is 1 where a step of DDIM or of the
default sampler costs more than LIMIT of diffusers' DDIM step. `--quick` takes a minute, judges and writes nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from diffunet import Denoiser, Schedule, compat
from diffunet.samplers import SAMPLERS, Noise, Sampler, build

HERE = Path(__file__).parent
LIMIT = 0.35
STEPS, SHAPE = 50, (1, 3, 8, 8)
JUDGED = ("ddim", "arc")
LEFT_OUT = ("diffusers", "rk45")  # the adapter is theirs; rk45 chooses its steps, and asks at a time for each image
QUICK = 5
PEERS: dict[str, tuple[str, dict[str, Any]]] = {  # ours -> theirs, with the options that make it the same rule
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm_solver_2": ("DPMSolverSinglestepScheduler", {"solver_order": 2, "lower_order_final": True}),
    "dpm_solver_3": ("DPMSolverSinglestepScheduler", {"solver_order": 3, "lower_order_final": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {"solver_order": 3}),
    "ipndm": ("PNDMScheduler", {"skip_prk_steps": True}),
}
HEADER = [
    "| sampler | plan | step | of diffusers' DDIM step | theirs | of theirs |",
    "|---|---|---|---|---|---|",
]


class Constant(nn.Module):
    """A network that costs nothing."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, time: Tensor, **cond: Any) -> Tensor:
        """The same tensor always."""
        return self.answer


Timed = Callable[[], tuple[float, int]]  # CPU seconds, and the calls of the network in them


def seconds(call: Callable[[], int]) -> tuple[float, int]:
    """CPU seconds of what counts its calls."""
    start = process_time()
    calls = call()
    return process_time() - start, calls


def steps(rule: Sampler, schedule: Schedule, x: Tensor) -> Timed:
    """Our loop from the second step on: the first one comes with the plan."""
    times, answer = rule.times(schedule, STEPS), 0.1 * torch.ones_like(x)

    def timed() -> tuple[float, int]:
        calls = 0

        def network(x_t: Tensor, t: float) -> Tensor:
            nonlocal calls
            calls += 1
            return answer

        def run() -> int:
            for _ in walk:
                pass
            return calls - first

        walk = rule.walk(network, schedule, x, times, Noise([0]))
        next(walk)
        first = calls
        return seconds(run)

    return timed


def plan(rule: Sampler, schedule: Schedule, x: Tensor) -> Timed:
    """The legs alone."""
    times = rule.times(schedule, STEPS)
    calls = sum(len(leg.stages) for leg in rule.legs(schedule, times))

    def run() -> int:
        rule.legs(schedule, times)
        return calls

    return lambda: seconds(run)


def theirs(name: str, options: dict[str, Any], schedule: Any, x: Tensor) -> Timed:
    """The loop of a diffusers pipeline; each run gets fresh steps, as their schedulers keep state."""
    scheduler = getattr(compat.diffusers(), name)(trained_betas=schedule.betas().float().numpy(), **options)
    answer = 0.1 * torch.ones_like(x)

    def run() -> int:
        sample = x
        for t in scheduler.timesteps:
            scheduler.scale_model_input(sample, t)
            sample = scheduler.step(answer, t, sample, return_dict=False)[0]
        return len(scheduler.timesteps)

    def timed() -> tuple[float, int]:
        scheduler.set_timesteps(STEPS)
        return seconds(run)

    return timed


def conversion(prediction: str, schedule: Schedule, x: Tensor) -> Timed:
    """A Denoiser's share: input, time, conversion and threshold."""
    den = Denoiser(Constant(0.1 * torch.ones_like(x)), schedule, prediction, clip=(-1.0, 1.0))
    times = [(i + 1) / STEPS for i in range(STEPS)]

    def run() -> int:
        for t in times:
            den(x, t)
        return len(times)

    return lambda: seconds(run)


def measure(rounds: int) -> dict[str, float]:
    """Median microseconds a call of everything, taken in turns; names say what: `steps ddim`, `plan ddim`, ..."""
    schedule, x = Schedule.linear(), torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    own = [name for name in SAMPLERS if name not in LEFT_OUT]
    tasks: dict[str, Timed] = {f"steps {name}": steps(build(name), schedule, x) for name in own}
    tasks |= {f"plan {name}": plan(build(name), schedule, x) for name in own}
    tasks |= {f"theirs {name}": theirs(peer, options, schedule, x) for name, (peer, options) in PEERS.items()}
    tasks |= {f"denoiser {prediction}": conversion(prediction, schedule, x) for prediction in ("eps", "x0", "v")}
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds + 1):  # the first one warms caches up, and does not count
            for name, task in tasks.items():
                spent, calls = task()
                if turn:
                    taken[name].append(1e6 * spent / calls)
            gc.collect()
    finally:
        gc.enable()
    return {name: median(values) for name, values in taken.items()}


def rows(found: dict[str, float]) -> list[str]:
    """The table in Markdown, our samplers in the order of their cost."""
    base, lines = found["theirs ddim"], []
    own = sorted((value, name.removeprefix("steps ")) for name, value in found.items() if name.startswith("steps "))
    for stepped, name in own:
        planned = found[f"plan {name}"]
        peer = found.get(f"theirs {name}")
        beside = "- | -" if peer is None else f"{peer:.0f} | {stepped / peer:.2f}"
        lines.append(f"| {name} | {planned:.0f} | {stepped:.0f} | {stepped / base:.2f} | {beside} |")
    return lines


def page(found: dict[str, float], rounds: int) -> str:
    """benchmarks/overhead.md."""
    share = ", ".join(f"{name.removeprefix('denoiser ')} {v:.0f}" for name, v in found.items() if "denoiser" in name)
    judged = ", ".join(f"{name} {found[f'steps {name}'] / found['theirs ddim']:.2f}" for name in JUDGED)
    lines = [
        "# What a sampler costs beside the network",
        "",
        f"Made by `python -m benchmarks.overhead --rounds {rounds}`: microseconds for each call of the network, which "
        f"is a function that costs nothing, over {STEPS} steps on one image of 3x8x8 in float32, linear schedule, one "
        'thread. CPU time, everything in turns, medians. "plan" is what our samplers work out for the whole grid '
        'before the first call, shared among its calls; "step" the loop. "theirs" is scale_model_input and step of the '
        f"diffusers scheduler of the same rule. torch {torch.__version__}, diffusers {compat.diffusers().__version__}, "
        f"{platform.machine()}.",
        "",
        f"Of diffusers' DDIM step ({found['theirs ddim']:.0f} us) a step of ours costs: {judged}; at most {LIMIT} is "
        "asked. Plans are made once for a grid, as their set_timesteps is.",
        "",
        *HEADER,
        *rows(found),
        "",
        f"A `Denoiser` around the network (its input, its time, the conversion, a threshold) takes: {share}.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run it all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=41)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        found = measure(QUICK if arguments.quick else arguments.rounds)
    lines = sys.stderr if arguments.json else sys.stdout
    print("\n".join([*HEADER, *rows(found)]), file=lines)
    if arguments.json:
        print(json.dumps(found))
    if arguments.quick:
        return 0
    (HERE / "overhead.md").write_text(page(found, arguments.rounds))
    slow = [name for name in JUDGED if found[f"steps {name}"] > LIMIT * found["theirs ddim"]]
    if slow:
        print(f"more than {LIMIT} of diffusers' DDIM step: {', '.join(slow)}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
