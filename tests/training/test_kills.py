"""A run that is stopped or killed anywhere and goes on later is, bit for bit, the run that never stopped."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

import pytest

from tests.training.conftest import Zygote, wait_for
from tests.training.runs import assert_same_run, metrics, write_config

STEPS = 24
EVENTS_OF_A_SAVE = 16  # fewer than one save and its rotation make; the test proves that each kill landed


def lines(run: Path) -> int:
    """Lines of metrics so far."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_two_uninterrupted_runs_are_equal(zygote: Zygote, golden: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert zygote.run(["train", config, "--out", tmp_path / "run"], tmp_path / "log") == 0
    assert_same_run(golden, tmp_path / "run", STEPS)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 75)])
@pytest.mark.parametrize("after", [1, 6, 13])
def test_a_stop_signal_saves_and_resumes_exactly(
    zygote: Zygote, golden: Path, tmp_path: Path, number: int, code: int, after: int
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["train", write_config(tmp_path), "--out", run]
    ended = 0
    for _ in range(10):  # on a busy machine a run of half a second may be over before the signal is sent
        shutil.rmtree(run, ignore_errors=True)
        child = zygote.start(command, log)
        wait_for(lambda: lines(run) >= after)
        child.kill(number)
        if ended := child.wait():
            break
    assert ended == code
    done = lines(run)
    assert after <= done <= STEPS
    assert (run / "checkpoints" / f"step-{done:08d}" / "manifest.json").exists()
    assert f"step {done} is saved" in log.read_text()
    assert zygote.run(command, log) == 0
    assert f"resuming at step {done}" in log.read_text()
    assert_same_run(golden, run, STEPS)


def test_twenty_kills_inside_saves_lose_nothing(zygote: Zygote, golden: Path, tmp_path: Path) -> None:
    """SIGKILL at each file-system event of the saves, one process after another, then one that finishes."""
    run, landed = tmp_path / "run", 0
    command = ["train", write_config(tmp_path, checkpoint_every="1"), "--out", run]
    for event in [*range(1, EVENTS_OF_A_SAVE + 1), 20, 25, 30, 35, 40]:
        before = sorted(p.name for p in (run / "checkpoints").glob("step-*"))
        code = zygote.start(command, tmp_path / "log", event).wait()
        assert code in (-signal.SIGKILL, 0)
        landed += code == -signal.SIGKILL
        after = sorted(p.name for p in (run / "checkpoints").glob("step-*"))
        assert not before or after, "every complete checkpoint was lost"
        if code == 0:
            assert_same_run_at_end(golden, run)
            shutil.rmtree(run)
    assert landed >= 20
    assert zygote.run(command, tmp_path / "log") == 0
    assert_same_run_at_end(golden, run)
    assert not list((run / "checkpoints").glob(".t*"))


def assert_same_run_at_end(golden: Path, run: Path) -> None:
    assert metrics(golden) == metrics(run)
    assert_same_run(golden, run, STEPS)


def test_twenty_kills_at_random_times_lose_nothing(zygote: Zygote, golden: Path, tmp_path: Path) -> None:
    """SIGKILL once a random number of steps has been written, wherever the process then is."""
    run, chance = tmp_path / "run", random.Random(1)
    command = ["train", write_config(tmp_path, checkpoint_every="2"), "--out", run]
    landed = 0
    for _ in range(60):
        begun, wanted = lines(run), chance.randint(1, 4)
        child = zygote.start(command, tmp_path / "log")
        # the first lines of a resumed run may replace lines after its checkpoint: wait for new ones
        wait_for(lambda begun=begun, wanted=wanted: lines(run) >= min(begun + wanted, STEPS))
        child.kill()
        code = child.wait()
        assert code in (-signal.SIGKILL, 0)
        landed += code == -signal.SIGKILL
        if landed == 20:
            break
        if lines(run) == STEPS:
            assert zygote.run(command, tmp_path / "log") == 0
            assert_same_run_at_end(golden, run)
            shutil.rmtree(run)
    assert landed == 20
    assert zygote.run(command, tmp_path / "log") == 0
    assert_same_run_at_end(golden, run)
