"""Rows P8 to P12: a worker or a rank that dies or hangs, two runs in one folder, and no memory."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.faults import ranks, small
from tests.training.conftest import Zygote, wait_for

soak = pytest.mark.soak
PLENTY = 2**29  # bytes beyond what is in use: a step needs far less
# --- data workers -----------------------------------------------------------------------------------------------------

ACTS = {"kill": [], "raise": [], "hang": ["--train.worker_timeout", "3"]}


@pytest.mark.parametrize("act", ["kill", pytest.param("hang", marks=soak)])
def test_a_worker_that_fails_once_is_started_again_and_nothing_changes(
    zygote: Zygote, calm: Path, tmp_path: Path, act: str
) -> None:
    """P8: from the same batch, so that no sample is left out or seen twice."""
    run, mark = tmp_path / "run", tmp_path / "mark"
    command = ["train", small.write_config(tmp_path), "--out", run, "--train.workers", "1", *ACTS[act]]
    fault = {"kind": "worker", "position": 4 * 7 + 2, "act": act, "once": str(mark)}
    small.again(zygote, command, tmp_path / "log", faults=[fault])
    assert mark.exists(), "no worker failed"
    (event,) = small.events(run, "worker_restarted")
    assert "a data worker died or hung before step" in event["message"]
    small.same_end(calm, run)


@pytest.mark.parametrize("act", ["kill", pytest.param("hang", marks=soak), pytest.param("raise", marks=soak)])
def test_a_worker_that_fails_again_ends_the_run_and_is_named(
    zygote: Zygote, calm: Path, tmp_path: Path, act: str
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["train", small.write_config(tmp_path), "--out", run, "--train.workers", "1", *ACTS[act]]
    code = 9 if act != "raise" else 1  # an error in diffunet's own code is no fault of the machine's
    if act == "raise":
        assert zygote.run(command, log, faults=[{"kind": "worker", "position": 30, "act": act}]) != 0
    else:
        said = small.again(zygote, command, log, code, faults=[{"kind": "worker", "position": 30, "act": act}])
        assert "worker" in said
        assert small.status(run)["code"] == "E-WORKER"
    found = small.whole(run)
    assert found is not None
    assert found.step <= 7, "the step of the sample that fails was made without it"
    small.again(zygote, ["train", tmp_path / "small.toml", "--out", run], log)
    small.same_end(calm, run)


# --- ranks ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two ranks."""
    folder = tmp_path_factory.mktemp("two")
    command = ["train", small.write_config(folder), "--out", folder / "run"]
    assert ranks.run(zygote, command, folder) == [0, 0], ranks.said(folder)
    return folder / "run"


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=soak)])
def test_when_a_rank_is_killed_the_other_ends_and_names_it(
    zygote: Zygote, two: Path, tmp_path: Path, kills: int
) -> None:
    """P9 and T14: gone within ten seconds, 9 and the rank in status.json, and the job goes on exactly."""
    run, chance, landed, slowest = tmp_path / "run", random.Random(kills), 0, 0.0
    command = ["train", small.write_config(tmp_path), "--out", run]
    for turn in range(3 * kills):
        victim = turn % 2
        begun = small.steps_done(run)
        children = ranks.start(zygote, command, tmp_path)
        wait_for(lambda begun=begun, children=children: children[0].ended or small.steps_done(run) != begun, 60)
        time.sleep(chance.uniform(0, 0.1))
        children[victim].kill()
        killed = time.monotonic()
        codes = [child.wait(60) for child in children]
        if codes == [0, 0]:
            small.same_end(two, run)
            shutil.rmtree(run)
            continue
        assert codes[victim] == -signal.SIGKILL, ranks.said(tmp_path)
        slowest = max(slowest, time.monotonic() - killed)
        assert codes[1 - victim] == 9, ranks.said(tmp_path)
        body = small.message((tmp_path / f"log-{1 - victim}").read_text())
        assert f"rank {victim} of 2 is gone" in body
        if victim == 1:  # rank 0 writes the status, and cannot where it was the one that was killed
            assert small.status(run)["code"] == "E-WORKER"
            assert "rank 1" in small.status(run)["message"]
        small.whole(run)
        landed += 1
        if landed == kills:
            break
    assert landed == kills
    assert slowest <= 10
    assert ranks.run(zygote, command, tmp_path) == [0, 0], ranks.said(tmp_path)
    small.same_end(two, run)


