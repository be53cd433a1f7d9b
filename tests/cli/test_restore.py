"""`diffunet restore`: any picture in, the same size out, scores beside, and what cannot be done explained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffunet import Denoiser, Schedule, load, save
from diffunet.cli import main
from diffunet.inverse import denoise
from diffunet.metrics.likeness import psnr, ssim
from diffunet.pictures import to_uint8
from diffunet.spec import DataInfo
from tests import tiny


def weights(folder: Path, channels: int, **changes: object) -> Path:
    """A tiny random model of pictures, on a schedule that knows noise up to 128 of 255."""
    network = tiny.unet(dims=2, in_channels=channels, out_channels=channels, **changes)
    data = DataInfo(shape=(channels, 16, 16))
    save(
        Denoiser(network, Schedule.karras(sigma_max=1.0), "edm", (-1.0, 1.0), data), folder / f"{channels}.safetensors"
    )
    return folder / f"{channels}.safetensors"


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("grey"), 1)


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("colour"), 3)


def drawn(path: Path, shape: Sequence[int], dtype: type = np.uint8) -> Path:
    """A smooth picture of a shape."""
    path.parent.mkdir(exist_ok=True)
    rows, columns = np.indices(shape[:2])
    values = (rows * 5 + columns * 3).reshape(*shape[:2], *[1] * (len(shape) - 2)) + 20 * np.arange(shape[-1])
    array = values if len(shape) == 3 else rows * 5 + columns * 3
    Image.fromarray((array % 256 * (257 if dtype is np.uint16 else 1)).astype(dtype)).save(path)
    return path


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def ran(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    """What the command says in JSON."""
    capsys.readouterr()
    assert main(["restore", *map(str, arguments), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """What a refused command says."""
    capsys.readouterr()
    assert main(["restore", *map(str, arguments)]) == code
    error = capsys.readouterr().err
    assert error.startswith("diffunet: error[E-")
    assert "Traceback" not in error
    return error


def test_denoising_writes_the_posterior_mean(grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file holds what the function says; the scores are those of the file; the strip shows all three."""
    image = drawn(tmp_path / "a.png", (19, 23))
    result = ran(
        capsys, grey, image, "--task", "denoise", "--sigma", 25, "--reference", image, "--out", tmp_path / "out"
    )
    written = read(tmp_path / "out" / "a.png")
    y = torch.from_numpy(read(image).copy()).float()[None, None] / 127.5 - 1
    assert np.array_equal(written, to_uint8(denoise(load(grey), y, 25 / 127.5))[0, ..., 0])
    (row,) = result["images"]
    assert row["sigma"] == pytest.approx(25)
    assert row["psnr"] == pytest.approx(psnr(written[..., None], read(image)[..., None]))
    assert row["ssim"] == pytest.approx(ssim(written[..., None], read(image)[..., None]))
    assert row["psnr_before"] is None, "the picture is its own reference: infinite"
    strip = read(tmp_path / "out" / "a-compare.png")
    assert strip.shape[0] >= 19 * 8
    assert strip.shape[1] >= 3 * 23 * 8
    assert result["files"] == [str(tmp_path / "out" / name) for name in ("a.png", "a-compare.png")]


