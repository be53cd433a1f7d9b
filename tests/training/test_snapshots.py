"""Averages made after training: held against averages that were followed during it."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffunet import save
from diffunet.errors import CheckpointError, ConfigError
from diffunet.spec import DataInfo
from diffunet.training.snapshots import Snapshot, plan, reconstruct, stored
from diffunet.weights import described
from tests import tiny
from tests.training.trajectory import BETWEEN, EVERY, STEPS, STORED, Trajectory, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    return train(tmp_path_factory.mktemp("trajectory"))


def test_the_newest_snapshots_alone_tell_little(trained: Trajectory) -> None:
    """The error of the profile says so, and it is so."""
    few = stored(trained.run)[-2:]
    one, all_ = plan(few, 0.03), plan(stored(trained.run), 0.03)
    assert one.error > 0.1 > all_.error
    far, near = (distance(parameters(reconstruct(r).network), trained.averages[0.03]) for r in (one, all_))
    assert far > 5 * near


@pytest.mark.parametrize("step", [EVERY, 48])
def test_an_earlier_step_has_its_own_averages(trained: Trajectory, step: int) -> None:
    recipe = plan(stored(trained.run, step), 0.1)
    path = trained.run / "ema" / f"step-{step:08d}-0.100.safetensors"
    assert (recipe.newest.step, recipe.newest.path.parent) == (step, path.parent)
    assert distance(parameters(reconstruct(recipe).network), described(path)[1]) < 1e-6


def test_profiles_count_updates_and_not_steps(trained: Trajectory) -> None:
    """Every tenth step was skipped."""
    last = stored(trained.run)[-1]
    assert (last.step, last.profile.step) == (STEPS, STEPS - STEPS // 10)


def test_tensors_are_read_one_by_one(trained: Trajectory) -> None:
    one = stored(trained.run)[0]
    _, whole, _ = described(one.path)
    assert set(one) == set(whole)
    assert all(torch.equal(one[name], whole[name]) and one.shapes[name] == whole[name].shape for name in whole)


def test_what_is_no_parameter_comes_from_the_newest_snapshot(tmp_path: Path) -> None:
    """A buffer of the network, here that of Fourier features, is not summed."""
    den = tiny.denoiser(time={"kind": "fourier"})
    den.data = DataInfo(shape=(1, 6))
    buffers = dict(den.network.named_buffers())
    assert buffers, "this network has some"
    for step in (1, 2, 3):
        with torch.no_grad():
            for buffer in buffers.values():
                buffer.fill_(step)
        path = tmp_path / "ema" / f"step-{step:08d}-0.100.safetensors"
        save(den, path, step=step, updates=step, sigma_rel=0.1)
    found = reconstruct(plan(stored(tmp_path), 0.08)).network
    assert all((buffer == 3).all() for buffer in found.buffers())


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(trained: Trajectory, tmp_path: Path) -> Path:
    """A copy of the run that may be spoilt, with the last two steps only."""
    run = tmp_path / "run"
    (run / "ema").mkdir(parents=True)
    for path in sorted((trained.run / "ema").iterdir())[-4:]:
        shutil.copy(path, run / "ema")
    return run


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest difference, relative to the largest weight."""
    largest = max(value.abs().max().item() for value in other.values())
    return max((one[name] - other[name]).abs().max().item() for name in other) / largest


@pytest.mark.parametrize("length", STORED)
def test_a_reconstruction_of_a_stored_length_equals_it(trained: Trajectory, length: float) -> None:
    recipe = plan(stored(trained.run), length)
    assert recipe.error < 1e-6
    assert distance(parameters(reconstruct(recipe).network), trained.averages[length]) < 1e-6


@pytest.mark.parametrize("length", BETWEEN)
def test_a_length_that_was_not_stored_is_the_average_that_was_followed(trained: Trajectory, length: float) -> None:
    """As near as the profile says, and far nearer than the stored averages beside it."""
    recipe = plan(stored(trained.run), length)
    found, right = parameters(reconstruct(recipe).network), trained.averages[length]
    nearest = min(distance(trained.averages[one], right) for one in STORED)
    assert recipe.error < 0.02
    assert distance(found, right) < 5e-4
    assert distance(found, right) < nearest / 20


def test_a_run_without_snapshots_says_which_keys_make_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no snapshots .* ema\.sigma_rel = \[0\.05, 0\.1\] and ema\.snapshot_every"):
        stored(tmp_path)


def test_a_step_without_a_snapshot_is_refused(copy: Path) -> None:
    with pytest.raises(
        ConfigError, match=f"no snapshot of step 50 .* the nearest of 2 is that of step {STEPS - EVERY}"
    ):
        stored(copy, 50)


@pytest.mark.parametrize("place", [-1, -4000, 40])
def test_a_damaged_snapshot_is_found_however_small_its_share(copy: Path, place: int) -> None:
    """One bit of a number, or of the header."""
    path = min((copy / "ema").iterdir())
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"{path.name} is damaged"):
        reconstruct(plan(stored(copy), 0.1))


def test_a_snapshot_that_is_too_short_is_damaged(copy: Path) -> None:
    path = min((copy / "ema").iterdir())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"{path.name} is damaged"):
        reconstruct(plan(stored(copy), 0.1))


def test_other_weights_are_no_snapshot(copy: Path) -> None:
    path = min((copy / "ema").iterdir())
    save(tiny.denoiser(), path)
    with pytest.raises(CheckpointError, match="is no average that a run stored"):
        stored(copy)
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(CheckpointError, match="is no average that a run stored"):
        Snapshot(path)
    save(tiny.denoiser(), path, step=1, updates=1, sigma_rel=0.05)
    with pytest.raises(CheckpointError, match="is of another network"):
        reconstruct(plan(stored(copy), 0.1))
