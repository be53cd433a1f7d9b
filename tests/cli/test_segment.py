"""`diffunet segment`, and `evaluate` of such a run: any size and depth in, label values out, scores beside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffunet.cli import main
from diffunet.data.decode import decode_any
from diffunet.metrics.segmentation import confusion, dice, pixel_error
from diffunet.weights import described, load_segmenter
from tests import segments
from tests.training.conftest import Zygote


@pytest.fixture(scope="module")
def run(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run; not to be changed."""
    folder = tmp_path_factory.mktemp("segment")
    config = segments.write_config(folder)
    assert zygote.run(["train", config, "--out", folder / "run"], folder / "log") == 0, (folder / "log").read_text()
    return folder / "run"


def read(path: Path) -> np.ndarray:
    """The values of a picture file."""
    return np.asarray(Image.open(path))


def segmented(run: Path, out: Path, *arguments: object) -> list[str]:
    """The files that the command writes."""
    assert main(["segment", str(run), *map(str, arguments), "--out", str(out)]) == 0
    return sorted(path.name for path in out.iterdir())


def refusal(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """What a refused command says."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == code
    error = capsys.readouterr().err
    assert error.startswith("diffunet: error[E-")
    assert "Traceback" not in error
    return error


def test_masks_hold_the_label_values_of_the_likeliest_class(run: Path, tmp_path: Path) -> None:
    image = run.parent / "data" / "image" / "1.png"
    assert segmented(run, tmp_path / "out", image) == ["1-overlay.png", "1.png"]
    mask, overlay = read(tmp_path / "out" / "1.png"), read(tmp_path / "out" / "1-overlay.png")
    assert mask.shape == read(image).shape
    assert set(np.unique(mask)) <= {50, 200}
    assert overlay.shape == (*mask.shape, 3)
    segmenter = load_segmenter(run)
    x = torch.from_numpy(decode_any(str(image), 1, (255, 255, 255), None, 10**6))
    likeliest = segmenter.probabilities(x).argmax(0).numpy()
    assert np.array_equal(mask, np.array([50, 200])[likeliest])


@pytest.mark.parametrize("tile", [1, 30, 50, 1000])
def test_any_tile_gives_the_same_mask(run: Path, tmp_path: Path, tile: int) -> None:
    """Valid convolutions and batch norm: a tile changes sums in their last bits only."""
    image = run.parent / "data" / "image" / "5.png"
    segmented(run, tmp_path / "one", image)
    segmented(run, tmp_path / "other", image, "--tile", tile, "--batch-size", 3)
    different = read(tmp_path / "one" / "5.png") != read(tmp_path / "other" / "5.png")
    assert different.mean() < 0.002


def test_any_size_mode_and_depth(run: Path, tmp_path: Path) -> None:
    """One pixel, a strip, RGB, 16 bits, alpha: the mask has the image's size."""
    random, place = np.random.default_rng(0), tmp_path / "in"
    place.mkdir()
    pictures = {
        "pixel": np.zeros((1, 1), np.uint8),
        "strip": random.integers(0, 256, (3, 150), dtype=np.uint8),
        "colour": random.integers(0, 256, (31, 17, 3), dtype=np.uint8),
        "alpha": random.integers(0, 256, (20, 20, 4), dtype=np.uint8),
        "deep": random.integers(0, 65536, (20, 33), dtype=np.uint16),
    }
    for name, array in pictures.items():
        Image.fromarray(array).save(place / f"{name}.png")
    written = segmented(run, tmp_path / "out", place)
    assert written == sorted(f"{name}{end}.png" for name in pictures for end in ("", "-overlay"))
    for name, array in pictures.items():
        assert read(tmp_path / "out" / f"{name}.png").shape == array.shape[:2]


def test_scores_against_labels(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of labels, or a label for each image; the numbers are those of the masks that were written."""
    data = run.parent / "data"
    images = [data / "image" / f"{i}.png" for i in (0, 3)]
    labels = [data / "label" / f"{i}.png" for i in (0, 3)]
    each = [word for label in labels for word in ("--reference", label)]
    results = []
    for reference in (each, ["--reference", data / "label"]):
        capsys.readouterr()
        segmented(run, tmp_path / "out", *images, *reference, "--json")
        results.append(json.loads(capsys.readouterr().out)["scores"])
    assert results[0] == results[1]
    for i, label in enumerate(labels):
        mask = read(tmp_path / "out" / label.name)
        table = confusion((mask == 200).astype(int), (read(label) == 200).astype(int), 2)
        assert results[0]["images"][i]["dice"] == pytest.approx(dice(table).tolist())
        assert results[0]["images"][i]["pixel_error"] == pytest.approx(pixel_error(table))
    segmented(run, tmp_path / "out", *images, *each)
    shown = capsys.readouterr().out
    assert f"{results[0]['classes']['blob']['dice']['mean']:.4f}" in shown
    assert "pixel error" in shown


def test_evaluate_scores_the_held_out_images(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    capsys.readouterr()
    assert main(["evaluate", str(copy), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((copy / "evaluation.json").read_text())
    names = described(copy)[0]["held_out"]
    assert [image["name"] for image in result["images"]] == names
    references = [run.parent / "data" / "image" / name for name in names]
    segmented(copy, tmp_path / "out", *references, "--reference", run.parent / "data" / "label", "--json")
    again = json.loads(capsys.readouterr().out)["scores"]
    assert again["classes"] == result["classes"]
    assert main(["evaluate", str(copy)]) == 0
    shown = capsys.readouterr().out
    assert "2 held-out images (data.seed = 0)" in shown
    assert "+-" in shown
    assert "--sampler, --steps: for samples" in refusal(
        capsys, 2, "evaluate", copy, "--sampler", "ddim", "--steps", "3"
    )


def test_a_model_of_another_task_is_named(
    run: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = run.parent / "data" / "image" / "1.png"
    said = refusal(capsys, 4, "segment", trained, image)
    assert "holds a model of task 'diffusion', not 'segment'; use `diffunet sample`" in said
    said = refusal(capsys, 4, "sample", run)
    assert "holds a model of task 'segment', not 'diffusion'; use `diffunet segment`" in said
    assert "does not exist; name a run folder" in refusal(capsys, 4, "segment", tmp_path / "none", image)


def test_wrong_usage_is_explained(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = run.parent / "data"
    image, label = data / "image" / "1.png", data / "label" / "1.png"
    out = ("--out", tmp_path / "out")
    assert "nowhere.png does not exist" in refusal(capsys, 3, "segment", run, "nowhere.png", *out)
    assert "would both become 1.png" in refusal(capsys, 2, "segment", run, image, label, *out)
    said = refusal(capsys, 2, "segment", run, image, *out, "--reference", label, "--reference", label)
    assert "2 times --reference for 1 images" in said
    assert "see diffunet segment --help" in refusal(capsys, 2, "segment", run, image, "--tile", 0)
    said = refusal(capsys, 3, "segment", run, image, *out, "--reference", data / "label" / "2.png")
    assert "2.png is 46 x 52 pixels (height x width), but its image is 43 x 54" in said
    said = refusal(capsys, 3, "segment", run, image, *out, "--reference", image)
    assert "this model knows 50, 200" in said
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    assert "broken.png cannot be read" in refusal(capsys, 3, "segment", run, tmp_path / "broken.png", *out)
    assert "above data.max_pixels = 100" in refusal(capsys, 3, "segment", run, image, *out, "--max-pixels", 100)
    (tmp_path / "empty").mkdir()
    said = refusal(capsys, 3, "segment", run, image, *out, "--reference", tmp_path / "empty")
    assert "holds no label for" in said
    assert not (tmp_path / "out").exists(), "nothing is written"
