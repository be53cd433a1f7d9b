"""Row group N: numbers that are not, T10."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import safetensors.torch

from tests.faults import ranks, small
from tests.training.conftest import Zygote

soak = pytest.mark.soak
KINDS = ["nan loss", "inf loss", "-inf loss", "nan gradient", "inf gradient"]


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=soak)])
def test_faults_of_either_rank_are_left_out_by_both(zygote: Zygote, tmp_path: Path, count: int) -> None:
    """T10: of two ranks one sees the fault; both skip, and no saved tensor is ever not finite."""
    run, chance, steps = tmp_path / "run", random.Random(count), 2 * count
    chosen = chance.sample(range(2, steps), count)
    faults: dict[int, list[dict]] = {}
    for rank in range(2):
        spoilt = {str(step): chance.choice(KINDS) for step in chosen[rank::2]}
        faults[rank] = [{"kind": "spoil", "rank": rank, "steps": spoilt}]
    flags = ["--train.checkpoint_every", "10", "--train.keep_checkpoints", "10000", "--train.nonfinite_limit", "1000"]
    command = ["train", small.write_config(tmp_path, steps), "--out", run, *flags]
    children = ranks.start(zygote, command, tmp_path, faults)
    assert [child.wait(900) for child in children] == [0, 0], ranks.said(tmp_path)
    assert [r["step"] for r in small.records(run) if r.get("skipped")] == sorted(chosen)
    assert len(small.events(run, "skipped")) == count
    saved = [*run.glob("checkpoints/*/*.safetensors"), run / "weights.safetensors"]
    assert len(saved) >= 3 * steps // 10
    for path in saved:
        for name, value in safetensors.torch.load_file(path).items():
            assert value.isfinite().all(), (path, name)


def scale(run: Path, step: int) -> float:
    """The factor of the loss in a checkpoint."""
    return json.loads(small.newest_of(run, step)["state.json"])["scaler"]["scale"]


def test_an_overflow_halves_the_scale_and_goes_on_exactly(zygote: Zygote, tmp_path: Path) -> None:
    """N3: the step is left out, the scale is part of a checkpoint, and the run after a stop is the run without one."""
    command = ["train", small.write_config(tmp_path, 8), "--train.keep_checkpoints", "99", "--out"]
    faults = [
        {"kind": "scaler", "scale": 1024.0},
        {"kind": "spoil", "steps": {"3": "inf gradient", "6": "nan gradient"}},
    ]
    small.again(zygote, [*command, tmp_path / "whole"], tmp_path / "log", faults=faults)
    assert [scale(tmp_path / "whole", step) for step in range(1, 9)] == [1024.0] * 2 + [512.0] * 3 + [256.0] * 3
    assert [r["step"] for r in small.records(tmp_path / "whole") if r.get("skipped")] == [3, 6]
    run = Path(shutil.copytree(tmp_path / "whole", tmp_path / "run"))
    for step in range(5, 9):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    small.again(zygote, [*command, run], tmp_path / "log", faults=faults)
    small.same_end(tmp_path / "whole", run, 8)


def test_a_scale_below_its_floor_ends_the_run(zygote: Zygote, tmp_path: Path) -> None:
    """N3: where every step overflows the scale would fall for ever."""
    run = tmp_path / "run"
    steps = {str(step): "inf gradient" for step in range(4, 100)}
    faults = [{"kind": "scaler", "scale": 8.0}, {"kind": "spoil", "steps": steps}]
    command = ["train", small.write_config(tmp_path), "--out", run, "--train.scaler_floor", "1"]
    said = small.again(zygote, command, tmp_path / "log", 6, faults=faults)
    assert "train.scaler_floor" in said
    assert "step 7" in said
    found = small.whole(run)
    assert found is not None
    assert small.status(run)["code"] == "E-NUMERIC"
