"""A config says what is wrong with it: every mistake at once, each by its key, before torch is imported."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffunet import config as configs
from diffunet.cli import main
from diffunet.errors import ConfigError
from diffunet.spec.explain import keys

SMALL: dict[str, Any] = {"model": {"in_channels": 1, "out_channels": 1, "base_channels": 32}}


def message(table: dict[str, Any], base: dict[str, Any] = SMALL) -> str:
    """What the error of a config says."""
    with pytest.raises(ConfigError) as caught:
        configs.resolve(configs.merge(base, table), "x.toml")
    assert str(caught.value).count("\n") <= 5, "more than six lines"
    return str(caught.value)


# --- unknown keys and names -------------------------------------------------------------------------------------------

TYPOS = [
    ({"train": {"lerning_rate": 1e-4}}, "unknown key 'train.lerning_rate'; did you mean 'learning_rate'?"),
    ({"trian": {"steps": 3}}, "unknown key 'trian'; did you mean 'train'?"),
    ({"model": {"block": {"grups": 8}}}, "unknown key 'model.block.grups'; did you mean 'groups'?"),
    ({"process": {"learning_rate": 1e-4}}, "unknown key 'process.learning_rate'; did you mean 'train.learning_rate'?"),
    ({"process": {"schedule": {"kind": "linear", "zyx": 0.1}}}, "known keys: kind, T, zero_terminal_snr"),
    (
        {"process": {"schedule": {"kind": "linear", "s": 0.1}}},
        "'process.schedule.s' for kind 'linear'; kind 'cosine' has",
    ),
    ({"process": {"schedule": "cosin"}}, "process.schedule = 'cosin': did you mean 'cosine'? one of: linear"),
    ({"sample": {"sampler": "dimm"}}, "sample.sampler = 'dimm': did you mean 'ddim'? one of: arc, ddpm"),
    ({"train": {"precision": "bf17"}}, "train.precision = 'bf17': did you mean 'bf16'?"),
    ({"model": {"preset": "smal"}}, "model.preset: unknown preset 'smal'; did you mean 'small'? one of: ddpm-cifar10"),
    ({"model": {"preset": "unet-2015"}}, "preset 'unet-2015' is a 'classic' network, not a 'unet' one"),
    ({"model": {"": 1}}, "unknown key 'model.'"),
    ({"model": {"1": 1}}, "unknown key 'model.1'"),
    ({"run": {"name": "../up"}}, 'run.name = "../up": should match pattern'),
]


@pytest.mark.parametrize(("table", "expected"), TYPOS)
def test_an_unknown_name_is_answered_with_the_nearest(table: dict[str, Any], expected: str) -> None:
    assert expected in message(table)


# --- wrong values -----------------------------------------------------------------------------------------------------

WRONG = [
    ("train.learning_rate", "1e-4", "should be a number"),
    ("train.learning_rate", math.nan, "should be a finite number"),
    ("train.learning_rate", math.inf, "should be a finite number"),
    ("train.learning_rate", 0, "should be greater than 0"),
    ("train.steps", True, "should be an integer"),
    ("train.steps", 1.0, "should be an integer"),
    ("train.steps", 0, "should be greater than or equal to 1"),
    ("train.steps", None, "should be an integer"),
    ("train.keep_checkpoints", 1, "should be greater than or equal to 2"),
    ("train.compile", "yes", "should be a boolean"),
    ("train.betas", 0.9, "should be a list"),
    ("train.betas", [0.9], "should have more items"),
    ("train", [1], "should be a table"),
    ("model", 3, "should be a table"),
    ("model.blocks_per_level", 1.5, "should be an integer or a list"),
    ("model.blocks_per_level", [1, 1, 1, "2"], '.3 = "2": should be an integer'),
    ("model.channel_multipliers", [1.5], ".0 = 1.5: should be an integer"),
    ("model.channel_multipliers", [10**30], "should be less than or equal to"),
    ("model.dims", 10**30, "should be a smaller number"),
    ("model.block", 3, "should be a table"),
    ("data.path", 7, "should be a string"),
    ("run.name", "x" * 300, "should have at most 200 characters"),
]


@pytest.mark.parametrize(("key", "value", "expected"), WRONG)
def test_a_wrong_value_is_named_with_what_is_expected(key: str, value: Any, expected: str) -> None:
    nested = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    said = message(nested)
    assert said.startswith(f"x.toml: {key}")
    assert expected in said


def test_all_mistakes_come_at_once_and_nothing_that_only_follows_from_them() -> None:
    """The wrong base_channels is not also called indivisible, nor its model called one without a null class."""
    said = message(
        {
            "model": {"base_channels": "36", "block": {"groups": 12}, "null_class": True, "num_classes": 10},
            "process": {"prediction": "edm", "clip": [1, -1]},
            "objective": {"class_dropout": 0.1, "wieght": "simple"},
            "data": {"name": "folder", "size": [1, 2, 3]},
            "train": {"batch_size": 10, "accumulation": 3, "betas": [0.9, 1.5], "lr": 1},
            "ema": {"decay": 1.0},
        }
    )
    assert said.startswith("7 errors in x.toml:")
    for part in (
        'model.base_channels = "36"',
        "prediction 'edm' needs schedule 'karras'",
        "clip = [1.0, -1.0]",
        "objective.wieght",
        "did you mean 'weight'",
        "data.path",
        "size must be",
        "batch_size = 10 is not divisible by accumulation = 3",
        "betas must lie in [0, 1), not 1.5",
        "train.lr",
        "ema.decay",
    ):
        assert part in said, part
    assert "divisible by block.groups" not in said
    assert "null_class" not in said


CONTRADICTIONS = [
    ({"model": {"attention_levels": [4]}}, "attention_levels holds 4 but the levels are 0 to 3"),
    ({"model": {"null_class": True}}, "null_class needs num_classes"),
    ({"model": {"out_channels": 3}}, "model.out_channels = 3 must equal in_channels = 1"),
    ({"model": {"attention": {"heads": 3}}}, "64 channels is not divisible by attention.heads = 3"),
    ({"model": {"attention": {"heads": 2, "head_channels": 8}}}, "give heads or head_channels, not both"),
    ({"model": {"dims": 1}}, "model.dims = 1 needs data.name = 'array', not 'digits'"),
    ({"model": {"dims": 3}}, "model.dims = 3 needs data.name = 'array' or 'volumes', not 'digits'"),
    (
        {"data": {"name": "volumes", "path": "x"}},
        "model.dims = 2 needs data.name = 'array' or one of images, not 'volumes'",
    ),
    ({"model": {"cond_channels": 1}}, "model.cond_channels"),
    ({"objective": {"class_dropout": 0.1}}, "objective.class_dropout needs model.null_class = true"),
    ({"sample": {"guidance": 2.0}}, "sample.guidance needs model.null_class = true"),
    ({"process": {"schedule": "karras"}}, "use 'edm' with 'karras'"),
    ({"process": {"schedule": "flow", "prediction": "v"}}, "prediction 'v' needs alpha^2 + sigma^2 = 1"),
    ({"data": {"value_range": [1, 0]}}, "value_range = [1.0, 0.0] must be [low, high]"),
    ({"data": {"background": [0, 0]}}, "background must be three numbers"),
    ({"data": {"percentiles": [99, 1]}}, "percentiles = [99.0, 1.0] must be [low, high] within 0 to 100"),
    ({"data": {"held_out_key": "split"}}, "data.held_out_key needs data.name = 'array', not 'digits'"),
]


@pytest.mark.parametrize(("table", "expected"), CONTRADICTIONS)
def test_a_contradiction_names_its_keys(table: dict[str, Any], expected: str) -> None:
    base: dict[str, Any] = copy.deepcopy(SMALL)
    base["model"]["base_channels"] = 32
    assert expected in message(table, base)


# --- any config at all ------------------------------------------------------------------------------------------------

VALUES: list[Any] = [
    *(-1, 0, 1, 7, 10**12, 10**40, 1.5, -0.5, math.nan, math.inf, "", "x", "1", True, None),
    *([], [1], [0.5, 0.6], [1, "a"], [[1]], {}, {"kind": "x"}, {"x": 1}),
]


def misspelt(word: str, chance: random.Random) -> str:
    """The word with one letter doubled, dropped or exchanged."""
    place = chance.randrange(len(word))
    return word[:place] + chance.choice([word[place] * 2, "", chance.choice("qxz")]) + word[place + 1 :]


def outcome(table: dict[str, Any]) -> str:
    """What a config's error says; empty where it is none."""
    try:
        configs.resolve(configs.merge(SMALL, table))
    except ConfigError as error:
        return str(error)
    return ""


