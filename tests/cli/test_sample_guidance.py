"""`diffunet sample` with guidance: that each flag is the guidance of the same name, and what does not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diffunet import load, save
from diffunet.cli.guidance import Guided, guidance_of
from diffunet.errors import ConfigError
from diffunet.guidance import Autoguidance, Interval, SigmaInterval
from diffunet.spec import ClassifierFreeGuidance, CompositionGuidance, DataInfo, SampleConfig
from tests import tiny
from tests.cli.test_sample import refusal

NOTHING = Guided(None, None, None, None, [], [])


def asked(path: Path, guide: Path | None = None, config: Any = None, **flags: Any) -> Any:
    """The guidance that these flags ask for."""
    other = None if guide is None else str(guide)
    return guidance_of(load(path), SampleConfig(guidance=config), NOTHING._replace(**flags), other, path)


def test_flags_are_a_spec_and_go_before_the_config(named: Path) -> None:
    assert asked(named) is None
    assert asked(named, config=2.0) == ClassifierFreeGuidance(scale=2.0)
    found = asked(named, scale=3.0, interval="0.2,0.8", sigmas="0.5,3", rescale=0.7)
    assert found == ClassifierFreeGuidance(scale=3.0, interval=(0.2, 0.8), sigmas=(0.5, 3.0), rescale=0.7)
    changed = asked(named, config={"kind": "classifier_free", "scale": 2.0, "rescale": 0.5}, interval="0,0.5")
    assert changed == ClassifierFreeGuidance(scale=2.0, rescale=0.5, interval=(0.0, 0.5))


def test_classes_are_joined_and_shunned_by_name(named: Path) -> None:
    found = asked(named, scale=2.0, also=["bird"], never=["cat", "1"], rescale=0.2)
    assert found == CompositionGuidance(scales=(2.0, 2.0, -2.0, -2.0), classes=(2, 0, 1), rescale=0.2)


def test_other_weights_are_a_guide(named: Path, tmp_path: Path) -> None:
    den = tiny.denoiser(dims=2, num_classes=3, null_class=True)
    den.data = DataInfo(shape=(1, 6, 5))
    with torch.no_grad():
        next(iter(den.network.parameters())).mul_(0.5)
    save(den, tmp_path / "weak.safetensors")
    found = asked(named, tmp_path / "weak.safetensors", scale=1.5, interval="0.1,0.9", sigmas="0.5,3")
    assert isinstance(found, Interval)
    assert isinstance(found.denoiser, SigmaInterval)
    inner = found.denoiser.denoiser
    assert isinstance(inner, Autoguidance)
    assert inner.scale == 1.5
    assert not torch.equal(*(next(iter(d.parameters())) for d in (inner.denoiser, inner.guide)))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"interval": "0.2,0.8"}, "give --guidance W too"),
        ({"also": ["cat"]}, "need --guidance W"),
        ({"guide": Path("x.safetensors")}, "--guide needs --guidance W"),
        ({"guide": Path("x.safetensors"), "scale": 2.0, "never": ["cat"]}, "leave --guidance-rescale, --and and --not"),
        ({"scale": 2.0, "also": ["dgo"]}, "did you mean 'dog'"),
        ({"scale": 2.0, "sigmas": "3,1"}, r"sigmas = \[3.0, 1.0\] must be"),
        ({"scale": 2.0, "interval": "0.5,1.5"}, r"must lie in \[0, 1\]"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(named: Path, flags: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        asked(named, flags.pop("guide", None), **flags)


def test_the_command_knows_the_flags(named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--n=2", "--steps=2", "--class=dog", f"--out={tmp_path / 'x.npz'}"]
    assert "unknown class 'brd'" in refusal(capsys, 2, named, *flags, "--guidance=2", "--and=bird", "--not=brd")
    assert "does not exist" in refusal(capsys, 4, named, *flags, "--guidance=2", f"--guide={tmp_path / 'no'}")
    assert "see diffunet sample --help" in refusal(capsys, 2, named, *flags, "--guidance=2", "--guidance-rescale=2")
