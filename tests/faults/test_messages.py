"""T18: whatever goes wrong, the right exit code and at most six lines: what, where (a path or key), and what to do.

What the other files of this folder provoke is held to the same form (`small.message`); here stand the errors that need
no run, and those of a run that is there.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from diffunet.cli import main
from tests.faults import small


def damaged(run: Path) -> list[object]:
    for path in run.glob("checkpoints/*/manifest.json"):
        path.write_text("{}")
    return ["train", run.parent / "small.toml", "--out", run]


def without_checkpoints(run: Path) -> list[object]:
    shutil.rmtree(run / "checkpoints")
    return ["train", run.parent / "small.toml", "--out", run]


def other_network(run: Path) -> list[object]:
    config = json.loads((run / "config.json").read_text())
    config["model"]["base_channels"] = 8
    (run / "config.json").write_text(json.dumps(config))
    return ["train", run / "config.json", "--out", run]


def broken_config(run: Path) -> list[object]:
    (run / "config.json").write_text("{")
    return ["train", run.parent / "small.toml", "--out", run]


def foreign_weights(run: Path) -> list[object]:
    safetensors.torch.save_file({"w": torch.zeros(1)}, run / "weights.safetensors")
    return ["sample", run]


def cut_weights(run: Path) -> list[object]:
    os.truncate(run / "weights.safetensors", 999)
    return ["sample", run]


def pickled(run: Path) -> list[object]:
    (run / "w.pt").write_bytes(pickle.dumps({"w": 1}))
    return ["sample", run / "w.pt"]


def in_the_way(run: Path) -> list[object]:
    (run.parent / "file").write_text("mine")
    return ["train", run.parent / "small.toml", "--out", run.parent / "file"]


def train(*flags: object) -> Callable[[Path], list[object]]:
    return lambda run: ["train", run.parent / "small.toml", "--out", run.parent / "new", *flags]


# row of the matrix -> how to provoke it, the exit code, and the place that must be named
CASES: dict[str, tuple[Callable[[Path], list[object]], int, str]] = {
    "C1 unknown key": (train("--train.lerning_rate", "1"), 2, "learning_rate"),
    "C1 unknown flag": (train("--steps", "3"), 2, "--train.steps"),
    "C1 unknown command": (lambda run: ["trian"], 2, "train"),
    "C1 unknown sampler": (train("--sample.sampler", "dimm"), 2, "sample.sampler"),
    "C2 wrong type": (train("--train.steps", "many"), 2, "train.steps"),
    "C3 contradiction": (train("--train.batch_size", "10", "--train.accumulation", "3"), 2, "batch_size"),
    "C4 huge": (train("--model.base_channels", "16384", "--model.channel_multipliers", "[1,2,4]"), 2, "model"),
    "C5 no such file": (lambda run: ["train", run / "none.toml"], 2, "none.toml"),
    "C6 another config": (lambda run: [*damaged(run), "--train.seed", "7"], 4, "train.seed"),
    "D8 no such folder": (train("--data.name", "folder", "--data.path", "/nowhere"), 3, "/nowhere"),
    "N5 fp16": (train("--train.precision", "fp16"), 2, "train.precision"),
    "S3 a file in the way": (in_the_way, 5, "file"),
    "S7 no whole checkpoint": (damaged, 4, "checkpoints"),
    "S7 no checkpoint": (without_checkpoints, 4, "checkpoints"),
    "S9 another network": (other_network, 4, "checkpoints"),
    "S9 a broken config.json": (broken_config, 4, "config.json"),
    "M1 a pickle": (pickled, 7, "w.pt"),
    "M1 weights of others": (foreign_weights, 4, "weights.safetensors"),
    "S5 weights cut short": (cut_weights, 4, "weights.safetensors"),
    "S5 no weights": (lambda run: ["sample", run / "checkpoints"], 4, "checkpoints"),
    "S5 no run": (lambda run: ["evaluate", run.parent], 4, "config.json"),
    "C2 seeds": (lambda run: ["sample", run, "--seeds", "3-x"], 2, "seeds"),
}


# they say what is wrong and where, and not yet what to do
UNTAUGHT: set[str] = set()
marked = [
    pytest.param(c, marks=pytest.mark.xfail(strict=True, reason="no advice")) if c in UNTAUGHT else c for c in CASES
]


@pytest.mark.parametrize("case", marked)
def test_every_message_teaches(run: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    provoke, code, place = CASES[case]
    command = [str(word) for word in provoke(run)]
    assert main(command) == code, capsys.readouterr().err
    said = capsys.readouterr().err
    assert place in small.message(said)
    assert main([*command, "--json"]) == code
    answer = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert answer["exit_code"] == code
    assert place in answer["message"]
