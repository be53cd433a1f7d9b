"""Rows P4 to P7: a signal is heeded wherever the run is, within a step and a save, and leaves nobody behind."""

from __future__ import annotations

import os
import pty
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.faults import small
from tests.training.conftest import Child, Zygote, wait_for

soak = pytest.mark.soak
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 75}
# where the process is when the signal comes
PLACES = {
    "the backward pass": "accelerate:Accelerator.backward",
    "validation": "diffunet.training.monitor:Loss.__call__",
    "sampling": "diffunet.denoiser:Denoiser.forward",
    "the wait for data": "diffunet.training.indexstream:Stream.__getitem__",
    "a save": "diffunet.training.checkpoint:write_durable",
}
BUSY_STEPS = 24
LONGEST = 25.0  # seconds; torchrun gives 30
BUSY = ["--train.preview_every", "1", "--train.held_out_every", "1", "--sample.steps", "2", "--data.held_out", "0.2"]
BUSY += ["--sample.preview_images", "2", "--train.held_out_images", "4"]


def gone(child: Child) -> bool:
    """Nobody is left of the child's session."""
    try:
        os.killpg(child.pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture(scope="module")
def busy(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run that validates and draws a preview after every step."""
    folder = tmp_path_factory.mktemp("busy")
    command = ["train", small.write_config(folder, BUSY_STEPS), "--out", folder / "run", *BUSY]
    small.again(zygote, command, folder / "log")
    return folder / "run"


def heeded(run: Path, child: Child, code: int, before: int, text: str) -> int:
    """A run that a signal ended: its code, words, status and checkpoint; the step that is saved."""
    ended = child.wait(LONGEST + 60)
    assert ended == code, text
    assert gone(child)
    done = small.steps_done(run)
    found = small.whole(run)
    assert found is not None
    assert found.step == done
    said = small.message((run.parent / "log").read_text())
    assert f"step {done} is saved" in said
    assert "the same command again goes on from there" in said
    state = small.status(run)
    assert (state["state"], state["exit_code"], state["step"]) == ("interrupted", code, done)
    assert not small.left_over(run)
    return done - before


@pytest.mark.parametrize("place", PLACES)
def test_a_signal_is_heeded_within_a_step_wherever_it_comes(
    zygote: Zygote, busy: Path, tmp_path: Path, place: str
) -> None:
    """T11, five signals a place: the step that it came in may end, and at most one more."""
    run, log, note = tmp_path / "run", tmp_path / "log", tmp_path / "note"
    command = ["train", small.write_config(tmp_path, BUSY_STEPS), "--out", run, *BUSY]
    for call, number in ((1, 15), (2, 15), (3, 2), (4, 10), (5, 15)):
        for path in (log, note):
            path.unlink(missing_ok=True)
        fault = {"kind": "signalled", "where": PLACES[place], "call": call, "number": number}
        fault |= {"note": str(note), "metrics": str(run / "metrics.jsonl")}
        child = zygote.start(command, log, faults=[fault])
        code = child.wait(LONGEST + 60)
        assert note.exists(), "the signal never came"
        begun, before = note.read_text().split()
        assert heeded(run, child, CODES[signal.Signals(number)], int(before), code) <= 2
        assert run.joinpath("status.json").stat().st_mtime - float(begun) < LONGEST
    small.again(zygote, command, log)
    small.same_end(busy, run, BUSY_STEPS)


@pytest.mark.parametrize("signals", [8, pytest.param(475, marks=soak)])
def test_no_signal_at_a_random_time_is_missed(zygote: Zygote, calm: Path, tmp_path: Path, signals: int) -> None:
    """T11: each stops the run with the state saved; before the handlers stand, a run ends without having begun."""
    run, log, chance = tmp_path / "run", tmp_path / "log", random.Random(signals)
    command = ["train", small.write_config(tmp_path), "--out", run]
    landed, seconds = 0, []
    for _ in range(3 * signals):
        log.unlink(missing_ok=True)
        number = chance.choice(list(CODES))
        begun = small.steps_done(run)
        child = zygote.start(command, log, faults=[{"kind": "slow_disk", "seconds": 0.002}])
        wait_for(lambda begun=begun, child=child: child.ended or small.steps_done(run) != begun)
        time.sleep(chance.uniform(0, 0.1))
        before, start = small.steps_done(run), time.monotonic()
        child.kill(number)
        if child.wait(LONGEST + 60) == CODES[number]:
            landed += 1
            seconds.append(time.monotonic() - start)
            assert heeded(run, child, CODES[number], before, log.read_text()) <= 3
        else:
            assert child.wait() == 0, log.read_text()
            small.same_end(calm, run)
            shutil.rmtree(run)
        if landed == signals:
            break
    assert landed == signals
    assert max(seconds) < LONGEST
    small.again(zygote, command, log)
    small.same_end(calm, run)


def test_ctrl_c_at_a_terminal_stops_the_run_and_its_workers(zygote: Zygote, calm: Path, tmp_path: Path) -> None:
    """P5: the terminal sends SIGINT to the whole group; once saves, twice stops at once, neither does damage."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["train", small.write_config(tmp_path), "--out", run, "--train.workers", "1"]
    keyboard, terminal = pty.openpty()
    try:
        for presses in (1, 2):
            log.unlink(missing_ok=True)
            begun = small.steps_done(run)
            child = zygote.start(command, log, terminal=os.ttyname(terminal))
            wait_for(lambda begun=begun: small.steps_done(run) > begun, 60)
            for _ in range(presses):
                os.write(keyboard, b"\x03")
                time.sleep(0.003)
            assert child.wait(60) == 130, log.read_text()
            wait_for(lambda child=child: gone(child), 10)
            assert "Traceback" not in log.read_text()
            assert small.status(run)["state"] == "interrupted"
            assert small.whole(run) is not None
    finally:
        os.close(keyboard)
        os.close(terminal)
    small.again(zygote, ["train", tmp_path / "small.toml", "--out", run], log)
    small.same_end(calm, run)
