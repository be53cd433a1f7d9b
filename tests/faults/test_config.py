"""Row group C: T8, a config is right or is answered with exit 2 by the key that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults import small
from tests.training.conftest import Zygote

soak = pytest.mark.soak


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=soak)])
def test_every_mistaken_config_is_answered_by_its_key(zygote: Zygote, tmp_path: Path, count: int) -> None:
    """T8: exit 0 or 2 only, a key named every time, 95 of 100 within a second, and nothing was made."""
    code = zygote.start([tmp_path, count], tmp_path / "log", call="tests.faults.configs:main").wait(1500)
    assert code == 0, (tmp_path / "log").read_text()
    found = json.loads((tmp_path / "results").read_text())
    assert not found["bad"], "\n".join(found["bad"])
    assert set(found["codes"]) == {"0", "2"}
    assert found["codes"]["2"] > count // 2
    assert found["p95"] < 1
    assert not found["made"]


def test_another_config_cannot_take_over_a_run(zygote: Zygote, calm: Path, run: Path) -> None:
    """C6: keys that leave the training alone may change and are taken over; every other is shown old -> new."""
    log, command = run.parent / "log", ["train", run.parent / "small.toml", "--out", run]
    said = small.again(zygote, [*command, "--train.learning_rate", "0.5"], log, 4)
    assert "train.learning_rate: 0.001 -> 0.5" in said
    assert "--out for a new" in said
    small.again(zygote, [*command, "--train.keep_checkpoints", "3"], log)
    small.same_end(calm, run)
