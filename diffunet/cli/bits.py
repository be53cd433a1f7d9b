"""`diffunet evaluate RUN --bits-per-dim`: the likelihood of held-out images, by the bound and by the flow."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffunet import data
from diffunet.cli.options import report
from diffunet.cli.runs import device, open_denoiser
from diffunet.errors import ConfigError, DataError
from diffunet.likelihood import Likelihood, flow, variational
from diffunet.spec import RunConfig
from diffunet.storage import write_file

IMAGES, TIMES = 128, 100  # by default: some minutes on a CPU for a small network


def evaluate_bits(
    run: Path, config: RunConfig, given: dict[str, Any], times: int | None, out: Path | None, as_json: bool
) -> None:
    """Measure and print the bits per dimension of a run's held-out images.

    Raises:
        ConfigError: options that are for samples.
        DataError: no, or not as many, held-out images.
    """
    if foreign := [f"--{name}" for name in given if name not in ("n", "seed")]:
        raise ConfigError(f"{', '.join(foreign)}: for samples; --bits-per-dim takes --n, --seed and --times")
    split = data.load(config.data)
    if split.held_out is None:
        raise DataError(f"{run} holds out no images (data.held_out = 0), so there is nothing to measure")
    held_out, wanted = split.held_out, given.get("n")
    if wanted is not None and wanted > len(held_out):
        raise ConfigError(f"--n {wanted} needs {wanted} held-out images, found {len(held_out)}")
    count, seed = wanted or min(IMAGES, len(held_out)), given.get("seed", config.evaluate.seed)
    den = open_denoiser(run)
    x0 = torch.stack([torch.from_numpy(held_out[i]) for i in range(count)])
    levels = levels_of(x0, held_out.value_range)
    told = den.num_classes is not None and held_out.labels is not None
    cond = {"class_labels": torch.from_numpy(held_out.labels[:count]).to(device())} if told else {}
    shared: dict[str, Any] = {"levels": levels, "seed": seed, "batch_size": config.sample.batch_size, **cond}
    x0, found = x0.to(device()), {}
    if config.process.schedule.kind in discrete():
        found["bound"] = variational(den, x0, times=times or TIMES, **shared)
    for start in ("noise", "data" if levels is None else "uniform"):
        found[f"flow, {start}"] = flow(den, x0, start=start, tolerance=1e-4, **shared)
    result = {
        "run": str(run),
        "images": count,
        "seed": seed,
        "levels": levels,
        "given_class": told,
        "t_min": den.schedule.t_min,
        "bits_per_dim": {name: _as_json(value) for name, value in found.items()},
    }
    write_file(out or run / "bits_per_dim.json", (json.dumps(result, indent=2) + "\n").encode())
    report(result, _table(result, den.schedule.sigma(den.schedule.t_min)), as_json)


def discrete() -> set[str]:
    """Kinds of schedule that are a chain of steps, and so have a bound."""
    from diffunet.schedules import SCHEDULES, Discrete

    return {kind for kind, part in SCHEDULES.items() if issubclass(part, Discrete)}


def levels_of(x0: Tensor, value_range: tuple[float, float]) -> int | None:
    """How many grey values the data has: the whole numbers of its range, where all its values are such; else None.

    The digits of scikit-learn count dots in 4 x 4 squares, 0 to 16, and so have 17; 8-bit images have 256.
    """
    low, high = value_range
    stored = low + (x0.double() + 1) / 2 * (high - low)
    whole = low == round(low) and high == round(high) and bool((stored - stored.round()).abs().max() < 0.01)
    return round(high - low) + 1 if whole and high - low >= 1 else None


def _as_json(found: Likelihood) -> dict[str, Any]:
    parts = {name: round(float(value.mean()), 6) for name, value in found.parts.items()}
    error = found.error
    return {"mean": found.mean, "error": error if math.isfinite(error) else None, "parts": parts}


def _table(result: dict[str, Any], sigma: float) -> str:
    found, levels = result["bits_per_dim"], result["levels"]
    names = list(dict.fromkeys(part for value in found.values() for part in value["parts"]))
    names.sort(key=lambda name: (name == "prior", name.startswith("t "), name))
    of = "continuous values on [-1, 1]: bits of a density" if levels is None else f"{levels} grey values"
    told = ", each given its class" if result["given_class"] else ""
    lines = [f"bits per dimension of {result['images']} held-out images, averaged weights{told}; {of}"]
    lines.append(" " * 14 + "".join(f"{name:>16}" for name in found))
    errors = ("" if value["error"] is None else f" +- {value['error']:.3f}" for value in found.values())
    sums = (f"{value['mean']:.3f}" for value in found.values())
    lines.append(f"{'in all':14}" + "".join(f"{a + b:>16}" for a, b in zip(sums, errors, strict=True)))
    for name in names:
        cells = (value["parts"].get(name) for value in found.values())
        lines.append(f"  {name:12}" + "".join(f"{'-' if cell is None else f'{cell:.3f}':>16}" for cell in cells))
    if "bound" not in found:
        lines.append("no bound: the schedule has no steps of its own")
    lines.append(f"The flow is followed to t = {result['t_min']:g}, sigma = {sigma:.4g}; the threshold of x0 is kept.")
    return "\n".join(lines)
