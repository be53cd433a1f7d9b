"""Samplers at equal network calls, on exact mixtures and on trained models: writes benchmarks/samplers.md and .png.

    python -m benchmarks.samplers --digits runs/digits --fashion runs/fashion_mnist [--quick] [--workers 2] [--json]

On mixtures: sliced Wasserstein distance to true samples, and root mean square distance from the exact end of the
probability flow. On models: Frechet distance to held-out images, and distance from a fine adaptive solution. `--quick`
takes few samples and calls, and writes nothing here.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.contenders import TWINS, Blobs, contenders, deterministic, sliced_wasserstein, steps_of
from benchmarks.samplers_page import winners, write
from diffunet import Schedule, data, generate, load
from diffunet.cli.evaluate import labels_of, stack
from diffunet.cli.runs import random_label
from diffunet.metrics.distances import frechet_distance
from diffunet.metrics.extractors import RealImages, build
from diffunet.training.runfolder import read_config

BUDGETS = (5, 6, 8, 10, 15, 20, 35, 50, 100)
FEW = 20  # calls up to which every sampler runs on the models
SEEDS = range(1000, 1008)  # of the mixtures and of the noise: none was used in choosing the default's constants
POINTS, IMAGES, FOLLOWED, RESAMPLES = 2048, 256, 32, 40
Cell = dict[str, list[float]]


@lru_cache(maxsize=32)
def mixture(d: int, seed: int) -> tuple[Blobs, Tensor, Tensor, Tensor]:
    """A mixture, unit noise, where the exact flow leads it, and as many true samples."""
    blobs = Blobs(d, seed, Schedule.linear())
    noise = torch.randn(POINTS, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return blobs, noise, blobs.flow(blobs.schedule.sigma(1.0) * noise), blobs.draw(POINTS, seed + 1)


def on_mixtures(d: int, name: str, budget: int) -> Cell | None:
    """Both errors on each mixture; of the exact flow itself where `name` is 'floor'."""
    cell: Cell = {"distribution": [], "flow": []}
    for seed in SEEDS:
        blobs, noise, exact, truth = mixture(d, seed)
        x = exact
        if name != "floor":
            if (steps := steps_of(name, blobs.schedule, budget)) is None:
                return None
            x = generate(blobs, noise.shape, contenders()[name], steps, noise=noise, seed=seed)
        cell["distribution"].append(sliced_wasserstein(x, truth))
        if name != "floor" and deterministic(name):
            cell["flow"].append(float((x - exact).square().mean().sqrt()))
    return cell


class Model:
    """A trained run: its denoiser, labels by seed, features of held-out images, and a fine solution of its flow."""

    def __init__(self, run: str) -> None:
        self.den, config = load(run), read_config(Path(run))
        split = data.load(config.data)
        train, held_out = stack(split.train), stack(split.held_out)  # type: ignore[arg-type]
        real = RealImages(train, labels_of(split.train, split.held_out)[0], held_out, None)
        self.extractor = build(config.evaluate.model_copy(update={"extractor": "random_conv"}), real)
        n = min(IMAGES, len(held_out), len(train))
        self.n, self.labels = n, [random_label(self.den, seed) for seed in range(n)]
        pick = torch.Generator().manual_seed(0)
        chosen, stand_in = (images[torch.randperm(len(images), generator=pick)[:n]] for images in (held_out, train))
        self.real, self.floor = self.extractor.features(chosen, 256), self.extractor.features(stand_in, 256)
        self.exact = self.sample({"kind": "rk45", "tolerance": 1e-5}, 1, min(FOLLOWED, n))

    def sample(self, sampler: Any, steps: int, n: int, fast: bool = False) -> Tensor:
        """Images of the first n seeds; fast: with the network in bfloat16, which Frechet distances do not see."""
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            return generate(self.den, n, sampler, steps, batch_size=64, class_labels=self.labels[:n])


@lru_cache(maxsize=2)
def model(run: str) -> Model:
    """The run, opened once in each process."""
    return Model(run)


def resampled(features: Tensor, real: Tensor) -> list[float]:
    """Frechet distances of the images, and of RESAMPLES draws from them with replacement: the same draws each time."""
    g = torch.Generator().manual_seed(0)
    draws = [torch.arange(len(features))] + [
        torch.randint(len(features), (len(features),), generator=g) for _ in range(RESAMPLES)
    ]
    return [frechet_distance(features[i], real) for i in draws]


def on_model(run: str, name: str, budget: int) -> Cell | None:
    """Frechet distances, and distance from the fine solution; of training images where `name` is 'floor'."""
    opened = model(run)
    if name == "floor":
        return {"distribution": resampled(opened.floor, opened.real), "flow": []}
    if (steps := steps_of(name, opened.den.schedule, budget)) is None:
        return None
    images = opened.sample(contenders()[name], steps, opened.n, fast=True)
    features = opened.extractor.features(images.clamp(-1, 1), 256)
    cell: Cell = {"distribution": resampled(features, opened.real), "flow": []}
    if deterministic(name):
        followed = opened.sample(contenders()[name], steps, len(opened.exact))
        cell["flow"] = (followed - opened.exact).square().flatten(1).mean(dim=1).sqrt().tolist()
    return cell


def measure(task: tuple[str, str, int]) -> tuple[str, str, int, Cell | None]:
    """One cell of the table: target, sampler, budget."""
    warnings.simplefilter("ignore")  # diffusers' schedulers use NumPy in deprecated ways
    torch.set_num_threads(1)
    target, name, budget = task
    part = target.removeprefix("mixture ")
    cell = on_mixtures(int(part), name, budget) if part != target else on_model(target, name, budget)
    return target, name, budget, cell


Table = dict[str, dict[str, dict[int, Cell]]]  # target -> sampler -> budget


def cheap(targets: list[str], budgets: tuple[int, ...]) -> Iterator[tuple[str, str, int]]:
    """Every cell of the mixtures; of the models every sampler that is not another's twin, at few calls."""
    for target in targets:
        exact = target.startswith("mixture")
        names = [name for name in contenders() if exact or name not in TWINS]
        yield target, "floor", 0
        yield from ((target, name, b) for b in sorted(budgets, reverse=True) if exact or b <= FEW for name in names)


