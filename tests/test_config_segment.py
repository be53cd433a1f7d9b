"""A segmentation config: its sections and nobody else's, its contradictions, and what its JSON holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from diffunet import config as configs
from diffunet.errors import ConfigError
from diffunet.spec import ClassicUNetConfig, RunConfig, TaskName, UNetConfig
from diffunet.spec.run import CHECKS, SECTIONS
from diffunet.training.tasks import TASKS

SEGMENT: dict[str, Any] = {
    "run": {"task": "segment"},
    "model": {"preset": "unet-2015"},
    "data": {"name": "pairs", "path": "x"},
}


def message(table: dict[str, Any], base: dict[str, Any]) -> str:
    """What the error of a config says."""
    with pytest.raises(ConfigError) as caught:
        configs.resolve(configs.merge(base, table), "x.toml")
    return str(caught.value)


def test_every_task_has_its_sections_its_check_and_its_class() -> None:
    assert set(get_args(TaskName)) == set(SECTIONS) == set(CHECKS) == set(TASKS)
    named = [name for names in SECTIONS.values() for name in names]
    assert len(named) == len(set(named))
    assert set(named) < set(RunConfig.model_fields)


FOREIGN = [
    ({"process": {"schedule": "cosine"}}, "process.schedule: [process] is not for run.task = 'segment'; leave it out"),
    ({"objective": {"weight": {"gamma": 3.0, "kind": "min_snr"}}}, "objective.weight.gamma: [objective] is not for"),
    ({"sample": {"steps": 10, "batch_size": 2}}, "sample.steps, sample.batch_size: [sample] is not for run.task"),
    ({"evaluate": {}}, "evaluate: [evaluate] is not for run.task = 'segment'"),
]


@pytest.mark.parametrize(("table", "expected"), FOREIGN)
def test_a_section_of_diffusion_contradicts_segmentation(table: dict[str, Any], expected: str) -> None:
    assert expected in message(table, SEGMENT)


def test_a_section_of_segmentation_contradicts_diffusion() -> None:
    said = message({"segment": {"crop": 64, "border": {"w0": 1.0}}}, {})
    assert "segment.border.w0, segment.crop: [segment] is not for run.task = 'diffusion'; leave it out" in said


CONTRADICTIONS = [
    ({"data": {"name": "digits"}}, "run.task = 'segment' needs data.name = 'pairs', not 'digits'"),
    ({"model": {"dims": 3}}, "model.dims = 3, but pairs of images and labels have 2"),
    ({"model": {"time": "sinusoidal"}}, "run.task = 'segment' needs model.time = 'none', not 'sinusoidal'"),
    ({"model": {"preset": "unet-plain", "num_classes": 3}}, "model.num_classes is not for run.task = 'segment'"),
    ({"model": {"preset": "ddpm-cifar10"}}, "needs model.time = 'none'"),
    ({"segment": {"loss": "dice"}}, "border weighs pixels, which loss 'dice' does not count; set border = false"),
    ({"segment": {"loss": "dise"}}, "segment.loss = 'dise': did you mean 'dice'? one of: cross_entropy, bce, focal"),
    ({"segment": {"tile": 64}}, "tile = 64 must be more than twice margin = 32"),
    ({"segment": {"loss": {"kind": "sum", "weights": [1, 0, 1]}}}, "weights names 3 but there are 2 losses"),
    ({"segment": {"loss": {"kind": "sum", "weights": [1.0, 0.0]}}}, "weights must be positive, not 0"),
    ({"data": {"size": 64}}, "data.size is not for data.name = 'pairs'"),
]


@pytest.mark.parametrize(("table", "expected"), CONTRADICTIONS)
def test_a_contradiction_names_its_keys(table: dict[str, Any], expected: str) -> None:
    assert expected in message(table, SEGMENT)


def test_diffusion_needs_a_network_with_time_and_images_without_labels() -> None:
    assert "run.task = 'diffusion' needs model.kind = 'unet', not 'classic'" in message(
        {"model": {"kind": "classic"}}, {}
    )
    assert "not model.time = 'none'" in message({"model": {"time": "none"}}, {})
    assert "data.name = 'pairs' needs run.task = 'segment'" in message({"data": {"name": "pairs", "path": "x"}}, {})
    said = message({"data": {"class_names": ["a", "b"]}}, {})
    assert "data.class_names needs data.name = 'pairs', not 'digits'" in said


def test_the_json_of_a_run_holds_the_sections_of_its_task() -> None:
    """And gives the same config again: what is left out has its defaults."""
    segment, diffusion = configs.resolve(SEGMENT), configs.resolve({})
    assert set(segment.model_dump()) == {"run", "model", "segment", "data", "train", "ema"}
    assert "segment" not in diffusion.model_dump()
    for config in (segment, diffusion):
        again = RunConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json"))))
        assert again == config
    assert not any(key.startswith(("process", "sample")) for key in configs.flatten(segment))


def test_networks_come_by_preset_and_by_kind(tmp_path: Path) -> None:
    """Parts without a kind are those of the network's own kind."""
    plain = configs.resolve(configs.merge(SEGMENT, {"model": {"preset": "unet-plain", "base_channels": 8}}))
    assert isinstance(plain.model, UNetConfig)
    assert plain.model.base_channels == 8
    path = tmp_path / "x.toml"
    sections = ["[run]", "task = 'segment'", "[model]", "kind = 'classic'", "block = {norm = 'batch'}"]
    path.write_text("\n".join([*sections, "[data]", "name = 'pairs'", "path = 'x'"]))
    classic = configs.load(path, ["--model.levels", "3", "--segment.border", "false"])
    assert isinstance(classic.model, ClassicUNetConfig)
    assert (classic.model.levels, classic.model.block.norm, classic.model.down.kind) == (3, "batch", "max_pool")
    assert classic.segment.border is None
    assert configs.load(path, ["--segment.augment.elastic", "false"]).segment.augment.elastic is None
