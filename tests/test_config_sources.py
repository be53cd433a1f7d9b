"""Where a config comes from: flags, presets, files, and the run that it goes on with."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from diffunet import config as configs
from diffunet.errors import CheckpointError, ConfigError
from diffunet.spec import RunConfig
from diffunet.spec.explain import _models, keys

SMALL: dict[str, Any] = {"model": {"in_channels": 1, "out_channels": 1, "base_channels": 32}}

# --- flags, presets, files --------------------------------------------------------------------------------------------


def test_flags_are_values_by_tomls_rules() -> None:
    flags = "--train.steps 200 --train.learning_rate=1e-3 --model.channel_multipliers 1,2,2 --data.flip --data.path a/b"
    assert configs.parse_flags(flags.split()) == {
        "train": {"steps": 200, "learning_rate": 1e-3},
        "model": {"channel_multipliers": [1, 2, 2]},
        "data": {"flip": True, "path": "a/b"},
    }
    assert configs.parse_flags(["--process.clip", "false", "--data.flip", "--train.seed", "3"]) == {
        "process": {"clip": False},
        "data": {"flip": True},
        "train": {"seed": 3},
    }
    assert configs.parse_flags(["--model.block", "{kind = 'residual', groups = 4}"])["model"]["block"]["groups"] == 4
    assert configs.parse_flags(["--train.seed", "1", "--train.seed", "2"]) == {"train": {"seed": 2}}
    assert configs.parse_value("1\nother = 2") == "1\nother = 2"
    assert configs.parse_value("[" * 5000) == "[" * 5000


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--steps", "200"], "unknown argument '--steps'; did you mean --train.steps?"),
        (["steps"], "did you mean --train.steps?"),
        (["2024"], "unknown argument '2024'; keys are written --section.key value"),
        (["--" + "a." * 5000 + "b", "1"], "keys are written --section.key value"),
        (["--trian.steps", "200"], "unknown key 'trian'; did you mean 'train'?"),
        (["--train.steps", "many"], 'train.steps = "many": should be an integer'),
    ],
)
def test_a_wrong_flag_is_answered_with_the_right_one(flags: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configs.resolve(configs.parse_flags(flags))
    assert expected in str(caught.value)


UNSET = {
    "threads": "2",
    "snapshot_every": "5",
    "held_out_key": "split",
    "channels": "32,64,64,64",
    "stem_channels": "64",
    "group_channels": "8",
    "attentions": "[{kind = 'linear'}, {kind = 'self'}, {kind = 'self'}, {kind = 'self'}]",
    "downs": "['max_pool', 'max_pool', 'avg_pool']",
    "ups": "['nearest', 'nearest', 'nearest_conv']",
    "num_classes": "10",
    "heads": "2",
    "head_channels": "8",
    "size": "8",
    "data.crop": "8",
    "path": "some/where",
    "class_names": "['a', 'b']",
    "value_range": "0,1",
    "layout": "nhw",
    "spacing": "trailing",
    "guidance": "1.5",
    "sigmas": "0.5,3",
    "n": "100",
    "background": "0",
    "data.channels": "1",
    "input_pyramid": "skip",
    "output_pyramid": "skip",
    "time.channels": "64",
    "loss.weights": "1,2",
    "rates": "1,2,4,8",
    "labels": "'labels.csv'",
    "resolution": "128",
    "limit": "2.0",
    "churn_high": "1.0",
    "options": "{use_karras_sigmas = true}",
}
DIFFUSES = ["--model.null_class", "--model.num_classes=3"]
SEGMENTS = ["--run.task=segment", "--data.name=pairs", "--data.path=x", "--model.kind=classic"]
# What else must hold for a part of some kind, or for a key.
NEEDS = {
    "data.crop": ["--data.name=folder", "--data.path=x"],
    "data.labels": ["--data.name=folder", "--data.path=x"],
    "data.held_out_key": ["--data.name=array", "--data.path=x"],
    "ema.snapshot_every": ["--ema.sigma_rel=0.05"],
    "process.schedule=karras": ["--process.prediction=edm"],
    "process.schedule=flow": ["--process.prediction=flow"],
    "process.schedule=ve": ["--process.prediction=edm"],
    "process.clip.kind": ["--process.clip=dynamic"],
    "objective.variance=hybrid": ["--model.learned_variance=true"],
    "model.down=in_block": ["--model.up=in_block"],
    "model.up=in_block": ["--model.down=in_block"],
    "segment.loss=dice": ["--segment.border=false"],
    "segment.loss=tversky": ["--segment.border=false"],
}


def base_for(key: str) -> list[str]:
    """Flags for a config of the task that has this key, with every part above it of a kind that has it."""
    section, name = key.split(".")[:2]
    segments = section == "segment" or key == "data.class_names" or name in ("levels", "padding_mode")
    flags, models, where = [*(SEGMENTS if segments else DIFFUSES), *NEEDS.get(key, [])], [RunConfig], ""
    for part, inner in pairwise(key.split(".")):
        field = next(m.model_fields[part] for m in models if part in m.model_fields)
        models = list(_models(field.annotation, False))
        where = f"{where}.{part}".strip(".")
        chosen = next((m for m in models if m.model_fields.get("kind") and inner in m.model_fields), None)
        if chosen and (inner != "kind" or field.default is None) and where != "model":
            part = f"{where}={chosen.model_fields['kind'].default}"
            flags += [f"--{part}", *NEEDS.get(part, [])]
    return flags


@pytest.mark.parametrize("key", keys())
def test_every_key_can_be_set_by_a_flag(key: str) -> None:
    """The default, written as a flag, gives the default again; keys without one get a value."""
    base = base_for(key)
    before = configs.flatten(configs.resolve(configs.parse_flags(base)))
    default = before.get(key)
    last = key.split(".")
    named = [".".join(last[i:]) for i in range(len(last))]
    toml = json.dumps(default).replace('":', '" =')
    text = toml if default is not None else next((UNSET[n] for n in named if n in UNSET), None)
    if text is None:  # a whole part, by its kind, or by the first key of one that has none
        key = f"{key}.kind" if f"{key}.kind" in before else next(k for k in before if k.startswith(f"{key}."))
        default = before[key]
        text = json.dumps(default)
    flag = key if key == "model.kind" else key.removesuffix(".kind")  # a part is named by its kind, a section is not
    after = configs.flatten(configs.resolve(configs.parse_flags([*base, f"--{flag}={text}"])))
    if default is None:
        given = [value for name, value in after.items() if name == key or name.startswith(f"{key}.")]
        assert any(value not in (None, before.get(key)) for value in given)
    else:
        assert after[key] == default


def test_a_part_is_named_or_spelt_out_in_any_order() -> None:
    """A kind and its options may come from different places; a new kind leaves the options of the old one."""
    for flags in (
        ["--process.schedule", "cosine", "--process.schedule.s", "0.01"],
        ["--process.schedule.s", "0.01", "--process.schedule", "cosine"],
    ):
        schedule = configs.resolve(configs.parse_flags(flags)).process.schedule
        assert (schedule.kind, schedule.s) == ("cosine", 0.01)
    base = {"process": {"schedule": "cosine"}}
    assert configs.resolve(configs.merge(base, {"process": {"schedule": {"T": 50}}})).process.schedule.kind == "cosine"
    base = {"process": {"schedule": {"kind": "cosine", "s": 0.01}}}
    assert configs.resolve(configs.merge(base, {"process": {"schedule": "linear"}})).process.schedule.kind == "linear"
    assert configs.resolve({"process": {"schedule": {"T": 50}}}).process.schedule.T == 50


def test_a_preset_takes_changes() -> None:
    config = configs.resolve({"model": {"preset": "ddpm-cifar10", "num_classes": 10, "block": {"dropout": 0.2}}})
    assert config.model.down.pad == "asymmetric"
    assert config.model.num_classes == 10
    assert (config.model.block.dropout, config.model.block.groups) == (0.2, 32)


def test_a_resolved_config_is_a_config(tmp_path: Path) -> None:
    """The config.json of a run, nulls and all, gives the same run again."""
    config = configs.resolve(configs.merge(SMALL, {"process": {"clip": False}, "run": {"name": "a"}}))
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    assert configs.load(tmp_path / "config.json") == config
    assert config.process.clip is None


FILES = [
    (b"[train]\nsteps = \n", "line 2"),
    (b"[train]\nsteps = 1\nsteps = 2\n", "line 3"),
    (b"[train]\n[train]\n", "line 2"),
    (b"[train]\nsteps = \xff\n", "not well-formed"),
    (b"a = " + b"[" * 100_000, "not well-formed"),
    (b"[" + b"a." * 20_000 + b"b]\n", "nested too deeply"),
    (b"#" * (2**20 + 1), "is larger than 1048576 bytes"),
    (b"{", "not well-formed"),
]


@pytest.mark.parametrize(("content", "expected"), FILES)
def test_a_broken_file_is_named_with_the_line(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        configs.load(path)
    assert "broken.toml" in str(caught.value)
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 400


def test_json_files_are_read_as_strictly(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, expected in (
        ('{"train": {"steps": 1}', "not well-formed"),
        ('{"train": {"steps": 1, "steps": 2}}', "'steps' twice"),
        ("[1]", "must hold sections, not list"),
        ('{"train": {"learning_rate": NaN}}', "finite"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            configs.load(path)
        assert expected in str(caught.value)
    path.write_text('{"train": {"steps": 7}}')
    assert configs.load(path).train.steps == 7


def test_a_byte_order_mark_and_windows_lines_are_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xef\xbb\xbf[train]\r\nsteps = 7\r\n")
    config = configs.load(path)
    assert (config.train.steps, config.run.name) == (7, "x")


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    for path, expected in ((tmp_path / "no.toml", "no.toml does not exist"), (tmp_path, "cannot be read")):
        with pytest.raises(ConfigError, match=expected):
            configs.load(path)


# --- going on with a run ----------------------------------------------------------------------------------------------

NEUTRAL = {"steps": 11, "workers": 2, "checkpoint_every": 3, "keep_checkpoints": 9, "preview_every": 5}


def test_keys_that_leave_the_training_alone_may_change(tmp_path: Path) -> None:
    old = configs.resolve(SMALL)
    configs.check_resume(old, configs.resolve(configs.merge(SMALL, {"train": NEUTRAL})), tmp_path)
    assert {f"train.{key}" for key in NEUTRAL} < configs.RESUMABLE


def test_every_other_change_is_refused_with_old_and_new(tmp_path: Path) -> None:
    old = configs.resolve(SMALL)
    for changes, expected in (
        ({"train": {"learning_rate": 1e-5}}, "train.learning_rate: 0.0002 -> 1e-05"),
        ({"train": {"seed": 1}}, "train.seed: 0 -> 1"),
        ({"model": {"base_channels": 64}}, "model.base_channels: 32 -> 64"),
        ({"process": {"schedule": "cosine"}}, "process.schedule.kind: 'linear' -> 'cosine'"),
        ({"data": {"flip": True}}, "data.flip: False -> True"),
        ({"ema": {"decay": 0.5}}, "ema.decay: 0.999 -> 0.5"),
    ):
        with pytest.raises(CheckpointError) as caught:
            configs.check_resume(old, configs.resolve(configs.merge(SMALL, changes)), tmp_path)
        assert expected in str(caught.value)
        assert str(tmp_path) in str(caught.value)
