"""Train the Fashion-MNIST recipe, evaluate it, and write benchmarks/first_runs.md with its curve and pictures.

    python -m benchmarks.first_runs DATA [--run runs/fashion_mnist] [--quick] [--json] [--section.key value ...]

DATA is the folder of the four idx files. A finished run is only evaluated again; `--quick` trains 20 steps into a
folder of its own and writes nothing here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from pathlib import Path

import matplotlib
import torch

from diffunet.cli import main as diffunet

matplotlib.use("Agg")
from matplotlib import pyplot

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "fashion_mnist.toml"


def curve(records: list[dict], path: Path) -> None:
    """Training loss (running mean) and held-out loss against the step."""
    figure, axes = pyplot.subplots(figsize=(7, 3.2), dpi=110, layout="constrained")
    steps, losses = [r["step"] for r in records], [r["loss"] for r in records]
    window = max(1, len(losses) // 60)
    smooth = [sum(losses[max(0, i - window) : i + 1]) / (i + 1 - max(0, i - window)) for i in range(len(losses))]
    axes.plot(steps, losses, color="0.8", linewidth=0.6, label="each step")
    axes.plot(steps, smooth, color="tab:blue", label=f"training, mean of {window} steps")
    held = [(r["step"], r["held_out"]["loss"]) for r in records if "held_out" in r]
    axes.plot(*zip(*held, strict=True), "o-", color="tab:red", label="held-out images, averaged weights")
    axes.set(xlabel="step", ylabel="loss (v)", yscale="log")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path)


def evaluation_rows(evaluation: dict) -> list[str]:
    """The evaluation as Markdown rows."""
    rows = ["| metric | samples | floor | ratio |", "|---|---|---|---|"]
    for name, row in evaluation["metrics"].items():
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.3g}"
        rows.append(f"| {name.replace('_', ' ')} | {row['samples']:.4g} | {row['floor']:.4g} | {ratio} |")
    return rows


def page(run: Path, records: list[dict], evaluation: dict, keys: list[str]) -> str:
    """benchmarks/first_runs.md."""
    seconds = sum(r["seconds"] for r in records)
    waiting = sum(r["data_seconds"] for r in records)
    state = next((run / "checkpoints").glob("step-*/state.json")).read_text()
    counters = json.loads(state)["counters"]
    held = [(r["step"], r["held_out"]) for r in records if "held_out" in r]
    table = ["| step | held-out loss | by tenth of the time, clean to noisy |", "|---|---|---|"]
    table += [f"| {s} | {h['loss']:.4f} | {' '.join(f'{b:.3f}' for b in h['bins'])} |" for s, h in held]
    lines = [
        "# First runs",
        "",
        " ".join(["Made by `python -m benchmarks.first_runs DATA", *keys]) + "`, which runs",
        "",
        " ".join(["    diffunet train configs/fashion_mnist.toml --data.path DATA", *keys]),
        "    diffunet evaluate runs/fashion_mnist",
        "",
        f"on the 60,000 training images of Fashion-MNIST: {len(records):,} steps of 64 images in {seconds / 60:.0f} "
        f"minutes of stepping ({1000 * seconds / len(records):.0f} ms a step, {100 * waiting / seconds:.1f} % of it "
        f"waiting for data), {counters['threads']} thread(s), precision {counters['precision']}, "
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores shared with other work. Absolute "
        "times are noise; the losses are exact.",
        "",
        "![loss against step](first_runs_loss.png)",
        "",
        *table,
        "",
        f"`diffunet evaluate`: {evaluation['n']} samples ({evaluation['sampler']}) against as many test images, on "
        f"{evaluation['extractor']}:",
        "",
        *evaluation_rows(evaluation),
        "",
        "The floor is as many random training images in place of the samples; for the nearest training image (median "
        "distance), the test images.",
        "",
        f"Preview at step {records[-1]['step']}, fixed seeds, averaged weights, ten classes in turn:",
        "",
        "![samples](first_runs_samples.png)",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run it all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_runs")
    parser.add_argument("data", type=Path)
    parser.add_argument("--run", type=Path, default=Path("runs/fashion_mnist"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments, keys = parser.parse_known_args()
    run, flags = arguments.run, ["--data.path", str(arguments.data), *keys]
    if arguments.quick:
        run, flags = Path("runs/fashion_mnist-quick"), [*flags, "--train.steps", "20", "--sample.steps", "5"]
    code = diffunet(["train", str(CONFIG), "--out", str(run), *flags])
    code = code or diffunet(["evaluate", str(run), *(["--n", "50"] if arguments.quick else [])])
    if code:
        return code
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluation = json.loads((run / "evaluation.json").read_text())
    if arguments.json:
        print(json.dumps({"last": records[-1], "evaluation": evaluation}))
    if not arguments.quick:
        curve(records, HERE / "first_runs_loss.png")
        shutil.copy(max((run / "samples").glob("step-*.png")), HERE / "first_runs_samples.png")
        (HERE / "first_runs.md").write_text(page(run, records, evaluation, keys))
    return 0


if __name__ == "__main__":
    sys.exit(main())
