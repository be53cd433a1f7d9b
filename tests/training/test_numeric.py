"""A step whose loss or gradient is not finite never reaches the weights, the average or the moments."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from diffunet import config as configs
from diffunet import load
from diffunet.cli import main
from diffunet.training.indexstream import index_at
from diffunet.training.stepper import Stepper, learning_rate
from tests.training.runs import assert_same_run, metrics, tensors, write_config


def spoil(patch: pytest.MonkeyPatch, faults: dict[int, str]) -> None:
    """Make the loss or the gradient of some steps (from 1) what the fault says: `nan loss`, `inf gradient`, ..."""
    right = Stepper._loss

    def wrong(self: Stepper, *args: Any) -> torch.Tensor:
        loss, (value, what) = right(self, *args), faults.get(self.counters.step + 1, "1 loss").split()
        if what == "loss":
            return loss * float(value)
        loss.register_hook(lambda gradient: gradient * float(value))
        return loss

    patch.setattr(Stepper, "_loss", wrong)


def train(folder: Path, *flags: str, run: str = "run", **changes: str) -> int:
    """Train a tiny run in this process; its exit code."""
    return main(["train", str(write_config(folder, **changes)), "--out", str(folder / run), *flags])


def counters(run: Path, step: int) -> dict[str, Any]:
    return json.loads((run / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())["counters"]


@pytest.mark.parametrize("fault", ["nan loss", "inf loss", "-inf loss", "nan gradient", "inf gradient"])
def test_a_step_that_is_not_finite_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Weights, average and moments stay bit for bit, the rate waits, the step is counted and logged as skipped."""
    spoil(monkeypatch, {3: fault})
    assert train(tmp_path, "--train.keep_checkpoints", "9", steps="6", checkpoint_every="1") == 0
    run = tmp_path / "run"
    before, after, later = (tensors(run, step) for step in (2, 3, 4))
    assert all(torch.equal(before[name], after[name]) for name in before)
    changed = [name for name in after if not torch.equal(after[name], later[name])]
    assert {name.split("/")[0] for name in changed} == {"network", "ema", "optimizer"}
    records = metrics(run)
    assert [r.get("skipped", False) for r in records] == [False, False, True, False, False, False]
    assert records[2]["loss"] is records[2]["grad_norm"] is None
    assert records[3]["lr"] == records[2]["lr"] > records[1]["lr"], "the warm-up counts updates"
    assert [counters(run, s)["skipped"] for s in (2, 3, 6)] == [0, 1, 1]
    assert [counters(run, s)["skipped_in_a_row"] for s in (2, 3, 4)] == [0, 1, 0]


def test_metrics_stay_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {1: "nan loss", 2: "inf gradient"})
    assert train(tmp_path, steps="2") == 0

    def refuse(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_a_run_over_left_out_steps_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two before the checkpoint, one after: the rate, the average and Adam's correction follow the updates."""
    spoil(monkeypatch, {2: "nan loss", 4: "inf gradient", 7: "nan loss"})
    assert train(tmp_path, run="golden", steps="9", checkpoint_every="4") == 0
    run, flags = tmp_path / "run", ["--train.keep_checkpoints", "9"]
    assert train(tmp_path, *flags, steps="9", checkpoint_every="4") == 0
    for step in (8, 9):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    assert counters(run, 4)["skipped"] == 2
    assert train(tmp_path, *flags, steps="9", checkpoint_every="4") == 0
    assert "resuming at step 4" in capsys.readouterr().out
    assert counters(run, 9)["skipped"] == 3
    assert_same_run(tmp_path / "golden", run, 9)


def test_too_many_in_a_row_stop_the_run_and_name_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        spoil(patch, dict.fromkeys(range(6, 100), "nan loss") | {3: "nan loss"})
        assert train(tmp_path, "--train.nonfinite_limit", "3", steps="12") == 6
    error, run = capsys.readouterr().err.splitlines()[-1], tmp_path / "run"
    assert error.startswith("diffunet: error[E-NUMERIC]: loss or gradient was not finite in 3 steps in a row")
    assert "last in step 8 (lr 0." in error
    assert f"training images {[index_at(0, 7 * 12 + i, 1438) for i in range(8)]}" in error
    assert "lower train.learning_rate" in error
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["code"]) == ("failed", 6, "E-NUMERIC")
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000004"]
    assert all(torch.isfinite(value).all() for value in tensors(run, 4).values())
    assert train(tmp_path, "--train.nonfinite_limit", "3", steps="12") == 0, "the last checkpoint is good"
    assert [r["step"] for r in metrics(run)] == list(range(1, 13))


def test_forty_random_faults_leave_nothing_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)
    kinds = ["nan loss", "inf loss", "-inf loss", "nan gradient", "inf gradient"]
    faults = {step: chance.choice(kinds) for step in chance.sample(range(1, 81), 40)}
    spoil(monkeypatch, faults)
    assert train(tmp_path, "--train.accumulation", "2", steps="80", checkpoint_every="20", batch_size="2") == 0
    run = tmp_path / "run"
    assert {r["step"] for r in metrics(run) if r.get("skipped")} == set(faults)
    for step in (60, 80):
        assert all(torch.isfinite(value).all() for value in tensors(run, step).values())
    assert all(torch.isfinite(p).all() for p in load(run).network.parameters())
    assert counters(run, 80)["skipped"] == 40


# --- the learning rate ------------------------------------------------------------------------------------------------


def rates(**train_section: Any) -> list[float]:
    config = configs.resolve({"train": {"steps": 100, "learning_rate": 1.0, "warmup_steps": 10, **train_section}})
    return [learning_rate(config, update) for update in range(config.train.steps)]


def test_the_rate_warms_up_and_falls_as_a_cosine() -> None:
    found = rates()
    assert found[:10] == pytest.approx([0.1 * (n + 1) for n in range(10)])
    assert found[10] == 1
    assert found[55] == pytest.approx(0.5)
    assert found[10:] == sorted(found[10:], reverse=True)
    assert 0 < found[-1] < 0.001


def test_the_rate_may_be_constant() -> None:
    found = rates(lr_schedule="constant", warmup_steps=0)
    assert found == [1.0] * 100


@pytest.mark.parametrize("steps", [1, 5, 10])
@pytest.mark.parametrize("lr_schedule", ["cosine", "constant"])
def test_a_warm_up_longer_than_the_run_is_no_contradiction(steps: int, lr_schedule: str) -> None:
    found = rates(steps=steps, lr_schedule=lr_schedule)
    assert found == pytest.approx([0.1 * (n + 1) for n in range(steps)])
    assert all(math.isfinite(rate) for rate in found)