def dear(targets: list[str], budgets: tuple[int, ...], table: Table) -> Iterator[tuple[str, str, int]]:
    """Many calls on a model: of each class of samplers the options that were best there at FEW calls."""
    for target in targets:
        best: dict[str, tuple[float, str]] = {}
        for name, row in table[target].items():
            if FEW in row:
                kind = name.split()[0]
                best[kind] = min(best.get(kind, (math.inf, "")), (row[FEW]["distribution"][0], name))
        yield from ((target, name, b) for b in sorted(budgets, reverse=True) if b > FEW for _, name in best.values())


def main() -> None:
    """Measure everything, write the page, print the winners."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", help="a run of configs/digits.toml")
    parser.add_argument("--fashion", help="a run of configs/fashion_mnist.toml")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    named = {"mixture 2": "mixtures, d = 2", "mixture 64": "mixtures, d = 64"}
    named |= {run: name for run, name in ((options.digits, "digits"), (options.fashion, "Fashion-MNIST")) if run}
    budgets = (5, 10) if options.quick else BUDGETS
    table: Table = {}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:

        def run(work: list[tuple[str, str, int]]) -> None:
            for target, name, budget, cell in tqdm(pool.map(measure, work), total=len(work)):
                if cell is not None:
                    table.setdefault(target, {}).setdefault(name, {})[budget] = cell

        run(list(cheap(list(named), budgets)))
        run(list(dear([target for target in named if not target.startswith("mixture")], budgets, table)))
    titled = {named[target]: cells for target, cells in table.items()}
    if not options.quick:
        facts = {"mixtures": len(SEEDS), "points": f"{POINTS:,}", "images": IMAGES, "followed": FOLLOWED}
        write(titled, budgets, Path(__file__).parent, **facts)
    print(json.dumps(titled) if options.json else "\n".join(winners(titled, budgets)))


if __name__ == "__main__":
    main()
