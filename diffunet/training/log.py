"""What a person and a tracker see of a run: metrics.jsonl, a progress bar, and accelerate's trackers."""

from __future__ import annotations

import sys
import time
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from diffunet.spec import RunConfig
from diffunet.training.runfolder import MetricsFile, RunFolder
from diffunet.training.trackers import track


class Log:
    """One line a step in metrics.jsonl; a bar on a terminal, or a plain line every tenth of the run elsewhere."""

    def __init__(self, config: RunConfig, folder: RunFolder, accelerator: Accelerator, first: int) -> None:
        self.config, self.accelerator, self.made, self.samples = config, accelerator, 0, folder.samples
        self.begun = time.perf_counter()
        self.metrics = MetricsFile(folder.metrics) if accelerator.is_main_process else None
        terminal = accelerator.is_main_process and sys.stderr.isatty()
        self.bar = tqdm(total=config.train.steps, initial=first, unit="step", disable=not terminal, dynamic_ncols=True)
        self.average: float | None = None

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        if self.metrics is not None:
            self.metrics.close()

    def write(self, record: dict[str, Any]) -> None:
        """Note one step; other processes than the main one write nothing."""
        if self.metrics is None:
            return
        self.metrics.write(record)
        step, loss, steps = record["step"], record["loss"], self.config.train.steps
        if loss is not None:
            self.average = loss if self.average is None else self.average + 0.02 * (loss - self.average)
        self.made += 1
        rate = self.made / max(1e-9, time.perf_counter() - self.begun)
        shown = f"loss {self.average or float('nan'):.4f}, {rate * self.config.train.batch_size:.0f} images/s"
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update()
        if self.bar.disable and (step % max(1, steps // 10) == 0 or step == steps):
            print(f"step {step}/{steps}: {shown}, {(steps - step) / rate:.0f} s left", file=sys.stderr, flush=True)
        name = f"step-{step:08d}"
        pictures = {"preview": f"{name}.png", "neighbours": f"{name}-neighbours.png"}
        track(self.accelerator, record, {key: self.samples / file for key, file in pictures.items()})

    def rewind(self, step: int) -> None:
        """Go on from an earlier step, whose later lines are cut off."""
        self.average = None
        self.bar.reset(total=self.config.train.steps)
        self.bar.update(step)

    def sync(self) -> None:
        """Make the lines so far durable."""
        if self.metrics is not None:
            self.metrics.sync()
