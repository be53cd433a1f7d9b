"""Kill, starve and deceive four trainers in the same way, and write benchmarks/reliability.md with what became of each.

    python -m benchmarks.reliability [--quick] [--json] [--only NAME] [--kills N] [--flips N]

denoising-diffusion-pytorch is asked where it is installed (`pip install denoising-diffusion-pytorch`). The whole takes
about a quarter of an hour on two cores, `--quick` a minute or two, and writes nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # (torch's optimizers want it, and import it once here)

from benchmarks.reliability_children import Place, toy_images
from benchmarks.reliability_ours import Diffunet
from benchmarks.reliability_probes import PROBES
from benchmarks.reliability_systems import Accelerate, Diffusers, Lucidrains
from diffunet import compat

HERE = Path(__file__).parent
SYSTEMS: dict[str, Callable[[], Any]] = {
    "diffunet": Diffunet,
    "diffusers train_unconditional (pattern)": Diffusers,
    "lucidrains Trainer": Lucidrains,
    "accelerate save_state": Accelerate,
}
INTRO = """# Reliability

Made by `python -m benchmarks.reliability`{quick}, with the same faults for every trainer. What diffunet promises:

- a kill at any time, a full disk or a damaged file costs at most the steps since the last whole checkpoint, and the
  same command goes on by itself, bit for bit;
- every bit of a checkpoint is vouched for: what changed is named and passed over, and nothing of it is loaded;
- nothing that is loaded can run code;
- a step whose loss or gradient is not finite never reaches the weights;
- a file that cannot be read is named.

How it was measured: each trainer trains a network of a few thousand weights on 128 pictures of 8 x 8 pixels, saves
after every step and keeps two checkpoints where it can be told so; it runs in a process of its own, which is killed or
starved. `diffunet train` and denoising-diffusion-pytorch's `Trainer` are the programs themselves; of accelerate and of
diffusers' example the documented loop was written anew, around `save_state` and `load_state` themselves. A resume takes
the newest checkpoint by its name, as each project documents. "newest does not load" is a resume that ends in an error
until somebody removes the newest checkpoint by hand. Bits are flipped, and files cut, one at a time and each file as
often as its size says. A pickle "runs" when a mark that it would leave is there afterwards. The full disk is a limit on
the size of a file.
"""


def preload() -> None:
    """Import once, before the forks, what every child would import again."""
    compat.diffusers()  # where torchvision is of another build than torch, this mends it
    for module in ("diffusers.models.unets.unet_2d", "diffusers.schedulers.scheduling_ddpm", "accelerate.utils"):
        importlib.import_module(module)
    for module in ("diffunet.training.program", "diffunet.cli.train", "PIL.PngImagePlugin", "torch.optim"):
        importlib.import_module(module)


def available() -> dict[str, Any]:
    """Each system, or why it is not here."""
    found: dict[str, Any] = {}
    for name, make in SYSTEMS.items():
        try:
            found[name] = make()
        except (ImportError, PackageNotFoundError) as error:
            found[name] = f"not installed ({error})"
    return found


def measure(counts: dict[str, int], only: str | None) -> dict[str, dict[str, Any]]:
    """System -> its version, seconds and the answer of each probe."""
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = toy_images(Path(folder, "images"))
        for name, system in available().items():
            if isinstance(system, str):
                results[name] = {"version": system, "answers": {}}
                continue
            place = Place(system, Path(folder, name.split()[0]), images, **counts)
            place.root.mkdir()
            answers: dict[str, str] = {}
            begun = time.monotonic()
            for probe, ask in PROBES.items():
                if only in (None, probe):
                    try:
                        answers[probe] = ask(place)
                    except (RuntimeError, OSError, ValueError) as error:
                        answers[probe] = f"not measured: {str(error).splitlines()[0][:100]}"
                    print(f"{name}: {probe}: {answers[probe]}", file=sys.stderr, flush=True)
            results[name] = {"version": system.version, "answers": answers, "seconds": time.monotonic() - begun}
    return results


def page(results: dict[str, dict[str, Any]], counts: dict[str, int], quick: bool) -> str:
    """benchmarks/reliability.md."""
    names = list(results)
    rows = ["| probe | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for probe in PROBES:
        rows.append(f"| {probe} | " + " | ".join(results[n]["answers"].get(probe, "-") for n in names) + " |")
    versions = ", ".join(f"{name} {found['version']}" for name, found in results.items())
    minutes = sum(found.get("seconds", 0) for found in results.values()) / 60
    tail = [
        f"{counts['kills']} kills, {counts['flips']} flips and as many cuts each; a save of {counts['megabytes']} MB "
        "of weights, beside the same bytes written once without hash and sync.",
        "",
        f"Versions: {versions}; torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} cores shared with other work; {minutes:.0f} minutes. Times of saves are noise within a "
        "factor of two; the counts are what they are.",
        "",
    ]
    return "\n".join([INTRO.format(quick=" --quick" if quick else ""), *rows, "", *tail])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions; nothing is written")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--only", help="one probe", choices=list(PROBES))
    parser.add_argument("--kills", type=int, help="how many of them")
    parser.add_argument("--flips", type=int, help="how many flips, and cuts")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    preload()
    torch.set_num_threads(1)
    counts = (
        {"kills": 4, "flips": 30, "megabytes": 20} if options.quick else {"kills": 40, "flips": 300, "megabytes": 200}
    )
    counts |= {name: given for name in ("kills", "flips") if (given := getattr(options, name)) is not None}
    results = measure(counts, options.only)
    text = page(results, counts, options.quick)
    if not (options.quick or options.only):
        (HERE / "reliability.md").write_text(text)
    print(json.dumps(results) if options.json else text)


if __name__ == "__main__":
    main()
