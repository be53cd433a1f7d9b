"""A run heeds a signal wherever it is: while it draws a preview, and at once where it is asked twice."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

from diffunet.training.checkpoint import newest
from tests.training.conftest import Zygote, wait_for
from tests.training.runs import assert_same_run, metrics, write_config


def test_a_preview_gives_way_to_a_signal(zygote: Zygote, golden: Path, tmp_path: Path) -> None:
    """Each takes half a minute here; the run ends within a step, and goes on as if it had drawn none."""
    run, config = tmp_path / "run", write_config(tmp_path, preview_every="1")
    command = ["train", config, "--out", run, "--sample.steps", "1000", "--sample.preview_images", "512"]
    child = zygote.start(command, tmp_path / "log")
    wait_for(lambda: (run / "events.jsonl").exists() and "started" in (run / "events.jsonl").read_text())
    time.sleep(1)  # through the first step and into its preview, after which its line is written
    begun = time.monotonic()
    child.kill(signal.SIGTERM)
    assert child.wait() == 143
    assert time.monotonic() - begun < 10
    assert len(metrics(run)) == 2, "the step after the preview was cut short"
    assert not list(run.glob("samples/*")), "half a preview was written"
    assert "step 2 is saved" in (tmp_path / "log").read_text()
    assert metrics(run) == metrics(golden)[:2]


def test_a_second_interrupt_stops_at_once_without_damage(zygote: Zygote, golden: Path, tmp_path: Path) -> None:
    run, command = tmp_path / "run", ["train", write_config(tmp_path), "--out", tmp_path / "run"]
    for after in (5, 9):
        child = zygote.start(command, tmp_path / "log")
        wait_for(lambda after=after: (run / "metrics.jsonl").exists() and len(metrics(run)) >= after)
        for _ in range(2):
            child.kill(signal.SIGINT)
            time.sleep(0.001)
        assert child.wait() == 130
        assert "Traceback" not in (tmp_path / "log").read_text()
        assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
        found, reasons = newest(run / "checkpoints")
        assert found is not None
        assert not reasons
    assert zygote.run(command, tmp_path / "log") == 0
    assert_same_run(golden, run, 24)
