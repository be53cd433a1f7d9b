"""`diffunet sample`: what is refused, and that nothing is written then."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from diffunet import generation, load, save
from diffunet.cli import main
from diffunet.cli.options import parse_seeds
from diffunet.errors import ConfigError
from diffunet.spec import DataInfo
from tests import tiny
from tests.cli.test_sample import arrays, refusal

USAGE: list[tuple[list[str], str]] = [
    (["--n", "4", "--seeds", "0-3"], "give --n or --seeds, not both"),
    (["--n", "0"], "see diffunet sample --help"),
    (["--sampler", "dimm"], "unknown sampler 'dimm'; did you mean 'ddim'? one of: arc, ddpm, ddim"),
    (["--sampler", "DDIMsScheduler"], "unknown diffusers scheduler 'DDIMsScheduler'; did you mean 'DDIMScheduler'?"),
    (["--sampler", "ddim", "--option", "etaa=0.5"], "ddim.etaa: "),
    (["--sampler", "ddim", "--option", "eta=2"], "ddim.eta: "),
    (["--option", "eta"], "--option 'eta' should be NAME=VALUE"),
    (["--spacing", "leding"], "did you mean 'leading'?"),
    (["--ema", "best"], "has no weights 'best'; there are: ema, raw;"),
    (["--out", "x.jpg"], "name a .png (grid), an .npz (arrays) or a folder"),
    (["--seeds", "5-3"], "3 is below 5"),
    (["--seeds", "a"], "should be like 0-63 or 3,5,8-10"),
    (["--seeds", "\N{SUPERSCRIPT TWO}"], "should be like 0-63"),
    (["--seeds", "0-99999999"], "more than a million images"),
    (["--seeds", "9" * 30], "at most 12 digits"),
    (["--colour"], "see diffunet sample --help"),
]


@pytest.mark.parametrize(("flags", "expected"), USAGE)
def test_wrong_usage_is_explained(
    trained: Path, capsys: pytest.CaptureFixture[str], flags: list[str], expected: str
) -> None:
    before = sorted(trained.rglob("*"))
    assert expected in refusal(capsys, 2, trained, *flags)
    assert sorted(trained.rglob("*")) == before, "nothing is written"


def test_seeds_are_a_list_of_numbers_and_ranges() -> None:
    assert parse_seeds("3") == [3]
    assert parse_seeds("3, 5,8-10") == [3, 5, 8, 9, 10]
    for wrong in ("", ",", "1,,2", "-3", "1-", "1-2-3", "1.5"):
        with pytest.raises(ConfigError, match="should be like"):
            parse_seeds(wrong)


def test_a_model_without_classes_refuses_a_class_and_guidance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    den = tiny.denoiser(dims=2)
    den.data = DataInfo(shape=(1, 4, 4))
    save(den, tmp_path / "w.safetensors")
    assert arrays(tmp_path / "w.safetensors", tmp_path, "--n", "2").shape == (2, 4, 4, 1)
    assert "trained without classes" in refusal(capsys, 2, tmp_path / "w.safetensors", "--class=1")
    error = refusal(capsys, 2, tmp_path / "w.safetensors", "--guidance=2", "--n=1")
    assert "guidance needs a model trained with model.null_class" in error


class Canary:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_broken_and_unsafe_weights_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, path, out = (trained / "weights.safetensors").read_bytes(), tmp_path / "w.safetensors", tmp_path / "out"
    assert "does not exist; name a run folder" in refusal(capsys, 4, tmp_path / "nowhere", "--out", out)
    assert "holds no weights.safetensors" in refusal(capsys, 4, tmp_path, "--out", out)
    for data in (good[:-1], good[:1000], b"", good[:5000] + bytes([good[5000] ^ 1]) + good[5001:]):
        path.write_bytes(data)
        assert f"{path} is damaged" in refusal(capsys, 4, path, "--out", out)
    for name in ("w.safetensors", "w.pt", "w.ckpt"):
        (tmp_path / name).write_bytes(pickle.dumps(Canary(tmp_path / "mark")))
        assert "can run code and is not loaded" in refusal(capsys, 7, tmp_path / name, "--out", out)
    assert "is one set of weights" in refusal(capsys, 4, trained / "weights.safetensors", "--ema=raw", "--out", out)
    assert not (tmp_path / "mark").exists()
    assert not out.exists()


def test_weights_that_are_not_numbers_write_no_image(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    den = load(trained)
    with torch.no_grad():
        next(iter(den.network.parameters()))[0] = float("nan")
    save(den, tmp_path / "nan.safetensors")
    for out in ("grid.png", "x.npz", "many"):
        error = refusal(capsys, 6, tmp_path / "nan.safetensors", "--n=2", "--steps=2", "--out", tmp_path / out)
        assert "2 of 2 images are not finite" in error
    assert [p.name for p in tmp_path.iterdir()] == ["nan.safetensors"]


def test_an_interrupted_command_says_so(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "generate", interrupted)
    assert main(["sample", str(trained), "--n", "1"]) == 130
    assert capsys.readouterr().err == "diffunet: stopped\n"
