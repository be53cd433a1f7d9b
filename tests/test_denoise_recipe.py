"""configs/denoise.toml cut down: it learns, it resumes on its random parts, and it denoises pictures of any size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffunet import config as configs
from diffunet import load
from diffunet.cli import main
from diffunet.inverse import denoise

CONFIG = Path(__file__).parents[1] / "configs" / "denoise.toml"
SHORT = (
    "--data.crop 16 --data.held_out 0 --model.channels [8,16] --model.base_channels 8 --train.steps 60 "
    "--train.batch_size 4 --train.warmup_steps 5 --train.learning_rate 5e-3 --train.checkpoint_every 30 "
    "--train.precision no --ema.decay 0.8 --sample.preview_images 1 --sample.steps 1"
)


def smooth(seed: int, height: int, width: int) -> np.ndarray:
    """Slow waves across a picture (H, W), uint8: easy to tell from noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 16
    a, b, phase = random.uniform((-1, -1, 0), (1, 1, 6)).tolist()
    waves: np.ndarray = 127.5 + 100 * np.sin(a * y + b * x + phase)
    return waves.round().astype(np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 60 steps on six pictures of other sizes each."""
    root = tmp_path_factory.mktemp("denoise")
    (root / "images").mkdir()
    for i in range(6):
        Image.fromarray(smooth(i, 20 + 3 * i, 40 - 2 * i)).save(root / "images" / f"{i}.png")
    assert train(root, root / "run") == 0
    return root / "run"


def train(root: Path, run: Path) -> int:
    return main(["train", str(CONFIG), "--data.path", str(root / "images"), "--out", str(run), *SHORT.split()])


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_its_noise_is_that_of_pictures_with_sigma_0_to_75() -> None:
    config = configs.load(CONFIG)
    schedule, times = config.process.schedule, config.objective.times
    assert schedule.kind == "karras"
    assert times.kind == "uniform_sigma"
    assert (times.low, times.high) == (schedule.sigma_min, schedule.sigma_max)
    assert round(schedule.sigma_max * 127.5, 1) == 75.0
    assert schedule.sigma_min * 127.5 < 1


@pytest.mark.parametrize("shape", [(33, 47), (16, 16), (5, 64)])
def test_a_short_run_already_takes_noise_away_at_any_size(run: Path, shape: tuple[int, int]) -> None:
    """At sigma 50 less than a quarter of the error is left; an untrained network, which scales y, leaves more."""
    den = load(run)
    x0 = torch.from_numpy(smooth(99, *shape) / 127.5 - 1).float()[None, None]
    y = x0 + 50 / 127.5 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))

    def error(x: Tensor) -> float:
        return float((x - x0).square().mean())

    assert error(denoise(den, y, 50 / 127.5)) < error(y) / 4


def test_a_run_on_random_parts_goes_on_exactly(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "step-00000060")
    assert train(run.parent, again) == 0
    assert losses(again) == losses(run)
    assert (again / "weights.safetensors").read_bytes() == (run / "weights.safetensors").read_bytes()
