"""Held-out loss and Frechet distance against the length of the average: every length made of what one run stored.

    python -m benchmarks.averages --run RUN [--at-step N] [--seeds 3] [--quick] [--json]

RUN is a finished run with snapshots, such as that of

    diffunet train configs/digits.toml --out RUN --train.lr_schedule constant --ema.sigma_rel 0.05,0.1
        --ema.snapshot_every 50

The distance is that of `diffunet evaluate`: as many samples as there are held-out images, on the same features; all
lengths draw from the same seeds, each repeat from others. The loss is on all held-out images, with the same noises and
times for all. What is measured is kept in RUN/averages.json, so that a measurement that was stopped goes on. `--quick`
measures two lengths by the loss alone and writes no page.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from diffunet import Denoiser, data
from diffunet.cli.averages import open_average
from diffunet.cli.evaluate import labels_of, stack
from diffunet.cli.sample import choose_labels, draw
from diffunet.metrics import image_count
from diffunet.metrics.distances import frechet_distance
from diffunet.metrics.extractors import RealImages, build
from diffunet.objectives import Objective
from diffunet.spec import RunConfig
from diffunet.training.monitor import Draws, Loss
from diffunet.training.runfolder import read_config
from diffunet.training.snapshots import plan, reconstruct, stored

matplotlib.use("Agg")
from matplotlib import pyplot

HERE = Path(__file__).parent
LENGTHS = (0.05, 0.1, 0.07, 0.15, 0.03, 0.2, 0.02, 0.085, 0.06, 0.12, 0.04, 0.25, 0.015, 0.01)  # dearest first
PLAIN = {"raw": "raw weights", "ema": "average with a warm-up"}
BATCH = 350  # an image does not depend on it


class Ruler:
    """Measures denoisers as `diffunet evaluate` and the held-out loss of a training do."""

    def __init__(self, config: RunConfig) -> None:
        split = data.load(config.data)
        assert split.held_out is not None, "the run holds images out"
        self.config, self.n = config, image_count(config.evaluate, len(split.train), len(split.held_out))
        held_out, train = stack(split.held_out), stack(split.train)
        train_labels, held_out_labels = labels_of(split.train, split.held_out)
        self.extractor = build(config.evaluate, RealImages(train, train_labels, held_out, held_out_labels))
        self.real = self.extractor.features(held_out, BATCH)
        generator = torch.Generator().manual_seed(config.evaluate.seed)
        # `diffunet evaluate` shuffles the held-out images before it draws those of the floor
        _, order = (torch.randperm(len(images), generator=generator) for images in (held_out, train))
        self.floor = frechet_distance(self.extractor.features(train[order[: self.n]], BATCH), self.real)
        draws = Draws(np.random.default_rng(0), len(held_out), split.held_out.shape)
        objective, everything = Objective.of(config.objective), np.arange(len(held_out))
        self.losses = Loss(split.held_out, everything, draws, config, objective, torch.device("cpu"))

    def loss(self, den: Denoiser) -> float:
        """Of all held-out images."""
        return float(self.losses(den)["loss"])  # type: ignore[arg-type]

    def distance(self, den: Denoiser, repeat: int) -> float:
        """Frechet distance of samples from seeds of their own for each repeat."""
        sample, seeds = self.config.sample, list(range(repeat * self.n, (repeat + 1) * self.n))
        images = draw(
            den,
            seeds,
            sampler=sample.sampler,
            steps=sample.steps,
            spacing=sample.spacing,
            guidance=sample.guidance,
            batch_size=BATCH,
            labels=choose_labels(den, seeds, None),
            watch=lambda progress: None,
        )
        return frechet_distance(self.extractor.features(images.clamp(-1, 1), BATCH), self.real)


def candidates(run: Path, at_step: int | None, lengths: tuple[float, ...]) -> Iterator[tuple[str, float, Any]]:
    """Name, error of the profile, and what opens it; raw weights and the warm-up average are of the last step alone."""
    snapshots = stored(run, at_step)
    for length in lengths:
        recipe = plan(snapshots, length)
        yield f"{length:.3f}", recipe.error, partial(reconstruct, recipe)
    for name in PLAIN if at_step is None else ():
        yield name, 0.0, partial(open_average, run, name)


def measure(run: Path, at_step: int | None, lengths: tuple[float, ...], repeats: int) -> dict[str, Any]:
    """By name: `loss`, `distances` and `lack`, the error of the profile; under "floor" that of the distance."""
    path = run / (f"averages@{at_step}.json" if at_step else "averages.json")
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    ruler = Ruler(read_config(run))
    opened = list(candidates(run, at_step, lengths))
    found["floor"] = ruler.floor

    def once(name: str, opener: Callable[[], Denoiser], repeat: int) -> None:
        den, have = opener().eval(), found[name]
        have.setdefault("loss", ruler.loss(den))
        if repeat >= len(have["distances"]):
            have["distances"].append(ruler.distance(den, repeat))
        path.write_text(json.dumps(found))
        print(f"{name}: {have}", file=sys.stderr, flush=True)

    for repeat in range(-1, repeats):  # first every loss, which takes a second
        for name, lack, opener in opened:
            have = found.setdefault(name, {"lack": lack, "distances": []})
            if "loss" not in have or repeat >= len(have["distances"]):
                once(name, opener, repeat)
    return found


def mean(values: list[float]) -> float:
    """Of at least one."""
    return sum(values) / len(values)


def error(values: list[float]) -> float:
    """Standard error of the mean; 0 where one value says nothing of it."""
    spread = sum((v - mean(values)) ** 2 for v in values)
    return math.sqrt(spread / (len(values) - 1) / len(values)) if len(values) > 1 else 0.0


def powers(found: dict[str, Any]) -> list[str]:
    """Names of the lengths, shortest first."""
    return sorted(name for name in found if name not in (*PLAIN, "floor"))


def shown(values: list[float]) -> str:
    """Mean, and its error where there are several."""
    return f"{mean(values):.3f}" + (f" +- {error(values):.3f} ({len(values)})" if len(values) > 1 else "")


def against(found: dict[str, Any], one: str, other: str) -> str:
    """How much less the distance of one is than the other's, seed by seed."""
    a, b = found[one]["distances"], found[other]["distances"]
    return shown([y - x for x, y in zip(a, b, strict=False)])


