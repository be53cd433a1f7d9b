"""Train configs/denoise.toml, measure it on Set12 and BSD68, and write benchmarks/denoising.md with pictures.

    python -m benchmarks.denoising [--data FOLDER] [--run runs/denoise] [--bm3d FILE] [--note TEXT] [--quick] [--json]
                                [--KEY VALUE]

FOLDER holds Train400/, Set12/ and BSD68/; without it, denoising/ of DIFFUNET_DATA is used. A finished run is only
measured again. `--bm3d` adds a row of BM3D on Set12, measured by the package `bm3d` unless FILE has it from before.
`--quick` trains 4 steps into a folder of its own, measures two images of each set and writes nothing here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.puzzles import OURS, PUZZLES, Puzzle, solved
from diffunet import Denoiser, load
from diffunet.data.decode import decode_any
from diffunet.inverse import denoise
from diffunet.metrics.likeness import psnr, ssim
from diffunet.pictures import beside, save_png, to_uint8

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "denoise.toml"
SETS = ("Set12", "BSD68")
SIGMAS = (15, 25, 50)
# Zhang et al.: the figures of the papers' own tables, PSNR in dB at sigma 15, 25 and 50
PUBLISHED = {
    "BM3D (2007)": {"Set12": (32.37, 29.97, 26.72), "BSD68": (31.08, 28.57, 25.60)},
    "DnCNN (2017)": {"Set12": (32.86, 30.44, 27.18), "BSD68": (31.73, 29.23, 26.23)},
    "FFDNet (2018)": {"Set12": (32.75, 30.43, 27.32), "BSD68": (31.63, 29.19, 26.29)},
    "DRUNet (2021)": {"Set12": (33.25, 30.94, 27.90), "BSD68": (31.91, 29.48, 26.59)},
}
BM3D = "BM3D, the package bm3d, here"
EIGHT = "here, mean over the 8 symmetries"
QUICK = ["--train.steps", "4", "--train.held_out_images", "2"]
SHOWN = ((1, 2, 4), (2, 1, 4))  # images of Set12 in the two pictures
CUT = 150  # pixels a side of what is shown

Scores = dict[str, dict[str, list[list[float]]]]  # of a row and a set: PSNR of every image at each sigma


def pictures(folder: Path, most: int | None) -> list[Tensor]:
    """The images of a folder in order of their names, (1, 1, H, W) in [-1, 1]."""
    paths = sorted(folder.glob("*.png"))[:most]
    return [torch.from_numpy(decode_any(str(path), 1, (255, 255, 255), None, 10**8))[None] for path in paths]


def noisy(x0: Tensor, sigma: float, seed: int) -> Tensor:
    """x0 + sigma / 127.5 n, neither clipped nor rounded."""
    return x0 + sigma / 127.5 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))


def likeness(found: Tensor, x0: Tensor) -> tuple[float, float]:
    """PSNR and SSIM of the pictures as they would be written, with 8 bits."""
    image, reference = to_uint8(found)[0], to_uint8(x0)[0]
    return psnr(image, reference), ssim(image, reference) or 0.0


def trained(run: Path) -> Denoiser:
    """The network of a run, computing in bf16 as it did in training: 5 times as fast here, 0.02 of 255 from float32."""
    den = load(run)
    den.network.to(torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return den


def train(run: Path, flags: list[str]) -> None:
    """`diffunet train` into a folder, unless it is done."""
    status = run / "status.json"
    if status.exists() and json.loads(status.read_text())["state"] == "done":
        return
    command = [sys.executable, "-m", "diffunet", "train", str(CONFIG), "--out", str(run), *flags]
    if subprocess.run(command, cwd=HERE.parent).returncode:
        raise SystemExit(f"{' '.join(command)} failed")


def by_bm3d(y: Tensor, sigma: float) -> Tensor:
    """BM3D's answer, which the package wants in [0, 1]."""
    found = importlib.import_module("bm3d").bm3d((y[0, 0].double().numpy() + 1) / 2, sigma / 255)
    return torch.from_numpy(found)[None, None] * 2 - 1


def psnrs(clean: Callable[[Tensor, float], Tensor], images: list[Tensor]) -> list[list[float]]:
    """PSNR of every image at each sigma; image i has noise of seed i."""
    return [[likeness(clean(noisy(x0, s, i), s), x0)[0] for i, x0 in enumerate(images)] for s in SIGMAS]


