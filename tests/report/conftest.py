"""The zygote of the training tests, and run folders made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.conftest import zygote  # noqa: F401 (a fixture here too)

Make = Callable[..., Path]


def records(steps: int, every: int = 100) -> list[dict[str, Any]]:
    """Metrics of a run that goes well: a falling loss with noise, and a look at the held-out images now and then."""
    noise = np.random.default_rng(0).lognormal(0, 0.1, steps)
    found: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        mean = 0.1 + math.exp(-step / (steps / 4))
        record: dict[str, Any] = {"step": step, "loss": mean * float(noise[step - 1]), "lr": 1e-3, "grad_norm": 1.0}
        record |= {"seconds": 0.03, "data_seconds": 0.001}
        if step % every == 0:
            bins = [round(mean * (b + 1) / 5, 6) for b in range(10)]
            record |= {"held_out": {"loss": mean, "bins": bins}, "seen": {"loss": 0.95 * mean, "bins": bins}}
            record |= {"memory": 2**28, "watch_seconds": 0.1}
        found.append(record)
    return found


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a run folder: config and status as given, metrics and events as lines."""

    def write(
        metrics: list[dict[str, Any]],
        events: tuple[dict[str, Any], ...] = (),
        config: dict[str, Any] | None = None,
        status: dict[str, Any] | None = None,
    ) -> Path:
        run = tmp_path / "run"
        run.mkdir()
        config = config or {"run": {"name": "made", "task": "diffusion"}, "train": {"steps": 1000, "batch_size": 64}}
        (run / "config.json").write_text(json.dumps(config))
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in metrics))
        (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        if status is not None:
            (run / "status.json").write_text(json.dumps(status))
        return run

    return write