def test_a_rank_that_is_stuck_is_named_after_the_timeout(zygote: Zygote, two: Path, tmp_path: Path) -> None:
    """P10: stopped by SIGSTOP, rank 1 is silent; the other waits five seconds and says so."""
    run = tmp_path / "run"
    command = ["train", small.write_config(tmp_path), "--out", run, "--train.rank_timeout", "5"]
    children = ranks.start(zygote, command, tmp_path)
    wait_for(lambda: small.steps_done(run) >= 2, 60)
    children[1].kill(signal.SIGSTOP)
    stopped = time.monotonic()
    assert children[0].wait(60) == 9, ranks.said(tmp_path)
    assert 3 < time.monotonic() - stopped < 30
    body = small.message((tmp_path / "log-0").read_text())
    assert "rank 1 of 2 was silent for 5 s at step " in body
    assert small.status(run)["exit_code"] == 9
    children[1].kill()
    assert children[1].wait() == -signal.SIGKILL
    assert ranks.run(zygote, ["train", tmp_path / "small.toml", "--out", run], tmp_path) == [0, 0]
    small.same_end(two, run)


def test_a_loss_that_is_not_finite_on_one_rank_is_left_out_on_both(zygote: Zygote, tmp_path: Path) -> None:
    """N1: only rank 1 sees the NaN; weights, average and moments of both stay as they were."""
    run = tmp_path / "run"
    command = ["train", small.write_config(tmp_path, 8), "--out", run, "--train.keep_checkpoints", "9"]
    fault = {"kind": "spoil", "rank": 1, "steps": {"3": "nan loss", "5": "inf gradient"}}
    assert ranks.run(zygote, command, tmp_path, faults={1: [fault]}) == [0, 0], ranks.said(tmp_path)
    assert [r["step"] for r in small.records(run) if r.get("skipped")] == [3, 5]
    files = {step: small.newest_of(run, step) for step in range(1, 9)}
    for step in (3, 5):
        same = [name for name in files[step] if files[step][name] == files[step - 1][name]]
        assert set(same) == {"network.safetensors", "ema.safetensors", "optimizer.safetensors"}
    assert ranks.run(zygote, command, tmp_path) == [0, 0], "both ranks go on from equal states"


# --- one folder, no memory --------------------------------------------------------------------------------------------


def test_two_runs_in_one_folder_and_a_lock_of_the_dead(zygote: Zygote, calm: Path, tmp_path: Path) -> None:
    """P11."""
    run, command = tmp_path / "run", ["train", small.write_config(tmp_path), "--out", tmp_path / "run"]
    slow = [{"kind": "slow_disk", "seconds": 0.05}]
    first = zygote.start(command, tmp_path / "first", faults=slow)
    wait_for(lambda: small.steps_done(run) >= 1)
    said = small.again(zygote, command, tmp_path / "log", 5)
    assert f"is in use by process {first.pid} on " in said
    first.kill()
    assert first.wait() == -signal.SIGKILL
    small.again(zygote, command, tmp_path / "log")
    small.same_end(calm, run)


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "raised", "where": "accelerate:Accelerator.backward", "call": 6, "error": "torch:OutOfMemoryError"},
        {"kind": "raised", "where": "accelerate:Accelerator.backward", "call": 6, "error": "builtins:MemoryError"},
    ],
    ids=["device", "host"],
)
def test_without_memory_a_run_says_its_batch_size_and_three_remedies(
    zygote: Zygote, calm: Path, tmp_path: Path, fault: dict
) -> None:
    """P12: it never makes the batch smaller by itself, which would be another run."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["train", small.write_config(tmp_path), "--out", run]
    said = small.again(zygote, command, log, 8, faults=[fault])
    for part in ("train.batch_size = 4", "train.accumulation", "checkpoint_levels", "bf16"):
        assert part in said
    assert small.status(run)["code"] == "E-MEMORY"
    found = small.whole(run)
    assert found is not None
    assert found.step == 5
    small.again(zygote, command, log)
    small.same_end(calm, run)


def test_real_lack_of_address_space_is_out_of_memory(zygote: Zygote, tmp_path: Path) -> None:
    """A batch that this process may not hold, under a limit of the system."""
    command = ["train", small.write_config(tmp_path), "--out", tmp_path / "run"]
    command += ["--train.batch_size", "8192", "--model.base_channels", "256"]
    said = small.again(zygote, command, tmp_path / "log", 8, faults=[{"kind": "limit", "name": "AS", "value": PLENTY}])
    assert "train.batch_size = 8192" in said
