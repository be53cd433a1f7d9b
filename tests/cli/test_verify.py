"""`diffunet verify`: what it prints, draws and says to programs, and its exit code where a sampler is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from diffunet import Denoiser, Schedule, save
from diffunet.cli import main
from diffunet.samplers import SAMPLERS
from diffunet.samplers.base import Leg
from tests import tiny

KEYS = {"sampler", "schedule", "spacing", "prediction", "order_declared", "order_measured", "error"}


class Wrong(SAMPLERS["ddim"]):  # type: ignore[misc]
    """DDIM whose steps end 1 % too far out."""

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        legs = super().legs(schedule, times)
        return [leg._replace(end=tuple((name, 1.01 * value) for name, value in leg.end)) for leg in legs]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model on straight paths, in the folder where one stands."""
    monkeypatch.chdir(tmp_path)
    save(Denoiser(tiny.unet(), Schedule.flow(), "flow", clip=(-1.0, 1.0)), "weights.safetensors")
    return Path("weights.safetensors")


def test_a_run_is_verified_on_its_own_schedule(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(weights), "--sampler", "ddim", "--sampler", "euler"]) == 0
    said = capsys.readouterr().out
    assert "the network guesses flow and is told 1 to 1000" in said
    assert "flow(time_scale=1000.0): all 28 rows are right" in said
    assert [line.split()[:2] for line in said.splitlines() if line.startswith(("ddim ", "euler "))] == [
        ["ddim", "1"],
        ["euler", "1"],
    ]
    assert "wrote verify.png" in said
    assert Path("verify.png").read_bytes().startswith(b"\x89PNG")
    assert max(map(len, said.splitlines())) <= 125


def test_a_broken_sampler_changes_the_exit_code(
    weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["verify", str(weights), "--sampler", "ddim", "--out", "a.svg"]
    monkeypatch.setitem(SAMPLERS, "ddim", Wrong)
    assert main([*command, "--json"]) == 6
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert not result["passed"]
    assert len(result["rows"]) == 14
    assert all(row.keys() >= KEYS and row["wrong"] for row in result["rows"])
    assert result["files"] == ["a.svg"]
    assert captured.err == "diffunet: error[E-NUMERIC]: 14 rows are off; see the table\n"


def test_what_cannot_be_verified_is_refused(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code, words in [
        (["nowhere"], 4, "nowhere does not exist"),
        (["--sampler", "dimm"], 2, "did you mean 'ddim'"),
        ([str(weights), "--out", "a.jpg"], 2, "name a .png or an .svg"),
    ]:
        assert main(["verify", *arguments]) == code
        assert words in capsys.readouterr().err


def test_without_matplotlib_there_is_a_table_and_no_picture(
    weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["verify", str(weights), "--sampler", "ddim", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["passed"]
    assert result["files"] == []
