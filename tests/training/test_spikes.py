"""A sudden large loss: noted, left out, or undone by going back, as the config says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diffunet.cli import main
from diffunet.training.checkpoint import steps
from diffunet.training.compare import difference
from diffunet.training.indexstream import index_at
from diffunet.training.stepper import Stepper
from tests.training.runs import metrics, tensors, write_config

WINDOW = ("--train.spike.window", "4", "--train.spike.policy")


def spike(patch: pytest.MonkeyPatch, *places: int, factor: float = 50) -> None:
    """Make the loss of the samples at some places of the stream (in steps, from 0) many times what it is."""
    right = Stepper._loss

    def wrong(self: Stepper, *args: Any) -> torch.Tensor:
        return right(self, *args) * (factor if self.counters.place in places else 1)

    patch.setattr(Stepper, "_loss", wrong)


def train(folder: Path, policy: str, *flags: str, run: str = "run", **changes: str) -> int:
    config = str(write_config(folder, **changes))
    return main(["train", config, "--out", str(folder / run), *WINDOW, policy, *flags])


def events(run: Path, *kinds: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event for event in found if event["kind"] in kinds]


def test_a_warning_names_the_images_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spike(monkeypatch, 10)
    assert train(tmp_path, "warn", steps="16") == 0
    assert train(tmp_path, "off", steps="16", run="off") == 0
    assert difference(tmp_path / "off", tmp_path / "run") is None or "state.json" in str(
        difference(tmp_path / "off", tmp_path / "run")
    ), "only what the guard remembers may differ"
    (event,) = events(tmp_path / "run", "spike")
    assert event["step"] == 11
    assert event["indices"] == [index_at(0, place, 1438) for place in range(120, 132)]
    assert event["loss"] > 10 * event["typical"] > 0
    assert event["policy"] == "warn"
    assert not events(tmp_path / "off", "spike")


def test_skip_leaves_the_step_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spike(monkeypatch, 10)
    assert train(tmp_path, "skip", "--train.keep_checkpoints", "99", steps="12", checkpoint_every="1") == 0
    before, after = (tensors(tmp_path / "run", step) for step in (10, 11))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [r["step"] for r in metrics(tmp_path / "run") if r.get("skipped")] == [11]


def test_rewind_goes_back_and_on_with_later_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spike at step 11 leads back to step 8; steps 9, 10, ... then see the data of places 11, 12, ..."""
    spike(monkeypatch, 10)
    assert train(tmp_path, "rewind", "--train.keep_checkpoints", "99", steps="16") == 0
    run = tmp_path / "run"
    (event,) = events(run, "rewound")
    assert (event["step"], event["left"]) == (8, 11)
    assert [r["step"] for r in metrics(run)] == list(range(1, 17)), "each step stands once"
    assert not any(r.get("skipped") for r in metrics(run))
    state = json.loads((run / "checkpoints" / "step-00000016" / "state.json").read_text())
    assert (state["counters"]["shift"], state["counters"]["rewinds"], state["counters"]["skipped"]) == (3, 1, 0)


def test_a_rewound_run_that_is_stopped_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the checkpoint after the rewind, and from the one that it went back to: the run ends the same."""
    spike(monkeypatch, 10)
    constant = ("--train.lr_schedule", "constant", "--train.keep_checkpoints", "99")
    assert train(tmp_path, "rewind", *constant, steps="16") == 0
    for cut in ("12", "10"):
        assert train(tmp_path, "rewind", *constant, steps=cut, run=cut) == 0
        assert train(tmp_path, "rewind", *constant, steps="16", run=cut) == 0
        found = difference(tmp_path / "run", tmp_path / cut)
        assert found is None or found.what.startswith("held_out"), f"{cut}: {found}"
        last = [tensors(tmp_path / name, 16) for name in ("run", cut)]
        assert all(torch.equal(value, last[1][name]) for name, value in last[0].items()), cut


def test_too_many_rewinds_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spike(monkeypatch, 10, 14, 18, 22, 26)
    assert train(tmp_path, "rewind", "--train.spike.rewinds", "2", steps="24") == 6
    error = capsys.readouterr().err.splitlines()[-1]
    assert "after 2 rewinds (train.spike.rewinds)" in error
    assert "lower train.learning_rate" in error
    assert len(events(tmp_path / "run", "rewound")) == 2


def test_the_last_good_checkpoint_outlives_a_spike_that_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses rise for good at step 11: of the checkpoints before it, the newest is not rotated away meanwhile."""
    spike(monkeypatch, *range(10, 99))
    flags = ("--train.spike.window", "40", "--train.keep_checkpoints", "2")
    assert train(tmp_path, "warn", *flags, steps="30", checkpoint_every="2") == 0
    assert not events(tmp_path / "run", "spike"), "40 losses are not seen yet"
    flags = ("--train.spike.window", "12", "--train.keep_checkpoints", "2")
    assert train(tmp_path, "warn", *flags, steps="18", checkpoint_every="2", run="kept") == 0
    assert events(tmp_path / "kept", "spike")[0]["step"] == 11
    assert steps(tmp_path / "kept" / "checkpoints") == [10, 16, 18]


def test_without_a_checkpoint_to_go_back_to_the_step_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spike(monkeypatch, 5)
    assert train(tmp_path, "rewind", steps="8", checkpoint_every="100") == 0
    assert [r["step"] for r in metrics(tmp_path / "run") if r.get("skipped")] == [6]
    assert not events(tmp_path / "run", "rewound")
