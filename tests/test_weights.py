"""Weights files: they give back what was saved, they are whole or not there, and load refuses what does not fit."""

from __future__ import annotations

import ast
import json
import os
import stat
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import diffunet
from diffunet import ClassicUNet, Denoiser, Schedule, UNet, generate, load, save
from diffunet.errors import CheckpointError, ConfigError, StorageError
from diffunet.predictions import PREDICTIONS
from diffunet.schedules import SCHEDULES
from diffunet.spec import DataInfo, SelfAttention, SinusoidalTime, schedule_config
from diffunet.spec.process import mismatch
from diffunet.weights import describe, digest, read_tensors
from tests import tiny

SOURCES = sorted(Path(diffunet.__file__).parent.rglob("*.py"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


def rewrite(den: Denoiser, path: Path, tensors: dict[str, Any], **changes: Any) -> None:
    """Write a file whose digest is right, whatever it says: what a stranger could send."""
    description = json.dumps(describe(den) | changes)
    path.write_bytes(safetensors.torch.save(tensors, {"diffunet": description, "sha256": digest(description, tensors)}))


NETWORKS = {
    "signals": tiny.unet(),
    "images, attention, classes": tiny.unet(
        dims=2, base_channels=4, channel_multipliers=(1, 2), attention_levels=(1,), num_classes=3, null_class=True
    ),
    "volumes, other embedding": tiny.unet(
        dims=3, base_channels=4, time=SinusoidalTime(order="cos_sin", shift=0), attention=SelfAttention(heads=2)
    ),
    "half precision": tiny.unet().to(torch.float16),
    "classic": ClassicUNet(dims=2, base_channels=2, levels=2, padding="same"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_equal(name: str, path: Path) -> None:
    net = NETWORKS[name]
    save(Denoiser(net, Schedule.linear()), path)
    again = load(path).network
    assert type(again) is type(net)
    assert again.config == net.config
    assert not again.training
    for key, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
        assert again.state_dict()[key].dtype == value.dtype
    assert not any(buffer.is_meta for buffer in again.buffers())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_outputs_are_equal_bit_for_bit(dims: int, path: Path) -> None:
    den = tiny.denoiser(dims=dims, num_classes=3, null_class=True)
    save(den, path)
    shape = (2, 1, *[5] * dims)
    options: dict[str, Any] = {"steps": 4, "guidance": 2.0, "class_labels": 1}
    assert torch.equal(generate(load(path), shape, **options), generate(den, shape, **options))


@pytest.mark.parametrize(("schedule", "prediction"), [p for p in product(SCHEDULES, PREDICTIONS) if mismatch(*p)])
def test_a_prediction_that_the_schedule_cannot_have_is_refused(schedule: str, prediction: str) -> None:
    with pytest.raises(ConfigError, match=f"prediction '{prediction}'"):
        Denoiser(tiny.unet(), SCHEDULES[schedule](schedule_config(schedule)), prediction)


@pytest.mark.parametrize(("schedule", "prediction"), [p for p in product(SCHEDULES, PREDICTIONS) if not mismatch(*p)])
@pytest.mark.parametrize("clip", [None, (-0.5, 1.0)])
def test_the_description_comes_back_equal(schedule: str, prediction: str, clip: Any, path: Path) -> None:
    data = DataInfo(shape=(1, 4), classes=("a", "\u00e9, \N{SNOWMAN}"), class_counts=(3, 4))
    den = Denoiser(tiny.unet(), getattr(Schedule, schedule)(), prediction, clip, data)
    save(den, path, step=1000)
    again = load(path)
    assert (again.schedule, again.prediction, again.clip, again.data) == (den.schedule, prediction, clip, data)
    assert json.loads(read_tensors(path)[1]["diffunet"])["step"] == 1000


def test_options_of_a_schedule_come_back(path: Path) -> None:
    schedule = Schedule.linear(T=250, beta_end=0.05)
    save(Denoiser(tiny.unet(), schedule), path)
    assert load(path).schedule == schedule
    assert load(path).schedule.sigma(0.3) == schedule.sigma(0.3)


def test_weights_stay_trainable(path: Path) -> None:
    save(tiny.denoiser(), path)
    net = load(path).network
    net(torch.ones(1, 1, 4), 0.5).sum().backward()
    assert all(p.requires_grad and p.grad is not None for p in net.parameters())


def test_a_run_folder_stands_for_its_weights(path: Path) -> None:
    save(tiny.denoiser(), path)
    one, other = (load(place).network.state_dict() for place in (path.parent, str(path)))
    assert all(torch.equal(one[name], other[name]) for name in one)
    (path.parent / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty holds no weights.safetensors"):
        load(path.parent / "empty")


def test_what_is_not_there_or_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.safetensors does not exist"):
        load(tmp_path / "nowhere.safetensors")
    (tmp_path / "run" / "weights.safetensors").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        load(tmp_path / "run")


def test_weights_of_others_are_named_as_such(path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(3)}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"weights.safetensors was not written by diffunet"):
        load(path)


def test_tensors_that_do_not_fit_are_named(path: Path) -> None:
    den = tiny.denoiser()
    tensors = den.network.state_dict()
    wrong = {"head.bias": torch.zeros(7), "extra.weight": torch.zeros(2), "stem.weight": tensors["stem.weight"].int()}
    rewrite(den, path, {k: v for k, v in tensors.items() if k != "stem.bias"} | wrong)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    for part in ("4 differences", "stem.bias: missing", "extra.weight: not in this", "head.bias: (7,) where (1,)"):
        assert part in str(caught.value)
    assert "stem.weight: torch.int32 where torch.float32" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2; this diffunet reads 1"),
        ({"prediction": "epsilon"}, "did you mean 'eps'"),
        ({"prediction": ["eps"]}, "cannot build"),
        ({"schedule": {"kind": "linear", "T": 10**9}}, "cannot build"),
        ({"schedule": None}, "cannot build"),
        ({"network": {"kind": "unet", "base_channels": 10**6}}, "cannot build"),
        ({"network": {"kind": "unet", "layers": 3}}, "cannot build"),
        ({"network": []}, "cannot build"),
        ({"data": {"shape": "x"}}, "cannot build"),
        ({"clip": 5}, "cannot build"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str, path: Path) -> None:
    den = tiny.denoiser()
    rewrite(den, path, den.network.state_dict(), **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert path.name in str(caught.value)


@pytest.mark.parametrize(("size", "magic"), [(0x0580, b"\x80\x05"), (0x4B50, b"PK")])
def test_a_header_whose_size_looks_like_a_pickle_is_no_pickle(size: int, magic: bytes, path: Path) -> None:
    """A file starts with the size of its header, and some sizes start as pickles and zip files do."""
    den = Denoiser(ClassicUNet(dims=1, base_channels=1, levels=1), Schedule.linear())
    save(den, path, note="")
    save(den, path, note="x" * (size - int.from_bytes(path.read_bytes()[:8], "little")))
    assert path.read_bytes().startswith(magic + bytes(6))
    assert load(path).network.config == den.network.config


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_file_mode_follows_the_umask(umask: int, path: Path) -> None:
    before = os.umask(umask)
    try:
        save(tiny.denoiser(), path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_saving_makes_folders_and_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "w.safetensors"
    for step in (1, 2):
        save(tiny.denoiser(), path, step=step)
        assert json.loads(read_tensors(path)[1]["diffunet"])["step"] == step
        assert os.listdir(path.parent) == ["w.safetensors"]


def test_another_suffix_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"written as .safetensors, not 'w.pt'"):
        save(tiny.denoiser(), tmp_path / "w.pt")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*w.safetensors"):
        save(tiny.denoiser(), tmp_path / "file" / "w.safetensors")


FULL_DISK = """
import resource, sys
from pathlib import Path
from diffunet import load, save
from diffunet.errors import StorageError
den, path = load(sys.argv[1]), Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # Python ignores SIGXFSZ: a writer sees EFBIG
try:
    save(den, path, step=2)
except StorageError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_file_and_says_what_is_needed(path: Path) -> None:
    save(tiny.denoiser(), path, step=1)
    before = path.read_bytes()
    assert len(before) > 4096
    run = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert f"cannot write {path}: need {len(before):,} bytes, free " in run.stdout
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_torch_load_is_called_by_the_limited_process_only() -> None:
    """It unpickles; and `import pickle` would be the same by another door."""
    assert len(SOURCES) > 20
    limited = ast.parse(next(source for source in SOURCES if source.name == "unpickle.py").read_text())
    calls = [ast.unparse(n) for n in ast.walk(limited) if isinstance(n, ast.Call) and "load" in ast.unparse(n.func)]
    assert calls == ["torch.load(file, map_location='cpu', weights_only=True, mmap=False)"]
    for source in SOURCES:
        if source.name == "unpickle.py":
            continue
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "load":
                assert ast.unparse(node.value) not in ("torch", "pickle"), f"{source.name}:{node.lineno}"
            if isinstance(node, ast.ImportFrom) and node.module == "torch":
                assert "load" not in [alias.name for alias in node.names], f"{source.name}:{node.lineno}"


def test_a_preset_comes_back_equal(path: Path) -> None:
    net = UNet.from_preset("small", base_channels=32)
    save(Denoiser(net, Schedule.cosine(), "v", (-1, 1)), path)
    assert load(path).network.config == net.config


def test_equal_weights_are_equal_bytes(path: Path) -> None:
    den = tiny.denoiser()
    save(den, path)
    first = path.read_bytes()
    for _ in range(5):
        save(den, path)
        assert path.read_bytes() == first
