"""Parts and lists of parts: how a user writes them, and what a wrong one is answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diffunet import config as configs
from diffunet.errors import ConfigError
from diffunet.spec import AvgPool, BlurPool, InBlock, LinearAttention, MaxPool, ResidualPyramid, SelfAttention

DOWNS = (MaxPool(), BlurPool(taps=3), AvgPool())

TOML = """
[model]
downs = ["max_pool", { kind = "blur_pool", taps = 3 }, "avg_pool"]
ups = ["nearest", "nearest", { kind = "in_block" }]
input_pyramid = "residual"

[model.down]
kind = "in_block"
taps = 4

[[model.attentions]]
kind = "linear"
heads = 2
[[model.attentions]]
kind = "self"
[[model.attentions]]
kind = "self"
[[model.attentions]]
heads = 4
"""


def test_a_file_holds_parts_and_lists_of_parts(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(TOML)
    model = configs.load(tmp_path / "x.toml").model
    assert model.downs == DOWNS
    assert model.ups[2] == model.up_at(2) == InBlock()
    assert model.attentions == (LinearAttention(heads=2), SelfAttention(), SelfAttention(), SelfAttention(heads=4))
    assert model.down == InBlock(taps=4)
    assert model.input_pyramid == ResidualPyramid()


@pytest.mark.parametrize(
    "text",
    [
        "['max_pool', {kind = 'blur_pool', taps = 3}, 'avg_pool']",
        '["max_pool", {"kind": "blur_pool", "taps": 3}, "avg_pool"]',
        '[{"kind": "max_pool"}, {"kind": "blur_pool", "taps": 3}, {"kind": "avg_pool"}]',
    ],
    ids=["TOML", "JSON", "JSON tables"],
)
def test_a_flag_holds_a_list_of_parts(text: str) -> None:
    assert configs.resolve(configs.parse_flags(["--model.downs", text])).model.downs == DOWNS


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"block": {"rates": [1, 2]}}, "unknown key 'model.block.rates' for kind 'residual'; kind 'dilated' has it"),
    ({"time": {"kind": "fourier", "steps": 9}}, "'model.time.steps' for kind 'fourier'; kind 'learned' has it"),
    ({"attention": {"kind": "channel", "heads": 2}}, "'channel'; kinds 'self', 'linear', 'cosine' have it"),
    (
        {"kind": "classic", "channel_multipliers": [1]},
        "'model.channel_multipliers' for kind 'classic'; kind 'unet' has",
    ),
    ({"block": {"kind": "dilated", "rate": [1]}}, "unknown key 'model.block.rate'; did you mean 'rates'?"),
    ({"downs": ["max_pol", "max_pool", "none"]}, "model.downs.0 = 'max_pol': did you mean 'max_pool'? one of: strided"),
    ({"downs": [{"kind": "blur_pool", "tap": 3}]}, "unknown key 'model.downs.0.tap'; did you mean 'taps'?"),
    ({"downs": ["max_pool", {"kind": "max_pool", "taps": 3}]}, "'model.downs.1.taps' for kind 'max_pool'; kinds 'blur"),
    ({"downs": "max_pool"}, 'model.downs = "max_pool": should be a list'),
    ({"ups": ["nearest"]}, "ups names 1 parts but 4 levels (base_channels x channel_multipliers) have 3"),
    ({"attentions": ["self", "lineer"]}, "model.attentions.1 = 'lineer': did you mean 'linear'? one of: self, linear"),
    ({"input_pyramid": "residul"}, "model.input_pyramid = 'residul': did you mean 'residual'? one of: skip, residual"),
    ({"input_pyramid": {"taps": 4}}, "model.input_pyramid needs a kind; one of: skip, residual"),
    ({"output_pyramid": {"taps": 9}}, "model.output_pyramid.taps = 9: should be less than or equal to 7"),
    ({"stem_channels": "first"}, "should be an integer or one of: first_level"),
    ({"stem_channels": 9}, "a width of 9 channels is not divisible by block.groups = 32 (stem_channels)"),
    ({"block": {"kind": "multi_scale", "kernels": [2]}}, "model.block: kernels must be odd and 1 to 31, not 2"),
    ({"down": {"pad": "asymetric"}}, "model.down.pad = 'asymetric': did you mean 'asymmetric'?"),
]


@pytest.mark.parametrize(("model", "expected"), WRONG)
def test_a_wrong_part_is_answered_by_its_kind_and_its_place(model: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configs.resolve({"model": model}, "x.toml")
    assert expected in str(caught.value)


def test_wrong_items_of_several_lists_come_at_once() -> None:
    model = {"downs": ["max_pol", {"kind": "blur_pool", "tap": 3}, 3], "ups": ["nearst", "fir", "none"]}
    with pytest.raises(ConfigError) as caught:
        configs.resolve({"model": model, "train": {"steps": 0}}, "x.toml")
    assert str(caught.value).startswith("5 errors in x.toml:")
    for part in ("downs.0", "downs.1.tap", "downs.2 = 3", "ups.0 = 'nearst': did you mean 'nearest'?", "train.steps"):
        assert part in str(caught.value), part
