"""What a run looks at while it trains: the same losses at every call, nothing drawn from global generators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffunet import config as configs
from diffunet import data
from diffunet.nn import NETWORKS
from diffunet.training.diffusion import Diffusion
from diffunet.training.monitor import at_rest
from diffunet.training.ranks import Alone
from diffunet.training.segmentation import Segmentation
from tests import segments
from tests.training.runs import write_config

CPU = torch.device("cpu")


def task_of(folder: Path, *flags: str) -> Diffusion:
    config = configs.load(write_config(folder), list(flags))
    return Diffusion(config, data.load(config.data))


def model_of(task: Any) -> Any:
    model = task.model(NETWORKS.build(task.config.model))
    with torch.no_grad():  # a fresh network says zero, whatever it sees
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return model.train()


@pytest.fixture
def task(tmp_path: Path) -> Diffusion:
    return task_of(tmp_path)


def never() -> bool:
    return False


def global_state() -> tuple[Any, ...]:
    state = np.random.get_state()
    return torch.get_rng_state().tolist(), state[1].tolist(), state[2]  # type: ignore[index, union-attr]


def test_a_look_repeats_and_says_what_the_house_says(task: Diffusion) -> None:
    watch, model = task.held_out(CPU, Alone()), model_of(task)
    one, two = watch(model), watch(model)
    assert set(one) == {"held_out", "seen", "memory", "watch_seconds"}
    for name in ("held_out", "seen"):
        assert one[name] == two[name], "dropout was on, or other noise was drawn"
        assert one[name]["loss"] == pytest.approx(np.mean(one[name]["bins"]), rel=1e-4)  # 20 images: two in each bin
    assert one["held_out"] != one["seen"]
    assert 50 * 2**20 < one["memory"] < 2**40


def test_held_out_and_seen_differ_by_the_images_alone(tmp_path: Path) -> None:
    """With one and the same image everywhere there is no gap."""
    np.savez(tmp_path / "same.npz", images=np.full((40, 8, 8, 1), 200, np.uint8), labels=np.zeros(40, int))
    flags = ["--data.name", "array", "--data.path", str(tmp_path / "same.npz"), "--model.num_classes", "1"]
    flags += ["--data.held_out", "0.5"]
    task = task_of(tmp_path, *flags)
    found = task.held_out(CPU, Alone())(model_of(task))
    assert found["held_out"] == found["seen"]


def test_without_held_out_images_the_seen_ones_are_measured(tmp_path: Path) -> None:
    task = task_of(tmp_path, "--data.held_out", "0")
    assert set(task.held_out(CPU, Alone())(model_of(task))) == {"seen", "memory", "watch_seconds"}


def test_looks_and_previews_leave_modes_and_generators_alone(task: Diffusion, tmp_path: Path) -> None:
    model = model_of(task)
    model.network.get_submodule("mid").eval()  # as a frozen part would be
    modes, before = [module.training for module in model.modules()], global_state()
    assert task.held_out(CPU, Alone())(model)
    assert task.preview(model, tmp_path / "step-00000001.png", never, Alone())
    assert [module.training for module in model.modules()] == modes
    assert global_state() == before


def test_at_rest_gives_the_modes_back_after_an_error_too() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())

    def look() -> None:
        with at_rest(model):
            assert not any(module.training for module in model.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        look()
    assert [module.training for module in model.modules()] == [True, True, False]


def test_a_preview_tells_of_the_nearest_training_images(task: Diffusion, tmp_path: Path) -> None:
    path = tmp_path / "samples" / "step-00000001.png"
    model = model_of(task)
    facts = task.preview(model, path, never, Alone())
    assert set(facts) == {"copies", "preview_seconds", "copies_seconds"}
    copies = facts["copies"]
    assert (copies["samples"], copies["looked_at"], copies["train"]) == (4, 1438, 1438)
    assert "random_conv" in copies["extractor"]
    assert len(copies["nearest"]) == 4
    distances = [row["pixels"]["distance"] for row in copies["nearest"]]
    assert distances == sorted(distances)
    for name in ("pixels", "features"):
        assert copies[name]["ratio"] == pytest.approx(copies[name]["median"] / copies[name]["floor"], rel=1e-3)
        assert copies[name]["flag"] is False
    with Image.open(path.with_name("step-00000001-neighbours.png")) as picture:
        assert picture.width * 4 == pytest.approx(picture.height * 3, rel=0.1)  # rows of three
    assert task.preview(model, path, never, Alone())["copies"] == copies


def test_training_images_as_samples_are_found_out_mirrored_or_not(task: Diffusion, tmp_path: Path) -> None:
    """All of them exact copies; training mirrors its images too."""
    copies = task._preview.copies
    assert copies is not None
    images = torch.stack([torch.from_numpy(task.split.train[i]) for i in range(30, 38)])
    images[::2] = images[::2].flip(-1)
    found = copies(images, tmp_path / "x.png", never)
    assert [row["pixels"]["train"] for row in found["nearest"]] == list(range(30, 38))
    for name in ("pixels", "features"):
        assert found[name]["median"] == pytest.approx(0, abs=1e-5)
        assert (found[name]["nearer"], found[name]["alone"], found[name]["flag"]) == (1.0, 1.0, True)


def test_new_images_as_samples_are_no_copies(tmp_path: Path) -> None:
    task = task_of(tmp_path, "--sample.preview_neighbours", "300")
    assert task.split.held_out is not None
    copies = task._preview.copies
    assert copies is not None
    new = torch.stack([torch.from_numpy(task.split.held_out[i]) for i in range(100)])
    found = copies(new, tmp_path / "x.png", never)
    assert (found["looked_at"], found["train"]) == (300, 1438)
    for name in ("pixels", "features"):
        assert found[name]["ratio"] == pytest.approx(1, abs=0.2)
        assert found[name]["flag"] is False


def test_a_signal_ends_the_search_and_it_can_be_left_out(tmp_path: Path) -> None:
    task = task_of(tmp_path, "--sample.steps", "1")
    path, calls = tmp_path / "step-00000001.png", iter([False])
    assert task.preview(model_of(task), path, lambda: next(calls, True), Alone()) == {}
    assert not path.with_name("step-00000001-neighbours.png").exists()
    without = task_of(tmp_path, "--sample.preview_neighbours", "0")
    assert set(without.preview(model_of(without), path, never, Alone())) == {"preview_seconds", "copies_seconds"}


def test_a_segmentation_is_measured_on_seen_images_too(tmp_path: Path) -> None:
    config = configs.load(segments.write_config(tmp_path), [])
    task = Segmentation(config, data.load(config.data))
    model, before = model_of(task), global_state()
    found = task.held_out(CPU, Alone())(model)
    assert set(found) == {"held_out", "seen", "memory", "watch_seconds"}
    for name in ("held_out", "seen"):
        assert set(found[name]) == {"loss", "dice", "pixel_error"}
        assert set(found[name]["dice"]) == {"gap", "blob"}
    assert set(task.preview(model, tmp_path / "x.png", never, Alone())) == {"preview_seconds"}
    assert task.preview(model, tmp_path / "y.png", lambda: True, Alone()) == {}
    assert model.training
    assert global_state() == before
