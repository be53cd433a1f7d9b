"""A run whose checkpoints, disk or folder go wrong says so, loses nothing, and goes on exactly from what is whole."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from diffunet.cli import main
from diffunet.spec import EMAConfig, UNetConfig
from diffunet.training.averages import Averages
from diffunet.training.checkpoint import newest, read, seal, write
from diffunet.training.runfolder import RunFolder
from diffunet.training.state import Counters, counters_of, from_checkpoint, numbers_of, parts_of, to_files
from tests import tiny
from tests.training.conftest import Zygote
from tests.training.runs import assert_same_run, metrics, tensors, write_config

STEPS, LAST, BEFORE = 24, "step-00000024", "step-00000020"
LOGS = ("status.json", "events.jsonl")


@pytest.fixture
def run(golden: Path, tmp_path: Path) -> Path:
    """A copy of the finished tiny run, to be spoilt."""
    write_config(tmp_path)
    return Path(shutil.copytree(golden, tmp_path / "run"))


def again(zygote: Zygote, run: Path, expected: int) -> str:
    """The same command once more; what it says."""
    log = run.parent / "log"
    log.unlink(missing_ok=True)
    assert zygote.run(["train", run.parent / "tiny.toml", "--out", run], log) == expected, log.read_text()
    assert "Traceback" not in log.read_text()
    return log.read_text()


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(folder: Path, name: str) -> None:
    """One bit in the middle of a file."""
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 8
    (folder / name).write_bytes(data)


DAMAGE: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "bit in the weights": (
        "network.safetensors",
        lambda f: flip(f, "network.safetensors"),
        "does not match its SHA-256",
    ),
    "bit in the manifest": ("manifest.json", lambda f: flip(f, "manifest.json"), "does not match its SHA-256"),
    "truncated": ("optimizer.safetensors", lambda f: os.truncate(f / "optimizer.safetensors", 99), "does not match"),
    "empty": ("manifest.json", lambda f: os.truncate(f / "manifest.json", 0), "does not match its SHA-256"),
    "missing": ("state.json", lambda f: (f / "state.json").unlink(), "cannot be read (No such file or directory)"),
    "another step's": (
        "ema.safetensors",
        lambda f: shutil.copy(f.parent / BEFORE / "ema.safetensors", f),
        "does not match its SHA-256",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_run_still_ends_the_same(
    zygote: Zygote, golden: Path, run: Path, kind: str
) -> None:
    name, damage, reason = DAMAGE[kind]
    damage(run / "checkpoints" / LAST)
    said = again(zygote, run, 0)
    assert f"{run / 'checkpoints' / LAST} is damaged: {name} {reason}" in said
    assert "; continuing from step 20\n" in said
    assert "resuming at step 20 (sha ok)" in said
    assert_same_run(golden, run, STEPS)
    assert read(run / "checkpoints", STEPS).step == STEPS
    assert (run / "checkpoints" / f"damaged-{LAST}-0").is_dir(), "kept for salvage"


def test_without_a_whole_checkpoint_a_run_never_starts_over(zygote: Zygote, run: Path) -> None:
    for folder in (run / "checkpoints").iterdir():
        flip(folder, "ema.safetensors")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in LOGS}
    for _ in range(2):
        said = again(zygote, run, 4)
        assert "error[E-CHECKPOINT]: no valid checkpoint among 2" in said
        assert "Nothing was deleted; restore a copy, or use --out for a new run" in said
        assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in LOGS} == before
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["code"]) == ("failed", 4, "E-CHECKPOINT")


def test_a_run_that_lost_all_its_checkpoints_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "checkpoints")
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file() and p.name not in LOGS}
    assert main(["train", str(run.parent / "tiny.toml"), "--out", str(run)]) == 4
    assert "holds weights but no checkpoint to go on from" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.is_file() and p.name not in LOGS} == before


class Canary:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_what_others_left_is_ignored_and_what_we_left_is_removed(zygote: Zygote, golden: Path, run: Path) -> None:
    root = run / "checkpoints"
    shutil.rmtree(root / LAST)
    payload = pickle.dumps(Canary(run / "mark"))
    planted = [root / BEFORE / name for name in ("custom_checkpoint_0.pkl", ".metadata", "optimizer.bin", "random.pt")]
    planted += [root / name for name in ("scaler.pt", "latest")]
    for path in planted:
        path.write_bytes(payload)
    foreign = ["checkpoint-tmp", "step-abc", "step-10.tmp", ".tmp-notes"]
    for name in (*foreign, ".tmp-00000024-4711", ".trash-00000016-4711"):
        shutil.copytree(root / BEFORE, root / name)
    assert "resuming at step 20 (sha ok)" in again(zygote, run, 0)
    assert_same_run(golden, run, STEPS)
    assert {p.name for p in root.iterdir()} == {*foreign, "scaler.pt", "latest", BEFORE, LAST}
    assert all(path.read_bytes() == payload for path in planted)
    assert not (run / "mark").exists()


# --- a checkpoint of another network, or from a stranger --------------------------------------------------------------


def test_a_checkpoint_of_another_network_is_refused_with_the_differences(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((run / "config.json").read_text())
    config["model"]["base_channels"] = 16
    (run / "config.json").write_text(json.dumps(config))
    assert main(["train", str(run.parent / "tiny.toml"), "--out", str(run), "--model.base_channels=16"]) == 4
    error = capsys.readouterr().err
    assert "step-00000024 does not fit the network" in error
    assert error.count(" is expected") == 5
    assert "conditioning.classes.weight: (11, 32) where (11, 64) is expected" in error


def resealed(folder: Path, **files: bytes | None) -> None:
    """Exchange files of a checkpoint and seal it again, as a stranger could."""
    found = read(folder.parent, int(folder.name[5:]))
    changed = {**found.files, **{name.replace("__", "."): data for name, data in files.items()}}
    facts = {k: v for k, v in found.manifest.items() if k not in ("files", "step", "format")}
    shutil.rmtree(folder)
    write(folder.parent, found.step, {k: v for k, v in changed.items() if v is not None}, facts)


HOSTILE: list[tuple[dict[str, bytes | None], int, str]] = [
    ({"network__safetensors": pickle.dumps([1])}, 7, "can run code and is not loaded"),
    ({"ema__safetensors": (2**62).to_bytes(8, "little")}, 7, "claims a header of"),
    ({"optimizer__safetensors": b"\x02" + bytes(7) + b"[]"}, 7, "optimizer.safetensors"),
    ({"network__safetensors": b""}, 4, "0 bytes are too few"),
    ({"network__safetensors": None}, 4, "holds no network.safetensors"),
    ({"state__json": None}, 4, "holds no state.json"),
    ({"state__json": b"{}"}, 4, "does not hold the state of a run"),
    ({"state__json": b'{"counters": {"step": 24}, "scaler": null}'}, 4, "was written by another version"),
    ({"state__json": b"[" * 100_000}, 4, "does not hold the state of a run"),
    ({"optimizer__safetensors": safetensors.torch.save({"a": torch.zeros(2)})}, 4, "does not fit the network"),
]


@pytest.mark.parametrize(("files", "code", "expected"), HOSTILE)
def test_a_sealed_checkpoint_from_a_stranger_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], files: dict[str, bytes | None], code: int, expected: str
) -> None:
    resealed(run / "checkpoints" / LAST, **files)
    assert main(["train", str(run.parent / "tiny.toml"), "--out", str(run)]) == code
    error = capsys.readouterr().err
    assert expected in error
    assert str(run / "checkpoints" / LAST) in error


def test_counters_of_another_step_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read(run / "checkpoints", 20).files["state.json"]
    resealed(run / "checkpoints" / LAST, state__json=before)
    assert main(["train", str(run.parent / "tiny.toml"), "--out", str(run)]) == 4
    assert "was written by another version" in capsys.readouterr().err


def test_a_manifest_without_data_is_other_data(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run / "checkpoints" / LAST
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for key in ("self", "data"):
        del manifest[key]
    (folder / "manifest.json").write_bytes(seal(manifest))
    assert main(["train", str(run.parent / "tiny.toml"), "--out", str(run)]) == 4
    assert "the data changed" in capsys.readouterr().err


def test_state_comes_back_equal_bit_for_bit(tmp_path: Path) -> None:
    """Weights, average, moments, counts and the scaler's numbers, through a checkpoint on disk."""
    net, config = tiny.unet(), EMAConfig(sigma_rel=(0.05, 0.1))
    averages, optimizer = Averages(config, net), torch.optim.AdamW(net.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in (1, 2, 3):
        net(torch.randn(2, 1, 5), 0.5).square().sum().backward()
        optimizer.step()
        averages.update(net, step)
    counters = Counters(5, 2, 1, precision="bf16", threads=3, world=2, shift=7, rewinds=1)
    numbers = {"counters": asdict(counters), "scaler": scaler.state_dict()}
    write(tmp_path, 5, to_files(parts_of(net, averages, optimizer, {}), numbers), {})
    found, _ = newest(tmp_path)
    assert found is not None
    assert counters_of(found) == counters
    other = tiny.unet()
    other_averages, other_optimizer = Averages(config, other), torch.optim.AdamW(other.parameters(), fused=True)
    from_checkpoint(found, other, other_averages, other_optimizer)
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in net.state_dict().items())
    assert list(averages.tensors) == ["ema", "ema-0.050", "ema-0.100"]
    for average, values in averages.tensors.items():
        assert all(torch.equal(x, other_averages.tensors[average][name]) for name, x in values.items())
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state[p].items():
            assert torch.equal(value, other_optimizer.state[q][key]), key
    assert numbers_of(found)["scaler"] == scaler.state_dict()
    assert isinstance(net.config, UNetConfig)


