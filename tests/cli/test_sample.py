"""`diffunet sample`: what it writes, that an image is its seed's, and what it refuses."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffunet import generation, load, save
from diffunet.cli import main
from diffunet.cli.options import parse_seeds
from diffunet.cli.runs import random_label
from diffunet.errors import ConfigError
from diffunet.spec import DataInfo
from tests import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """Weights of a network that knows cats, dogs and birds, of which the training images were one part dogs."""
    den = tiny.denoiser(dims=2, num_classes=3, null_class=True)
    den.data = DataInfo(shape=(1, 6, 5), classes=("cat", "dog", "bird"), class_counts=(0, 10, 30))
    save(den, tmp_path / "named.safetensors")
    return tmp_path / "named.safetensors"


def arrays(run: Path, tmp_path: Path, *flags: str) -> np.ndarray:
    """Samples as the array of an .npz file."""
    out = tmp_path / "x.npz"
    assert main(["sample", str(run), "--steps", "3", "--out", str(out), *flags]) == 0
    with np.load(out) as found:
        assert found.files == ["arr_0"]
        return found["arr_0"]


def refusal(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """What a refused command says."""
    capsys.readouterr()
    assert main(["sample", *map(str, arguments)]) == code
    error = capsys.readouterr().err
    assert error.startswith("diffunet: error[E-")
    assert "Traceback" not in error
    assert error.count("\n") <= 6
    return error


# --- what is written --------------------------------------------------------------------------------------------------


def test_a_png_is_a_grid(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "grid.png"
    assert main(["sample", str(trained), "--n", "5", "--steps", "2", "--out", str(out)]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    with Image.open(out) as picture:
        # three columns and two rows of 8 x 8, a gap of one around each, enlarged eight times
        assert (picture.mode, picture.size) == ("L", (8 * 28, 8 * 19))
    assert [p.name for p in out.parent.iterdir()] == ["grid.png"]


def test_a_folder_holds_the_grid_and_one_png_a_seed(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "many"
    assert main(["sample", str(trained), "--seeds", "7,0-1", "--steps", "3", "--out", str(out)]) == 0
    assert {p.name for p in out.iterdir()} == {
        *("grid.png", "seed-000000.png", "seed-000001.png", "seed-000007.png"),
    }
    rows = arrays(trained, tmp_path, "--seeds", "7,0-1")
    for row, seed in zip(rows, (7, 0, 1), strict=True):
        with Image.open(out / f"seed-{seed:06d}.png") as picture:
            assert np.array_equal(np.asarray(picture), row[..., 0])


def test_an_npz_holds_uint8_rows_in_seed_order(trained: Path, tmp_path: Path) -> None:
    rows = arrays(trained, tmp_path, "--n", "6")
    assert (rows.shape, rows.dtype) == ((6, 8, 8, 1), np.uint8)
    assert np.array_equal(rows, arrays(trained, tmp_path, "--seeds", "0-5"))
    assert len({row.tobytes() for row in rows}) == 6


def test_samples_lie_in_the_run_by_default(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("weights.safetensors", "config.json"):
        (run / name).write_bytes((trained / name).read_bytes())
    assert main(["sample", str(run), "--seeds", "3-4", "--steps", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["seeds"] == [3, 4]
    assert [Path(f).name for f in result["files"]] == ["grid.png", "seed-000003.png", "seed-000004.png"]
    assert all(Path(f).parent == run / "samples" / "seeds-3-4" for f in result["files"])
    assert len(result["labels"]) == 2
    assert main(["sample", str(run / "weights.safetensors"), "--seeds", "3-4", "--steps", "1"]) == 0


def test_a_trajectory_is_a_gif_and_a_strip(trained: Path, tmp_path: Path) -> None:
    flags = ["--n", "3", "--steps", "5", "--trajectory"]
    assert main(["sample", str(trained), *flags, "--out", str(tmp_path / "many")]) == 0
    assert main(["sample", str(trained), *flags, "--out", str(tmp_path / "one.png")]) == 0
    for base in (tmp_path / "many" / "trajectory", tmp_path / "one-trajectory"):
        with Image.open(f"{base}.gif") as gif:
            assert gif.n_frames == 5
            shown = []
            for i in range(5):
                gif.seek(i)
                shown.append(gif.convert("L").tobytes())
            assert len(set(shown)) == 5
        with Image.open(f"{base}.png") as strip:
            # five clean estimates from left to right, an image each row
            assert strip.width * (3 * 9 + 1) == strip.height * (5 * 9 + 1)


# --- an image is its seed's -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("flags", [["--batch-size=1"], ["--batch-size=3"], ["--batch-size=7", "--guidance=2"]])
def test_batches_and_order_do_not_change_an_image(
    trained: Path, tmp_path: Path, sampler: str, flags: list[str]
) -> None:
    """At most one of 255 levels: matrix products of other sizes may round otherwise."""
    same = ["--sampler", sampler, *[flag for flag in flags if "guidance" in flag]]
    whole = arrays(trained, tmp_path, "--seeds", "3-9", *same).astype(int)
    assert abs(arrays(trained, tmp_path, "--seeds", "3-9", "--sampler", sampler, *flags).astype(int) - whole).max() <= 1
    mixed = arrays(trained, tmp_path, "--seeds", "9,5,3", "--sampler", sampler, *flags).astype(int)
    assert abs(mixed - whole[[6, 2, 0]]).max() <= 1


def test_a_label_depends_on_its_seed_alone(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for flags in (["--n", "9"], ["--seeds", "4-8"], ["--seeds", "8,2", "--batch-size", "1"]):
        assert main(["sample", str(trained), "--steps", "1", "--out", str(tmp_path), "--json", *flags]) == 0
        result = json.loads(capsys.readouterr().out)
        for seed, label in zip(result["seeds"], result["labels"], strict=True):
            assert found.setdefault(seed, label) == label
    assert len(set(found.values())) > 2


def test_labels_follow_the_training_histogram(named: Path) -> None:
    """No cats; a quarter dogs, within four standard deviations of 2000 draws (0.0097)."""
    den = load(named)
    labels = [random_label(den, seed) for seed in range(2000)]
    assert set(labels) == {1, 2}
    assert labels.count(1) / 2000 == pytest.approx(0.25, abs=0.04)


# --- options ----------------------------------------------------------------------------------------------------------


def test_a_class_goes_by_name_or_number(named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_name = arrays(named, tmp_path, "--n", "3", "--class", "dog")
    assert np.array_equal(by_name, arrays(named, tmp_path, "--n", "3", "--class", "1"))
    assert not np.array_equal(by_name, arrays(named, tmp_path, "--n", "3", "--class", "bird"))
    assert "unknown class 'dgo'; did you mean 'dog'? one of: cat, dog, bird" in refusal(capsys, 2, named, "--class=dgo")
    for wanted in ("3", "-1", "9" * 5000, "\N{SUPERSCRIPT TWO}"):
        assert "one of: cat, dog, bird" in refusal(capsys, 2, named, f"--class={wanted}")


def test_guidance_acts_in_its_interval(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--n", "3", "--class", "4", "--guidance"]
    plain, guided = arrays(trained, tmp_path, *flags[:-1]), arrays(trained, tmp_path, *flags, "8")
    assert np.array_equal(arrays(trained, tmp_path, *flags, "1"), plain)
    assert not np.array_equal(guided, plain)
    assert np.array_equal(arrays(trained, tmp_path, *flags, "8", "--guidance-interval", "0,1"), guided)
    assert np.array_equal(arrays(trained, tmp_path, *flags, "8", "--guidance-interval", "0,0"), plain)
    part = arrays(trained, tmp_path, *flags, "8", "--guidance-interval", "0.5,1")
    assert not np.array_equal(part, plain)
    assert not np.array_equal(part, guided)
    for wrong in ("0.5", "a,b", "1,2,3"):
        error = refusal(capsys, 2, trained, "--guidance=2", f"--guidance-interval={wrong}")
        assert f"--guidance-interval = '{wrong}' should be 2 numbers" in error


def test_samplers_their_options_and_spacings_matter(trained: Path, tmp_path: Path) -> None:
    variants: list[list[str]] = [
        [],
        ["--option", "eta=0.5"],
        ["--sampler", "ddpm"],
        ["--sampler", "ddpm", "--option", "variance=fixed_large"],
        ["--spacing", "linspace"],
        ["--steps", "5"],
        ["--sampler", "DPMSolverMultistepScheduler"],
    ]
    found = {arrays(trained, tmp_path, "--n", "2", *flags).tobytes() for flags in variants}
    assert len(found) == len(variants)
    ddim = arrays(trained, tmp_path, "--n", "2").astype(int)
    assert abs(arrays(trained, tmp_path, "--n", "2", "--sampler", "DDIMScheduler").astype(int) - ddim).max() <= 1


def test_the_raw_weights_are_others_than_their_average(trained: Path, tmp_path: Path) -> None:
    average = arrays(trained, tmp_path, "--n", "4", "--ema", "ema")
    assert np.array_equal(arrays(trained, tmp_path, "--n", "4"), average)
    assert not np.array_equal(arrays(trained, tmp_path, "--n", "4", "--ema", "raw"), average)


# --- what is refused --------------------------------------------------------------------------------------------------

USAGE: list[tuple[list[str], str]] = [
    (["--n", "4", "--seeds", "0-3"], "give --n or --seeds, not both"),
    (["--n", "0"], "see diffunet sample --help"),
    (["--sampler", "dimm"], "unknown sampler 'dimm'; did you mean 'ddim'? one of: ddpm, ddim"),
    (["--sampler", "DDIMsScheduler"], "unknown diffusers scheduler 'DDIMsScheduler'; did you mean 'DDIMScheduler'?"),
    (["--option", "etaa=0.5"], "ddim.etaa: "),
    (["--option", "eta=2"], "ddim.eta: "),
    (["--option", "eta"], "--option 'eta' should be NAME=VALUE"),
    (["--spacing", "leding"], "did you mean 'leading'?"),
    (["--ema", "best"], "see diffunet sample --help"),
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


# --- whole processes --------------------------------------------------------------------------------------------------


def test_two_front_doors_at_once_fill_one_folder(trained: Path, tmp_path: Path) -> None:
    """`python -m sample` and `python -m diffunet sample`, at the same time, into the same files."""
    doors = [["-m", "sample"], ["-m", "diffunet", "sample"]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    flags = ["--n", "3", "--steps", "2", "--out", str(tmp_path / "many")]
    started = [
        subprocess.Popen(
            [sys.executable, *door, str(trained), *flags], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )
        for door in doors
    ]
    for process in started:
        _, error = process.communicate(timeout=120)
        assert (process.returncode, error) == (0, "")
    assert len(list((tmp_path / "many").iterdir())) == 4
    for path in (tmp_path / "many").iterdir():
        with Image.open(path) as picture:
            picture.load()