def test_a_thousand_mutated_configs_are_a_config_or_an_error_that_names_the_key() -> None:
    chance, known, refused = random.Random(0), keys(), 0
    for _ in range(1000):
        key = chance.choice(known)
        *parents, last = key.split(".")
        if chance.random() < 0.3:
            last = misspelt(last, chance)
        value = chance.choice(VALUES)
        nested: Any = {last: value}
        for part in reversed(parents):
            nested = {part: nested}
        said = outcome(nested)
        # a part may be written as its kind, and is called by its own name then
        by_name = last == "kind" and key != "model.kind"
        name = parents[-1] if by_name or parents[-1:] == ["input_pyramid"] else last  # which has no kind by default
        # guidance that contradicts the model does so whatever its options are
        assert not said or name in said or "sample.guidance needs model.null_class" in said, (key, last, value, said)
        assert said.count("\n") <= 5
        refused += bool(said)
    assert 500 < refused < 1000


# --- the program ------------------------------------------------------------------------------------------------------


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A config with one mistake."""
    path = tmp_path / "bad.toml"
    path.write_text("[train]\nlerning_rate = 1e-4\n")
    return path


def test_a_config_error_is_one_message_and_exit_code_2(bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(bad)]) == 2
    out, err = capsys.readouterr()
    expected = "bad.toml: unknown key 'train.lerning_rate'; did you mean 'learning_rate'?"
    assert err == f"diffunet: error[E-CONFIG]: {expected}\n"
    assert out == ""


def test_errors_are_json_where_asked_and_tracebacks_too(bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(bad), "--json", "--debug"]) == 2
    out, err = capsys.readouterr()
    error = json.loads(out)
    assert (error["error"], error["exit_code"]) == ("E-CONFIG", 2)
    assert "lerning_rate" in error["message"]
    assert "Traceback" in err


def test_commands_and_their_help_teach(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "unknown command 'trian'; did you mean 'train'?" in capsys.readouterr().err
    assert main([]) == main(["--help"]) == 0
    assert "exit codes:" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert main(["train"]) == 2
    assert "see diffunet train --help" in capsys.readouterr().err
    for command in ("train", "sample", "evaluate"):
        assert main([command, "--help"]) == 0
        assert "Examples:" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["train", "bad.toml"], ["--help"], ["train", "--help"]])
def test_what_needs_no_torch_answers_within_a_second(bad: Path, arguments: list[str]) -> None:
    """CPU seconds, and the best of three whole processes: the machine may be busy, the program may not."""
    code = "import sys; from diffunet.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    seconds = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=bad.parent, capture_output=True, text=True, timeout=60
        )
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert done.stdout.splitlines()[-1] == ("2 False" if "bad.toml" in arguments else "0 False"), done.stderr
    assert min(seconds) < 1, seconds


def test_a_reader_that_has_gone_is_no_error() -> None:
    """`diffunet --help | head -1`"""
    command = [sys.executable, "-m", "diffunet", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