def by_eight(clean: Callable[[Tensor, float], Tensor], y: Tensor, sigma: float) -> Tensor:
    """The mean of the answers to the eight turns and flips of y, each turned and flipped back."""
    total = torch.zeros_like(y)
    for turns, flip in product(range(4), ((), (3,))):
        answer = clean(torch.rot90(y, turns, (2, 3)).flip(flip), sigma).flip(flip)
        total += torch.rot90(answer, -turns, (2, 3))
    return total / 8


def measure(run: Path, data: Path, most: int | None, bm3d: Path | None) -> Scores:
    """Every denoiser on its sets; BM3D, which takes minutes, on Set12 alone and only where its file is missing."""
    den = trained(run)

    def once(y: Tensor, sigma: float) -> Tensor:
        return denoise(den, y, sigma / 127.5)

    ways = {OURS: once, EIGHT: partial(by_eight, once)}
    scores = {name: {where: psnrs(way, pictures(data / where, most)) for where in SETS} for name, way in ways.items()}
    if bm3d is not None:
        if not bm3d.exists():
            bm3d.write_text(json.dumps({"Set12": psnrs(by_bm3d, pictures(data / "Set12", most))}))
        scores[BM3D] = json.loads(bm3d.read_text())
    return scores


def solve(run: Path, data: Path, most: int | None) -> None:
    """PSNR and SSIM of every puzzle on the images of Set12, into the puzzles."""
    den = trained(run)
    for puzzle in PUZZLES:
        for i, x0 in enumerate(pictures(data / "Set12", most)):
            for name, found in solved(den, puzzle, x0, seed=i):
                puzzle.scores.setdefault(name, []).append(likeness(found, x0))


def cut(x: Tensor) -> np.ndarray:
    """The middle of a picture, (CUT, CUT, 1) uint8."""
    top, left = ((side - CUT) // 2 for side in x.shape[2:])
    return to_uint8(x[..., top : top + CUT, left : left + CUT])[0]


def draw(run: Path, data: Path) -> None:
    """Two pictures: what was done to images, what the network and others made of it, and how they were."""
    den, images, rows = trained(run), pictures(data / "Set12", None), []
    for i in SHOWN[0]:
        found = [(y, denoise(den, y, s / 127.5)) for s in (25, 50) for y in [noisy(images[i], s, i)]]
        rows.append([cut(x) for pair in found for x in pair] + [cut(images[i])])
    save_png(beside(rows), HERE / "denoising.png")
    rows = []
    for puzzle, i in zip(PUZZLES, SHOWN[1], strict=True):
        measured = F.interpolate(puzzle.operator(tuple(images[i].shape[1:]))(images[i]), size=images[i].shape[2:])
        answers = [found for _, found in solved(den, puzzle, images[i], seed=i)]
        rows.append([cut(x) for x in (measured, *answers, images[i])])
    save_png(beside(rows), HERE / "denoising_restored.png")


def mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.2f}"


def noise_table(scores: Scores) -> list[str]:
    """The page's first table."""
    head = ["", *(f"{where}, {sigma}" for where in SETS for sigma in SIGMAS)]
    rows = [
        [name, *("-" if where not in own else mean(own[where][i]) for where in SETS for i in range(len(SIGMAS)))]
        for name, own in scores.items()
    ]
    rows += [[name, *(f"{value:.2f}" for where in SETS for value in own[where])] for name, own in PUBLISHED.items()]
    return table([head, *rows])


def puzzle_table() -> list[str]:
    """The page's second table."""
    head = ["Set12", "baseline", "its PSNR", "its SSIM", "PSNR here", "SSIM here", "gain in dB"]
    rows = []
    for puzzle in PUZZLES:
        pairs = [zip(*puzzle.scores[name], strict=True) for name in (puzzle.baseline, OURS)]
        (old, old_ssim), (new, new_ssim) = ([list(values) for values in pair] for pair in pairs)
        gain = f"{sum(new) / len(new) - sum(old) / len(old):+.2f}"
        similar = [f"{sum(values) / len(values):.4f}" for values in (old_ssim, new_ssim)]
        rows.append([puzzle.title, puzzle.baseline, mean(old), similar[0], mean(new), similar[1], gain])
    return table([head, *rows])


def table(rows: list[list[str]]) -> list[str]:
    """Markdown; the first row is the head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


def took(run: Path) -> dict[str, Any]:
    """What training took: steps, seconds of them, images, and the network's parameters."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    config = json.loads((run / "config.json").read_text())
    return {
        "steps": len(records),
        "minutes": sum(record["seconds"] for record in records) / 60,
        "patches": len(records) * config["train"]["batch_size"],
        "parameters": sum(value.numel() for value in load(run).network.parameters()),
        "held_out": [(r["step"], r["held_out"]["loss"]) for r in records if "held_out" in r],
    }


