"""What a run does when the disk is full, the data changed, or fp16 overflows; and what it logs of its gradients."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffunet.cli import main
from diffunet.training import program
from diffunet.training.checkpoint import newest, steps
from diffunet.training.compare import difference
from diffunet.training.stepper import Stepper
from tests.training.runs import metrics, tensors, write_config
from tests.training.test_recovery import largest_file


def train(folder: Path, *flags: str, run: str = "run", **changes: str) -> int:
    return main(["train", str(write_config(folder, **changes)), "--out", str(folder / run), *flags])


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event for event in found if event["kind"] == kind]


# --- a full disk ------------------------------------------------------------------------------------------------------


def test_a_run_may_go_on_over_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoints of steps 4 and 8 do not fit, later ones do: the run ends as one that had the room."""
    assert train(tmp_path, run="golden") == 0
    right = Stepper.__call__

    def freed(self: Stepper, *args: Any) -> Any:
        if self.counters.step == 9:
            room.__exit__(None, None, None)
        return right(self, *args)

    monkeypatch.setattr(Stepper, "__call__", freed)
    room = largest_file(20_000)
    room.__enter__()
    assert train(tmp_path, "--train.on_full_disk", "continue") == 0
    assert [event["step"] for event in events(tmp_path / "run", "disk_full")] == [4, 8]
    assert "need " in events(tmp_path / "run", "disk_full")[0]["message"]
    assert difference(tmp_path / "golden", tmp_path / "run") is None


def test_the_last_checkpoint_must_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with largest_file(20_000):
        assert train(tmp_path, "--train.on_full_disk", "continue", steps="6") == 5
    assert "error[E-STORAGE]" in capsys.readouterr().err.splitlines()[-1]


# --- data that changed ------------------------------------------------------------------------------------------------


def pictures(folder: Path, count: int) -> None:
    """Grey noise, in ten class folders."""
    for i in range(count):
        (folder / f"class{i % 10}").mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"class{i % 10}" / f"{i}.png")


def test_changed_files_are_counted_and_may_be_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One more, two fewer, one edited: refused, and nothing is touched; then allowed, and noted."""
    pictures(tmp_path / "data", 30)
    flags = ["--data.name", "folder", "--data.path", str(tmp_path / "data"), "--data.cache", "off"]
    assert train(tmp_path, *flags, steps="4") == 0
    data = tmp_path / "data"
    for number in (3, 4):
        (data / f"class{number}" / f"{number}.png").unlink()
    shutil.copy(data / "class6" / "6.png", data / "class5" / "5.png")
    Image.new("L", (8, 8)).save(data / "class0" / "new.png")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert train(tmp_path, *flags, steps="8") == 4
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the data changed" in error
    assert "+1 -2 ~1 (first: +class0/new.png, -class3/3.png, ~class5/5.png)" in error
    assert "data.allow_change" in error
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert train(tmp_path, *flags, "--data.allow_change", "true", steps="8") == 0
    assert "+1 -2 ~1" in events(tmp_path / "run", "data_changed")[0]["message"]
    assert len(metrics(tmp_path / "run")) == 8


def test_files_that_were_left_out_are_listed(tmp_path: Path) -> None:
    pictures(tmp_path / "data", 30)
    (tmp_path / "data" / "class0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    flags = ["--data.name", "folder", "--data.path", str(tmp_path / "data"), "--data.cache", "off"]
    assert train(tmp_path, *flags, "--data.bad_files_cap", "0.1", steps="2") == 0
    (line,) = (tmp_path / "run" / "bad_files.jsonl").read_text().splitlines()
    bad = json.loads(line)
    assert bad["path"].endswith("broken.png")
    assert bad["reason"]


# --- fp16's scaler, on the CPU ----------------------------------------------------------------------------------------


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss scale as fp16 has it: torch's own, which works on CPUs too, where the trainer allows no fp16."""
    right = program._accelerator

    def with_scaler(*args: Any) -> Any:
        accelerator = right(*args)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
        return accelerator

    monkeypatch.setattr(program, "_accelerator", with_scaler)


def overflow(patch: pytest.MonkeyPatch, *places: int) -> None:
    """Gradients of some steps (from 0) too large for the scale."""
    right = Stepper._loss

    def wrong(self: Stepper, *args: Any) -> torch.Tensor:
        loss = right(self, *args)
        if self.counters.place in places:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    patch.setattr(Stepper, "_loss", wrong)


def scale_at(run: Path, step: int) -> float:
    return json.loads((run / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())["scaler"]["scale"]


@pytest.mark.usefixtures("scaled")
def test_an_overflow_halves_the_scale_and_leaves_the_step_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overflow(monkeypatch, 5)
    assert train(tmp_path, "--train.keep_checkpoints", "99", steps="8", checkpoint_every="1") == 0
    run = tmp_path / "run"
    assert [scale_at(run, step) for step in (3, 4, 5, 6, 7)] == [1024, 2048, 2048, 1024, 1024]
    before, after = (tensors(run, step) for step in (5, 6))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [r["step"] for r in metrics(run) if r.get("skipped")] == [6]


@pytest.mark.usefixtures("scaled")
def test_the_scale_goes_through_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overflow(monkeypatch, 2, 9)
    assert train(tmp_path, steps="12", run="golden") == 0
    constant = ("--train.lr_schedule", "constant")
    for run, cuts in (("golden", ("12",)), ("run", ("6", "12"))):
        shutil.rmtree(tmp_path / run, ignore_errors=True)
        for cut in cuts:
            assert train(tmp_path, *constant, steps=cut, run=run) == 0
    assert scale_at(tmp_path / "run", 12) == scale_at(tmp_path / "golden", 12)
    a, b = (tensors(tmp_path / run, 12) for run in ("golden", "run"))
    assert all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.usefixtures("scaled")
def test_a_scale_below_the_floor_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overflow(monkeypatch, *range(5, 99))
    assert train(tmp_path, "--train.scaler_floor", "300.0") == 6
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the loss scale of fp16 fell to 256, below train.scaler_floor" in error
    found, _ = newest(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert all(torch.isfinite(value).all() for value in tensors(tmp_path / "run", found.step).values())
    assert steps(tmp_path / "run" / "checkpoints") == [4, 8] or found.step == 4


# --- the gradient noise scale -----------------------------------------------------------------------------------------


def test_the_noise_scale_is_logged_and_goes_through_a_checkpoint(tmp_path: Path) -> None:
    flags = ("--train.noise_scale", "true", "--train.accumulation", "3", "--train.lr_schedule", "constant")
    assert train(tmp_path, *flags, steps="8", run="golden") == 0
    assert train(tmp_path, *flags, steps="5") == 0
    assert train(tmp_path, *flags, steps="8") == 0
    logged = [[r["noise_scale"] for r in metrics(tmp_path / run)] for run in ("golden", "run")]
    assert logged[0] == logged[1]
    assert any(value is not None and value > 0 for value in logged[0])


def test_measuring_the_noise_changes_no_bit(tmp_path: Path) -> None:
    flags = ("--train.accumulation", "3")
    assert train(tmp_path, *flags, "--train.noise_scale", "true", steps="4", run="a") == 0
    assert train(tmp_path, *flags, steps="4", run="b") == 0
    a, b = (tensors(tmp_path / run, 4) for run in ("a", "b"))
    assert all(torch.equal(value, b[name]) for name, value in a.items())
