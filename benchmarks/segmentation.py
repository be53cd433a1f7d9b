"""Train four networks for equal time on ISBI 2012, and write benchmarks/segmentation.md with scores and pictures.

    python -m benchmarks.segmentation [--data FOLDER] [--minutes 15] [--runs runs/segmentation] [--quick] [--json]

FOLDER holds image/ and label/; without it, that of DIFFUNET_DATA is used, or else the config's own. Time is CPU time of
one thread, so that other work on the machine takes nothing away: a timer of the process stops it by SIGTERM, which
saves its state. The learning rate is constant, since the number of steps is not known before. A finished run is only
evaluated again; `--quick` trains 4 steps each into a folder of its own and writes nothing here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffunet import data, weights
from diffunet.metrics.segmentation import Estimate
from diffunet.pictures import beside, save_png, to_uint8
from diffunet.training.runfolder import read_config

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "segment_isbi.toml"
NETWORKS = {
    "unet-2015": "the U-Net of 2015: valid convolutions, no norm",
    "unet-2015-same": "the same with same padding and group norm",
    "unet-dilated": "no down and up: full resolution throughout, dilated convolutions",
    "unet-plain": "the diffusion U-Net without time",
}
SHOWN = 3  # held-out images in the picture
CUT = 256  # their upper left part


QUICK = ["--train.steps", "4", "--train.held_out_images", "1"]
ENDLESS = ["--train.steps", "1000000", "--train.lr_schedule", "constant"]
# `diffunet` in a process that asks itself to stop after so many seconds of CPU time
TIMED = """
import os, signal, sys
from diffunet.cli import main
signal.signal(signal.SIGPROF, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
signal.setitimer(signal.ITIMER_PROF, float(sys.argv[1]))
sys.exit(main(sys.argv[2:]))
"""


@dataclass
class Trained:
    """What training one network took."""

    steps: int
    cpu_seconds: float
    wall_seconds: float


def program(arguments: list[str], log: Path, seconds: float = 1e6) -> tuple[float, float]:
    """`diffunet ARGUMENTS` with one thread, stopped after some CPU time; the CPU and wall seconds that it took."""
    begun = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TIMED, str(seconds), *arguments]
    with open(log, "a") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        _, status, used = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    process.returncode = code
    if code not in (0, 128 + signal.SIGTERM):
        raise SystemExit(f"diffunet {' '.join(arguments)} ended with {code}; see {log}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - begun


def train(name: str, run: Path, flags: list[str], minutes: float, length: list[str]) -> Trained:
    """Train one network for `minutes` of CPU time at most."""
    note, log = run.with_suffix(".json"), run.with_suffix(".log")
    if note.exists():
        return Trained(**json.loads(note.read_text()))
    run.parent.mkdir(parents=True, exist_ok=True)
    command = ["train", str(CONFIG), "--model.preset", name, "--train.threads", "1", "--out", str(run)]
    taken = program([*command, *length, *flags], log, 60 * minutes)
    steps = len((run / "metrics.jsonl").read_text().splitlines())
    trained = Trained(steps, *taken)
    note.write_text(json.dumps(asdict(trained)))
    return trained


def evaluate(run: Path) -> dict[str, Any]:
    """`diffunet evaluate` of a run, and how many parameters it has."""
    program(["evaluate", str(run)], run.with_suffix(".log"))
    tensors = weights.read_tensors(run / "weights.safetensors")[0]
    parameters = sum(value.numel() for value in tensors.values())
    return json.loads((run / "evaluation.json").read_text()) | {"parameters": parameters}


def judged(found: np.ndarray, label: np.ndarray) -> np.ndarray:
    """A mask as a picture (H, W, 3): black and white where it is right, red and blue where it is not."""
    shown = np.repeat((label[..., None] * 255).astype(np.uint8), 3, axis=-1)
    shown[(found == 0) & (label == 1)] = (220, 40, 40)
    shown[(found == 1) & (label == 0)] = (40, 90, 220)
    return shown


def picture(runs: dict[str, Path], path: Path) -> None:
    """Held-out images, their labels, and what each network found."""
    pairs = data.load(read_config(next(iter(runs.values()))).data).held_out
    models = [weights.load_segmenter(run) for run in runs.values()]
    rows = []
    for i in range(min(SHOWN, len(pairs))):
        image, label = torch.from_numpy(pairs.image(i)), pairs.classes_of(i)
        masks = [label, *(model.classes(image).numpy() for model in models)]
        shown = [to_uint8(image[None])[0], *(judged(mask, label) for mask in masks)]
        rows.append([one[:CUT, :CUT] for one in shown])
    save_png(beside(rows), path)


def cell(estimate: dict[str, Any]) -> str:
    """A mean with its standard error."""
    error = estimate["standard_error"]
    return f"{estimate['mean']:.3f}" + (f" +- {error:.3f}" if error is not None else "")


def difference(scores: dict[str, Any], best: dict[str, Any]) -> Estimate:
    """How much larger the pixel error is than the best network's, slice by slice."""
    pairs = zip(scores["images"], best["images"], strict=True)
    return Estimate.of([one["pixel_error"] - other["pixel_error"] for one, other in pairs])


def page(trained: dict[str, Trained], scores: dict[str, dict[str, Any]], minutes: float, settings: list[str]) -> str:
    """benchmarks/segmentation.md."""
    first = next(iter(scores.values()))
    classes = list(first["classes"])
    names = ", ".join(image["name"].removesuffix(".png") for image in first["images"])
    best = min(scores, key=lambda name: scores[name]["pixel_error"]["mean"])
    head = ["network", *(f"{c} {m}" for c in classes for m in ("Dice", "IoU")), "pixel error", "more than the best"]
    rows = []
    for name, s in scores.items():
        overlaps = [cell(s["classes"][c][m]) for c in classes for m in ("dice", "iou")]
        more = "-" if name == best else cell(difference(s, scores[best]).to_json())
        rows.append([name, *overlaps, cell(s["pixel_error"]), more])
    cost = [["network", "what it is", "parameters", "steps", "CPU minutes", "minutes by the clock"]]
    for name, t in trained.items():
        took = [f"{t.steps:,}", f"{t.cpu_seconds / 60:.1f}", f"{t.wall_seconds / 60:.0f}"]
        cost.append([name, NETWORKS[name], f"{scores[name]['parameters']:,}", *took])
    return "\n".join(
        [
            "# Segmentation: four networks, equal time",
            "",
            " ".join(["Made by `python -m benchmarks.segmentation", *settings]) + "`: membranes in the 30 labelled "
            "slices of ISBI 2012 (512 x 512 grey), 20 to train on and 10 held out by "
            f"`data.seed = {first['split_seed']}`: {names}. "
            "[`configs/segment_isbi.toml`](../configs/segment_isbi.toml) is run four times with another "
            "`--model.preset` each: the same loss, border weights, augmentation, input crops and optimizer, and the "
            f"same time: {minutes:g} CPU minutes of one thread, start and held-out scores included; the learning rate "
            "is constant.",
            "",
            *table([head, *rows]),
            "",
            "Means over the 10 held-out slices +- standard errors; each slice is segmented whole, tile by tile, by the "
            f"averaged weights. Least pixel error: {best}; the last column is how much larger it is for the others, "
            "slice by slice, so that a slice that is hard for all does not count. The error bars are of the choice of "
            "slices only: each network was trained once, and the slices are neighbours in one stack of tissue. The "
            "strength of the border weights (w0 = 2 in place of the paper's 10) was chosen in trials of two minutes "
            "that looked at the same held-out slices; nothing was chosen by the figures here.",
            "",
            *table(cost),
            "",
            f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores shared with other work, which is "
            "why time is CPU time. The presets differ in depth and width as well as in what their names say "
            "(`base_channels` alone is the config's).",
            "",
            "![image, label, and what each network found](segmentation.png)",
            "",
            f"The upper left {CUT} x {CUT} pixels of {SHOWN} held-out slices: image, label, then "
            f"{', '.join(scores)}. Black is membrane and white is cell; red is membrane found where there is none, "
            "blue is membrane missed.",
            "",
        ]
    )


def table(rows: list[list[str]]) -> list[str]:
    """Markdown; the first row is the head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


def main() -> int:
    """Run it all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.segmentation")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/segmentation"))
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--together", type=int, default=2, help="networks that are trained at a time")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments, keys = parser.parse_known_args()
    root = os.environ.get("DIFFUNET_DATA")
    folder = arguments.data or (Path(root) / "isbi2012" / "train" if root else None)
    flags = [*(["--data.path", str(folder)] if folder else []), *keys]
    runs, length = arguments.runs, ENDLESS
    if arguments.quick:
        runs, length = Path("runs/segmentation-quick"), QUICK
    places = {name: runs / name for name in NETWORKS}
    with ThreadPoolExecutor(arguments.together) as pool:
        done = pool.map(lambda n: train(n, places[n], flags, arguments.minutes, length), NETWORKS)
        trained = dict(zip(NETWORKS, done, strict=True))
    scores = {name: evaluate(run) for name, run in places.items()}
    if arguments.json:
        print(json.dumps({name: scores[name] | asdict(trained[name]) for name in NETWORKS}))
    if not arguments.quick:
        settings = [f"--minutes {arguments.minutes:g}", *keys]
        (HERE / "segmentation.md").write_text(page(trained, scores, arguments.minutes, settings))
        picture(places, HERE / "segmentation.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
