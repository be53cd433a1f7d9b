"""A segmenter's weights say all that is needed to segment with them, and are no denoiser's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from pydantic import ValidationError

from diffunet import ClassicUNet, load, save
from diffunet.errors import CheckpointError
from diffunet.segmenter import Segmenter
from diffunet.spec import SegmentInfo
from diffunet.weights import describe_segmenter, described, digest, load_segmenter
from tests import tiny

INFO = SegmentInfo(channels=1, values=(3, 700), classes=("a", "b"), value_range=(0, 9), tile=64, margin=8)


def segmenter(info: SegmentInfo = INFO, **changes: Any) -> Segmenter:
    """A tiny segmenter with random weights."""
    return Segmenter(ClassicUNet(base_channels=2, levels=2, **changes), info).eval()


def test_it_comes_back_equal_and_finds_the_same(tmp_path: Path) -> None:
    one = segmenter()
    save(one, tmp_path / "weights.safetensors", step=7)
    for place in (tmp_path, tmp_path / "weights.safetensors"):
        again = load_segmenter(place)
        assert again.info == INFO
        assert again.network.config == one.network.config
        image = torch.randn(1, 40, 31)
        assert torch.equal(again.logits(image), one.logits(image))
    assert described(tmp_path)[0]["step"] == 7


def test_neither_kind_is_taken_for_the_other(tmp_path: Path) -> None:
    save(segmenter(), tmp_path / "s.safetensors")
    save(tiny.denoiser(), tmp_path / "d.safetensors")
    with pytest.raises(CheckpointError, match=r"s.safetensors holds a model of task 'segment', not 'diffusion'; use `"):
        load(tmp_path / "s.safetensors")
    with pytest.raises(CheckpointError, match=r"d.safetensors holds a model of task 'diffusion', not 'segment'; use `"):
        load_segmenter(tmp_path / "d.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "dance\x1b"}, r"task 'dance\\x1b', not 'segment'; use a newer diffunet"),
        ({"format": 99}, "has format 99"),
        ({"segments": None}, "cannot build"),
        ({"segments": INFO.model_dump() | {"values": [5, 5]}}, "cannot build"),
        ({"segments": INFO.model_dump() | {"classes": ["a"]}}, "cannot build"),
        ({"network": {"kind": "classic", "levels": 99}}, "cannot build"),
        ({"network": {"kind": "classic", "levels": 3}}, "does not fit the network"),
    ],
)
def test_a_description_from_a_stranger_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    made = segmenter()
    text, tensors = json.dumps(describe_segmenter(made) | changes), made.network.state_dict()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.torch.save(tensors, {"diffunet": text, "sha256": digest(text, tensors)}))
    with pytest.raises(CheckpointError, match=message):
        load_segmenter(path)


def test_label_values_come_back_in_the_smallest_kind_of_number() -> None:
    classes = torch.tensor([[0, 1]])
    for values, kind in (((0, 255), np.uint8), ((0, 256), np.uint16), ((3, 65_535), np.uint16)):
        found = segmenter(INFO.model_copy(update={"values": values})).values(classes)
        assert (found.tolist(), found.dtype) == ([list(values)], kind)


def test_one_channel_and_two_give_two_probabilities() -> None:
    for channels in (1, 2):
        made = segmenter(out_channels=channels)
        found = made.probabilities(torch.randn(1, 25, 30))
        assert found.shape == (2, 25, 30)
        assert torch.allclose(found.sum(0), torch.ones(25, 30))
        assert torch.equal(made.classes(torch.zeros(1, 4, 4)), made.probabilities(torch.zeros(1, 4, 4)).argmax(0))


def test_info_needs_a_name_for_each_rising_value() -> None:
    for values, classes in (((1, 0), "ab"), ((0, 1, 2), "ab"), ((0,), "a"), ((0, 65_536), "ab"), ((-1, 0), "ab")):
        with pytest.raises(ValidationError):
            SegmentInfo(channels=1, values=values, classes=tuple(classes))
