"""`diffunet sample`: what it writes, that an image is its seed's, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffunet import load
from diffunet.cli import main
from diffunet.cli.runs import random_label

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("sampler", ["arc", "ddpm"])
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
        ["--sampler", "ddim"],
        ["--sampler", "ddim", "--option", "eta=0.5"],
        ["--sampler", "ddpm"],
        ["--sampler", "ddpm", "--option", "variance=fixed_large"],
        ["--spacing", "linspace"],
        ["--steps", "5"],
        ["--sampler", "DPMSolverMultistepScheduler"],
    ]
    found = {arrays(trained, tmp_path, "--n", "2", *flags).tobytes() for flags in variants}
    assert len(found) == len(variants)
    ddim = arrays(trained, tmp_path, "--n", "2", "--sampler", "ddim").astype(int)
    assert abs(arrays(trained, tmp_path, "--n", "2", "--sampler", "DDIMScheduler").astype(int) - ddim).max() <= 1


def test_the_raw_weights_are_others_than_their_average(trained: Path, tmp_path: Path) -> None:
    average = arrays(trained, tmp_path, "--n", "4", "--ema", "ema")
    assert np.array_equal(arrays(trained, tmp_path, "--n", "4"), average)
    assert not np.array_equal(arrays(trained, tmp_path, "--n", "4", "--ema", "raw"), average)


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
