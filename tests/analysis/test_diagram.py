"""The pictures: complete, the same each time, and of every network."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffunet.analysis.cost import summarize
from diffunet.analysis.diagram import Layout, draw_network
from diffunet.analysis.figures import draw_field, new_figure, write_figure
from diffunet.analysis.probes import Probe, effective_field
from diffunet.errors import UserError
from diffunet.nn import PRESETS
from tests.analysis.networks import CONFIGS, sides_of, unet

NOTES = {"down": "down: max pool", "skip": "skip: concat"}


def texts(figure: Any) -> list[str]:
    """All that is written in a figure."""
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("name", ["1d", "2d", "3d", "classic-2d", "uneven", "one-level", "dilated-flat", "up-in_block"])
def test_a_drawing_holds_every_level_once_on_each_way(name: str) -> None:
    config = CONFIGS[name]
    summary = summarize(config, 1, sides_of(config))
    layout = Layout(summary)
    groups = [*layout.down, *layout.up, layout.bottom]
    blocks = sum(s.modules for p, s in summary.shapes.items() if p.role == "blocks")
    looks = sum(s.modules for p, s in summary.shapes.items() if p.role == "attention")
    kinds = [kind for group in groups for kind, _ in group.slabs]
    assert (kinds.count("block"), kinds.count("attention")) == (blocks, looks)
    for left, right in zip(layout.down, layout.up, strict=True):
        assert left.right < right.x
    for above, below in zip(layout.down, [*layout.down[1:], layout.bottom], strict=True):
        assert above.y - above.height / 2 > below.y + below.height / 2
    assert all(group.x >= 0 and group.right <= layout.width + 1e-9 for group in groups)


def test_a_drawing_says_widths_sizes_and_skips() -> None:
    said = texts(draw_network(summarize(PRESETS["unet-2015"], 1, (572, 572)), "name", "below", NOTES))
    for width in (64, 128, 256, 512):
        assert said.count(str(width)) == 2
    assert said.count("1024") == 1
    for text in ("name", "below", "1x572x572", "2x388x388", "572x572 to 568x568", "32x32 to 28x28"):
        assert text in said
    assert said.count("1 skip") == 4
    said = texts(draw_network(summarize(PRESETS["ddpm-cifar10"], 1, (32, 32)), "name", "below", NOTES))
    assert said.count("3 skips") == 4


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_same_drawing_is_the_same_file(suffix: str, tmp_path: Path) -> None:
    summary = summarize(unet(), 1, (16, 12))
    files = [write_figure(draw_network(summary, "a", "b", NOTES), tmp_path / f"{i}.{suffix}") for i in range(2)]
    one, other = (file.read_bytes() for file in files)
    assert one == other
    assert len(list(tmp_path.iterdir())) == 2
    if suffix == "svg":
        assert one.startswith(b"<?xml")
    else:
        with Image.open(files[0]) as image:
            picture = np.asarray(image.convert("RGB"))
        assert picture.shape[0] > 400
        assert picture.std() > 20


@pytest.mark.parametrize("name", ["1d", "2d", "3d"])
def test_a_receptive_field_is_drawn_in_every_dimension(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    field = effective_field(Probe(config, sides_of(config)), seeds=1)
    figure = draw_field(field, name, 9)
    path = write_figure(figure, tmp_path / "receptive_field.png")
    with Image.open(path) as picture:
        assert picture.size[0] > 400
    assert figure.axes[0].get_title() == f"{name}: effective receptive field"


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"pip install 'diffunet\[plot\]'"):
        new_figure(1, 1)