def page(scores: Scores, training: dict[str, Any], settings: list[str], note: str) -> str:
    """benchmarks/denoising.md."""
    steps = "; ".join(f"{puzzle.title}: {asked(puzzle)}" for puzzle in PUZZLES)
    loss = " ".join(f"{value:.4f}" for _, value in training["held_out"])
    every = training["held_out"][0][0] if training["held_out"] else 0
    return "\n".join(
        [
            "# Denoising, super-resolution and inpainting by one small network",
            "",
            " ".join(["Made by `python -m benchmarks.denoising", *settings]) + "`, which runs",
            "",
            "    diffunet train configs/denoise.toml",
            "",
            f"on 380 images of BSD's Train400 (180 x 180 grey): {training['steps']:,} steps of 8 patches of 64 x 64, "
            f"{training['patches']:,} patches in all, in {training['minutes']:.0f} minutes of stepping by one thread, "
            f"bf16; {training['parameters']:,} parameters. Set12 and BSD68 were looked at by the final weights alone; "
            "network, learning rate and the settings below were chosen in short trials, judged on images of Train400 "
            "that were not trained on.",
            "",
            "The network is a diffusion model on a schedule whose largest noise is 75 of 255. Denoising is one call at "
            "the time whose noise is the picture's; one network does all levels and is told which.",
            "",
            "## Gaussian noise: PSNR in dB",
            "",
            *noise_table(scores),
            "",
            "Columns: set, sigma of 255. Noise is added to images in [-1, 1] as sigma / 127.5, neither clipped nor "
            "rounded, of seed i for image i. The network computes in bf16; its answer is written with 8 bits and "
            "compared over the whole image, peak 255; then the mean over images. The lower rows are the papers' "
            "figures, whose noise was another draw.",
            "",
            "![noisy, denoised and clean](denoising.png)",
            "",
            f"Middle {CUT} x {CUT} pixels: noise of 25, denoised; noise of 50, denoised; clean.",
            "",
            "## The same weights on other losses",
            "",
            *puzzle_table(),
            "",
            "PSNR and SSIM over the whole image as written with 8 bits. The small picture is made by the antialiased "
            f"bicubic kernel, without noise. Each walk begins with the baseline's answer. {steps}.",
            "",
            "![what was measured, the baseline, the network, the original](denoising_restored.png)",
            "",
            f"Middle {CUT} x {CUT} pixels, a row for each line of the table: what was measured, the baseline's answer, "
            "the network's, the original.",
            "",
            "## Training",
            "",
            f"Held-out loss every {every:,} steps: {loss}. torch {torch.__version__}, {platform.machine()}, "
            f"{os.cpu_count()} cores shared with other work. {note}".rstrip(),
            "",
        ]
    )


def asked(puzzle: Puzzle) -> str:
    """How the network was asked, in words."""
    options = ", ".join(f"{key} {value:g}" for key, value in puzzle.method.items() if key != "kind")
    told = f", told of noise of {puzzle.sigma:g}" if puzzle.sigma else ""
    return f"{puzzle.method['kind']} ({options}), {puzzle.steps} steps from sigma {puzzle.start:g}{told}"


def main() -> int:
    """Run it all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.denoising")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--run", type=Path, default=Path("runs/denoise"))
    parser.add_argument("--bm3d", type=Path, help="JSON file of BM3D's scores; made where it is missing")
    parser.add_argument("--note", default="", help="what else the page should say of the training")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments, keys = parser.parse_known_args()
    root = os.environ.get("DIFFUNET_DATA")
    data = arguments.data or Path(root or "data") / "denoising"
    run, flags, most = arguments.run, ["--data.path", str((data / "Train400").resolve()), *keys], None
    if arguments.quick:
        run, flags, most = Path("runs/denoise-quick"), [*flags, *QUICK], 2
    train(run.resolve(), flags)
    begun = time.perf_counter()
    scores = measure(run, data, most, arguments.bm3d)
    solve(run, data, most)
    if arguments.json:
        solved = {puzzle.title: puzzle.scores for puzzle in PUZZLES}
        print(json.dumps({"denoising": scores, "puzzles": solved, "seconds": time.perf_counter() - begun}))
    if not arguments.quick:
        settings = [*(["--bm3d FILE"] if arguments.bm3d else []), *keys]
        (HERE / "denoising.md").write_text(page(scores, took(run), settings, arguments.note))
        draw(run, data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