def figure(found: dict[str, Any], marked: list[str], path: Path) -> None:
    """Loss and distance against length, the stored ones marked; raw weights, warm-up average and floor as lines."""
    canvas, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), dpi=110, layout="constrained")

    def panel(axes: Any, value: Callable[[dict[str, Any]], float], spread: Callable[[dict[str, Any]], float]) -> None:
        for names, style, words in ((None, "o-", "made afterwards"), (marked, "D", "stored during training")):
            own = [n for n in powers(found) if n in (names or found) and (axes is left or found[n]["distances"])]
            x, y, e = ([f(n) for n in own] for f in (float, lambda n: value(found[n]), lambda n: spread(found[n])))
            ring = {"ms": 9, "mfc": "none", "color": "tab:red", "zorder": 3} if names else {"ms": 4, "yerr": e}
            axes.errorbar(x, y, fmt=style, capsize=2, label=words, **ring)
        for (name, words), line in zip(PLAIN.items(), ("--", "-."), strict=True):
            if name in found and (axes is left or found[name]["distances"]):
                axes.axhline(value(found[name]), color="0.4", ls=line, lw=1, label=words)
        ticks = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.25)
        axes.set(xscale="log", xlim=(0.009, 0.28), xlabel="length of the average, sigma_rel")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)

    panel(left, lambda have: have["loss"], lambda have: 0.0)
    left.set_ylabel("loss on held-out images (less is better)")
    left.legend(frameon=False)
    panel(right, lambda have: mean(have["distances"]), lambda have: error(have["distances"]))
    right.axhline(found["floor"], color="tab:green", lw=1, label="floor: training images")
    right.set_ylabel("Frechet distance of samples (less is better)")
    right.legend(frameon=False)
    canvas.savefig(path)


def page(config: RunConfig, found: dict[str, Any], marked: list[str], step: int, note: str) -> str:
    """benchmarks/averages.md."""
    names, train = powers(found), config.train
    known = {name: have["distances"] for name, have in found.items() if name in names and have["distances"]}
    by_loss = min(names, key=lambda name: found[name]["loss"])
    best = min(known, key=lambda name: mean(known[name]))
    near = min(marked, key=lambda name: mean(known[name]))
    rows = ["| weights | error of the profile | held-out loss | Frechet distance |", "|---|---|---|---|"]
    for name in [*names, *(name for name in PLAIN if name in found)]:
        have, words = found[name], PLAIN.get(name, f"{name}, stored" if name in marked else name)
        d = have["distances"]
        rows.append(f"| {words} | {100 * have['lack']:.2g} % | {have['loss']:.5f} | {shown(d) if d else '-'} |")
    gain = f", by {against(found, best, near)} below the best stored length, {near}" if best != near else ", stored"
    counts = sorted({len(values) for values in known.values()})
    lines = [
        "# Averages of any length",
        "",
        f"Made by `python -m benchmarks.averages`, on a run of `{config.run.name}` at step {step:,}: {train.steps:,} "
        f"steps of {train.batch_size} images, learning rate {train.learning_rate:g} ({train.lr_schedule}), which kept "
        f"the averages of length {' and '.join(marked)} (power-function profiles, EDM2). All other lengths were made "
        "afterwards, by `diffunet ema`, of their snapshots.",
        "",
        "![loss and distance against length](averages.png)",
        "",
        *rows,
        "",
        f"Frechet distance: mean of {' or '.join(map(str, counts))} repeat(s), with its standard error and their "
        "number where there are several; the seeds are the same for all weights. Floor (training images in place of "
        f"samples) {found['floor']:.3f}. Of the lengths measured it is lowest at {best}{gain}. "
        f"The held-out loss is lowest at {by_loss} ({found[by_loss]['loss']:.5f}).",
        *(["", note] if note else []),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run it all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.averages")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--at-step", type=int)
    parser.add_argument("--seeds", type=int, default=3, help="repeats")
    parser.add_argument("--note", default="", help="a last paragraph of the page")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    run, at_step = arguments.run, arguments.at_step
    config = read_config(run)
    lengths = LENGTHS[:2] if arguments.quick else LENGTHS
    found = measure(run, at_step, lengths, 0 if arguments.quick else arguments.seeds)
    if arguments.json:
        print(json.dumps(found))
    if not arguments.quick:
        marked = [f"{length:.3f}" for length in config.ema.sigma_rel]
        figure(found, marked, HERE / "averages.png")
        text = page(config, found, marked, stored(run, at_step)[-1].step, arguments.note)
        (HERE / "averages.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
