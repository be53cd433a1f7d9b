"""Every file in configs/ is a small story that runs: whole on the offline digits, cut down where it is for a GPU."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diffunet import config as configs
from diffunet.cli import main
from diffunet.nn import NETWORKS

FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
every_file = pytest.mark.parametrize("path", FILES, ids=[p.stem for p in FILES])
# Of a step: a batch of four, and a preview of four images by two network calls, or of one mask.
SHORT = "--train.steps 1 --train.batch_size 4 --train.workers 0"
PREVIEW = {
    "diffusion": "--sample.preview_images 4 --sample.steps 2",
    "segment": "--segment.preview_images 1 --train.held_out_images 1",
}
SMALL = "--model.base_channels 32 --model.blocks_per_level 1"


@every_file
def test_it_begins_with_its_story_and_is_short(path: Path) -> None:
    lines = path.read_text(encoding="ascii").splitlines()
    assert lines[0].startswith("# ")
    assert 60 <= len(lines[0]) <= 120, "what it trains, on what, how long, what to expect"
    assert len(lines) <= 40


@every_file
def test_it_resolves_under_its_own_name(path: Path) -> None:
    config = configs.load(path)
    assert config.run.name == path.stem
    assert configs.load(path, ["--train.steps", "1"]).train.steps == 1


@every_file
def test_its_network_takes_and_gives_the_data(path: Path) -> None:
    """On the meta device: the shapes meet, no memory is needed."""
    config = configs.load(path)
    own = config.data.size or config.data.crop
    known = {"digits": 8, "fashion_mnist": 28, "cifar10": 32, "pairs": 572, "array": 256}
    side = known.get(config.data.name, own)
    sides = side if isinstance(side, tuple) else (side,) * config.model.dims
    with torch.device("meta"):
        network = NETWORKS.build(config.model)
        x = torch.empty(2, config.model.in_channels, *sides)
        TAKES[config.run.task](network, x)


def images_to_images(network: nn.Module, x: torch.Tensor) -> None:
    config: Any = network.config
    labels = torch.zeros(2, dtype=torch.long) if config.num_classes else None
    assert network(x, torch.zeros(2), labels).shape == x.shape


def images_to_classes(network: nn.Module, x: torch.Tensor) -> None:
    """The paper's own sizes: 572 in, 388 out, or 572 with same padding."""
    config: Any = network.config
    assert network(x).shape[1] == config.out_channels
    assert network(x).shape[2] in (388, 572)


TAKES = {"diffusion": images_to_images, "segment": images_to_classes}


def of_digits(root: Callable[[], Path], place: Path) -> list[str]:
    return []


def of_fashion_mnist(root: Callable[[], Path], place: Path) -> list[str]:
    return ["--data.path", str(root() / "fashion_mnist"), *SMALL.split()]


def of_folder(root: Callable[[], Path], place: Path) -> list[str]:
    return ["--data.path", str(root() / "sign_digits"), "--data.size", "16", *SMALL.split()]


def of_cifar10(root: Callable[[], Path], place: Path) -> list[str]:
    """The first images of the real data, in pickles like the original ones."""
    sheet = np.asarray(Image.open(root() / "cifar10" / "sheets" / "data_batch_1_0.webp").convert("RGB"))
    with np.load(root() / "cifar10" / "labels.npz") as labels:
        numbers = labels["train"][:40].tolist()
    tiles = [sheet[:32, 32 * i : 32 * i + 32].transpose(2, 0, 1).reshape(-1) for i in range(40)]
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (place / name).write_bytes(pickle.dumps({b"data": np.stack(tiles), b"labels": numbers}))
    return ["--data.path", str(place), *SMALL.split()]


def of_ecg(root: Callable[[], Path], place: Path) -> list[str]:
    """Beats of the real file's types and keys."""
    random = np.random.default_rng(0)
    beats, labels, split = random.integers(-500, 500, (40, 256)).astype(np.int16), np.arange(40) % 5, np.arange(40) % 2
    np.savez(place / "beats.npz", x=beats, y=labels.astype(np.uint8), split=split.astype(np.uint8))
    return ["--data.path", str(place / "beats.npz"), "--model.base_channels", "8"]


def of_hippocampus(root: Callable[[], Path], place: Path) -> list[str]:
    """Volumes of several sizes in the real data's folders."""
    for i, part in enumerate(("train", "train", "train", "train", "test")):
        (place / part / "images").mkdir(parents=True, exist_ok=True)
        volume = np.random.default_rng(i).random((35 + i, 50, 36 - i), dtype=np.float32)
        nibabel.Nifti1Image(volume, np.eye(4)).to_filename(place / part / "images" / f"{i}.nii.gz")
    return ["--data.path", str(place), "--model.channels", "[4, 4, 4]"]


def of_segment_isbi(root: Callable[[], Path], place: Path) -> list[str]:
    return ["--data.path", str(root() / "isbi2012" / "train"), "--model.base_channels", "4"]


def of_denoise(root: Callable[[], Path], place: Path) -> list[str]:
    return ["--data.path", str(root() / "denoising" / "Set12"), "--data.crop", "16", "--model.channels", "[8, 16, 16]"]


DATA = {
    "denoise": of_denoise,
    "digits": of_digits,
    "ecg": of_ecg,
    "hippocampus": of_hippocampus,
    "cifar10_small": of_cifar10,
    "fashion_mnist": of_fashion_mnist,
    "folder": of_folder,
    "cifar10": of_cifar10,
    "cifar10_unconditional": of_cifar10,
    "segment_isbi": of_segment_isbi,
}


@every_file
def test_it_runs_for_one_step(path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A warm-up of 5000 steps and a checkpoint every 10,000 are no contradiction to a single step."""
    flags = DATA[path.stem](lambda: request.getfixturevalue("data_root"), tmp_path)
    run = tmp_path / "run"
    short = f"{SHORT} {PREVIEW[configs.load(path).run.task]}"
    assert main(["train", str(path), "--out", str(run), *short.split(), *flags]) == 0
    (record,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert record["step"] == 1
    assert 0 < record["loss"] < 10
    assert (run / "samples" / "step-00000001.png").exists()
    assert (run / "weights.safetensors").exists()


@pytest.mark.parametrize("preset", ["unet-2015", "unet-2015-same", "unet-dilated", "unet-plain"])
def test_the_segmentation_networks_differ_by_one_key(preset: str) -> None:
    path = next(p for p in FILES if p.stem == "segment_isbi")
    config = configs.load(path, ["--model.preset", preset])
    with torch.device("meta"):
        images_to_classes(NETWORKS.build(config.model), torch.empty(1, 1, 572, 572))