def test_any_mode_and_depth(grey: Path, colour: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Grey stays grey through a grey model and colour stays colour; a colour model writes colour."""
    place = tmp_path / "in"
    shapes = {"grey": (12, 17), "rgb": (13, 12, 3), "alpha": (12, 12, 4)}
    for name, shape in shapes.items():
        drawn(place / f"{name}.png", shape)
    drawn(place / "deep.png", (12, 15), np.uint16)
    Image.open(place / "rgb.png").convert("P").save(place / "palette.png")
    for model, of_grey in ((grey, 2), (colour, 3)):
        result = ran(capsys, model, place, "--task", "denoise", "--sigma", 10, "--out", tmp_path / "out")
        assert len(result["files"]) == 10
        assert "mean" in result
        for name, dims in {"grey": of_grey, "deep": of_grey, "rgb": 3, "alpha": 3, "palette": 3}.items():
            assert read(tmp_path / "out" / f"{name}.png").ndim == dims
            assert read(tmp_path / "out" / f"{name}.png").shape[:2] == read(place / f"{name}.png").shape[:2]


def test_colour_goes_through_a_grey_model_channel_by_channel(
    grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = drawn(tmp_path / "rgb.png", (12, 14, 3))
    for i in range(3):
        Image.fromarray(read(image)[..., i]).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{name}.png" for name in ("rgb", 0, 1, 2)]
    ran(capsys, grey, *paths, "--task", "denoise", "--sigma", 20, "--out", tmp_path / "out")
    whole, *parts = [read(tmp_path / "out" / path.name) for path in paths]
    assert np.abs(whole.astype(int) - np.stack(parts, axis=-1)).max() <= 1


def test_a_hole_is_filled_and_the_rest_kept(grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """repaint keeps known pixels bit for bit; the method and its options can be chosen."""
    image, hole = drawn(tmp_path / "a.png", (16, 16)), np.zeros((16, 16), np.uint8)
    hole[4:9, 5:11] = 255
    Image.fromarray(hole).save(tmp_path / "hole.png")
    common = (grey, image, "--task", "inpaint", "--mask", tmp_path / "hole.png", "--steps", 3, "--reference", image)
    result = ran(capsys, *common, "--out", tmp_path / "out")
    assert result["method"] == "repaint"
    filled = read(tmp_path / "out" / "a.png")
    assert np.array_equal(filled[hole == 0], read(image)[hole == 0])
    assert not np.array_equal(filled[hole > 0], read(image)[hole > 0])
    ran(capsys, *common, "--out", tmp_path / "other", "--method", "ddnm", "--option", "eta=0.2", "--seed", 5)
    assert np.array_equal(read(tmp_path / "other" / "a.png")[hole == 0], read(image)[hole == 0])
    assert not np.array_equal(read(tmp_path / "other" / "a.png"), filled)


def test_super_resolution_takes_the_size_of_the_reference(
    grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, large = drawn(tmp_path / "s.png", (5, 6)), drawn(tmp_path / "l.png", (14, 17))
    common = (grey, small, "--task", "super-resolution", "--scale", 3, "--steps", 2, "--out", tmp_path / "out")
    ran(capsys, *common)
    assert read(tmp_path / "out" / "s.png").shape == (15, 18)
    result = ran(capsys, *common, "--reference", large, "--operator", "average")
    assert read(tmp_path / "out" / "s.png").shape == (14, 17)
    assert result["operator"] == "average"
    assert {"psnr_before", "psnr"} <= result["mean"].keys()
    said = refusal(capsys, 3, *common, "--reference", drawn(tmp_path / "x.png", (30, 30)))
    assert "x.png is 30 x 30 pixels (height x width), not 15 x 18" in said


def test_blur_and_lost_colour(grey: Path, colour: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, rgb = drawn(tmp_path / "a.png", (12, 13)), drawn(tmp_path / "rgb.png", (12, 13, 3))
    point = np.zeros((3, 3), np.uint8)
    point[1] = 255
    Image.fromarray(point).save(tmp_path / "kernel.png")
    deblur = (grey, image, "--task", "deblur", "--steps", 2, "--out", tmp_path / "out")
    for extra in (
        ("--kernel", tmp_path / "kernel.png"),
        ("--operator-option", "std=0.8"),
        ("--operator", "motion_blur"),
    ):
        result = ran(capsys, *deblur, *extra)
        assert read(tmp_path / "out" / "a.png").shape == (12, 13)
    assert result["operator"] == "motion_blur"
    ran(capsys, colour, rgb, "--task", "colorize", "--steps", 2, "--out", tmp_path / "out")
    assert read(tmp_path / "out" / "rgb.png").shape == (12, 13, 3)
    assert "colorize needs a model of colour" in refusal(capsys, 2, grey, rgb, "--task", "colorize")


def test_spoiling_and_noise_that_nobody_stated(grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = drawn(tmp_path / "a.png", (40, 40))
    Image.fromarray((np.indices((40, 40)).sum(0) * 3).astype(np.uint8)).save(image)
    spoil = (grey, image, "--task", "denoise", "--simulate", "--sigma", 20, "--out", tmp_path / "out")
    first, second = (ran(capsys, *spoil)["images"] for _ in range(2))
    assert first == second
    assert first[0]["psnr_before"] == pytest.approx(22.1, abs=0.5), "20 log10(255 / 20)"
    noisy = np.indices((40, 40)).sum(0) * 2.0 + 50 + np.random.default_rng(0).normal(0, 20, (40, 40))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(tmp_path / "noisy.png")
    assert main(["restore", str(grey), str(tmp_path / "noisy.png"), "--task", "denoise", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert 16 < float(said.split("noisy.png: ")[1]) < 24
    assert "give no --reference" in refusal(capsys, 2, *spoil, "--reference", image)
    assert "needs --sigma" in refusal(capsys, 2, grey, image, "--task", "denoise", "--simulate")


def test_tiles_change_little(grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = drawn(tmp_path / "a.png", (20, 64))
    common = (grey, image, "--task", "denoise", "--sigma", 20)
    ran(capsys, *common, "--out", tmp_path / "one")
    ran(capsys, *common, "--out", tmp_path / "other", "--tile", 32, "--batch-size", 2)
    one, other = (read(tmp_path / name / "a.png").astype(float) for name in ("one", "other"))
    assert np.abs(one - other).mean() < 5
    assert not np.array_equal(one, other), "tiles were used"


def test_classes(named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --class the null class; with it another result."""
    image = drawn(tmp_path / "a.png", (12, 12))
    common = (named, image, "--task", "denoise", "--sigma", 60)
    ran(capsys, *common, "--out", tmp_path / "none")
    ran(capsys, *common, "--out", tmp_path / "dog", "--class", "dog")
    assert not np.array_equal(read(tmp_path / "none" / "a.png"), read(tmp_path / "dog" / "a.png"))
    assert "did you mean 'dog'" in refusal(capsys, 2, *common, "--class", "dogg")


def test_wrong_usage_is_explained(grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, other = drawn(tmp_path / "a.png", (12, 12)), drawn(tmp_path / "b.png", (9, 12))
    out = ("--out", tmp_path / "out")
    denoise_it = (grey, image, "--task", "denoise", *out)
    assert "nowhere.png does not exist" in refusal(capsys, 3, grey, "nowhere.png", "--task", "denoise", *out)
    assert "diffunet restore --help" in refusal(capsys, 2, grey, image, "--task", "denois", *out)
    assert "needs --mask" in refusal(capsys, 2, grey, image, "--task", "inpaint", *out)
    assert "--mask is for --task inpaint" in refusal(capsys, 2, *denoise_it, "--mask", image)
    assert "--kernel is for --task deblur" in refusal(capsys, 2, *denoise_it, "--kernel", image)
    assert "--scale is for --task super-resolution" in refusal(capsys, 2, *denoise_it, "--scale", 2)
    assert "method 'repaint' is for operator 'mask' only" in refusal(
        capsys, 2, *denoise_it, "--sigma", 9, "--method", "repaint"
    )
    assert "unknown operator of --task deblur 'mask'" in refusal(
        capsys, 2, grey, image, "--task", "deblur", "--operator", "mask", *out
    )
    assert "should be NAME=VALUE" in refusal(capsys, 2, *denoise_it, "--option", "eta")
    assert "noise of 200 (of 255) is more than the 127.5" in refusal(capsys, 2, *denoise_it, "--sigma", 200)
    said = refusal(capsys, 3, grey, image, "--task", "inpaint", "--mask", other, *out)
    assert "b.png is 9 x 12 pixels (height x width), but its picture is 12 x 12" in said
    assert "2 times --reference for 1 pictures" in refusal(
        capsys, 2, *denoise_it, "--reference", image, "--reference", other
    )
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    assert "broken.png cannot be read" in refusal(capsys, 3, grey, tmp_path / "broken.png", "--task", "denoise", *out)
    (tmp_path / "empty").mkdir()
    assert "holds no picture for" in refusal(capsys, 3, *denoise_it, "--reference", tmp_path / "empty")
    assert "above data.max_pixels = 100" in refusal(capsys, 3, *denoise_it, "--max-pixels", 100)
    assert "does not exist; name a run folder" in refusal(capsys, 4, tmp_path / "none", image, "--task", "denoise")
    line = tiny.denoiser()
    save(line, tmp_path / "line.safetensors")
    assert "no pictures" in refusal(capsys, 2, tmp_path / "line.safetensors", image, "--task", "denoise", *out)
    assert not (tmp_path / "out").exists(), "nothing is written"