# --- disk and folder --------------------------------------------------------------------------------------------------


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk on which no file can grow larger: a writer sees EFBIG, as it would see ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [20_000, 200_000])
def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    """The first or the third file of the second checkpoint no longer fits."""
    flags = ["--train.lr_schedule", "constant", "--train.steps"]  # the rate does not depend on the last step
    golden, run, config = tmp_path / "golden", tmp_path / "run", str(write_config(tmp_path))
    assert main(["train", config, "--out", str(golden), *flags, "4"]) == 0
    assert main(["train", config, "--out", str(run), *flags, "2"]) == 0
    weights = (run / "weights.safetensors").read_bytes()
    capsys.readouterr()
    with largest_file(size):
        assert main(["train", config, "--out", str(run), *flags, "4"]) == 5
    error = capsys.readouterr().err.splitlines()[-1]
    need = sum(p.stat().st_size for p in (golden / "checkpoints" / "step-00000004").iterdir() if p.name[0] != "m")
    assert error.startswith(f"diffunet: error[E-STORAGE]: cannot write {run / 'checkpoints' / 'step-00000004'}: ")
    assert f"need {need:,} bytes, free " in error
    assert "run the same command again" in error
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000002"]
    assert read(run / "checkpoints", 2).step == 2
    assert (run / "weights.safetensors").read_bytes() == weights
    assert json.loads((run / "status.json").read_text())["exit_code"] == 5
    assert main(["train", config, "--out", str(run), *flags, "4"]) == 0
    assert [r["loss"] for r in metrics(run)] == [r["loss"] for r in metrics(golden)]
    assert all(torch.equal(value, tensors(golden, 4)[name]) for name, value in tensors(run, 4).items())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_not_be_written_is_refused_before_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = str(write_config(folder))
        folder.chmod(0o755)
        (folder / "run").mkdir()
        os.seteuid(65534)
        try:
            for out in (folder / "run", folder / "new"):
                assert main(["train", config, "--out", str(out)]) == 5
                assert f"cannot write {out}" in capsys.readouterr().err
        finally:
            os.seteuid(0)
        assert not list((folder / "run").iterdir())
        assert not (folder / "new").exists()


def test_metrics_after_the_checkpoint_are_written_again(zygote: Zygote, golden: Path, run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / LAST)
    lines = (golden / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:23]) + lines[23][:20])
    assert "resuming at step 20" in again(zygote, run, 0)
    assert metrics(run) == metrics(golden)


@pytest.mark.parametrize(
    "tail", ["", '{"step": 21, "lo', '{"step": 21}\n{"step": 22}\n', "null\n", '{"step": "3"}\n', "[]\n", "\0\0\0\0"]
)
def test_metrics_that_a_kill_cut_short_end_at_the_checkpoint(tmp_path: Path, tail: str) -> None:
    whole = "".join(f'{{"step": {step}}}\n' for step in range(1, 21))
    (tmp_path / "metrics.jsonl").write_text(whole + tail)
    RunFolder(tmp_path).cut_metrics(20)
    assert (tmp_path / "metrics.jsonl").read_text() == whole
