"""Rows P1 to P3: SIGKILL at any time and at every file-system event loses nothing, and says where it goes on."""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from diffunet.training.checkpoint import newest
from tests.faults import injections, small
from tests.training.conftest import Child, Zygote, wait_for

soak = pytest.mark.soak
# as on a disk that turns; and so at least half of the kills at random times land inside a save
SLOW = {"kind": "slow_disk", "seconds": 0.03}


def newest_step(run: Path) -> int:
    """The step of the newest checkpoint; 0 before the first. A checkpoint that is visible is whole."""
    found = small.whole(run)
    return found.step if found else 0


class Killer:
    """Runs one command again and again and kills it at random times, until it has landed often enough."""

    def __init__(self, zygote: Zygote, calm: Path, folder: Path, seed: int) -> None:
        self.zygote, self.calm, self.run, self.log = zygote, calm, folder / "run", folder / "log"
        self.command = ["train", small.write_config(folder), "--out", self.run]
        self.chance = random.Random(seed)
        self.landed = self.inside = self.ends = 0

    def start(self) -> Child:
        self.log.unlink(missing_ok=True)
        return self.zygote.start(self.command, self.log, faults=[SLOW])

    def strike(self, child: Child) -> None:
        """One in four while it starts and reads its checkpoint, the others within the next steps and saves."""
        begun, starting = small.steps_done(self.run), self.chance.random() < 0.25
        if not starting:
            wait_for(lambda: child.ended or small.steps_done(self.run) != begun)
        time.sleep(self.chance.uniform(0.0, 0.3 if starting else 0.2))
        child.kill()

    def once(self) -> None:
        before = newest_step(self.run)
        child = self.start()
        self.strike(child)
        code = child.wait()
        assert code in (-signal.SIGKILL, 0), self.log.read_text()
        self.landed += code == -signal.SIGKILL
        self.inside += code == -signal.SIGKILL and bool(small.left_over(self.run))
        after = newest_step(self.run)
        assert after >= before, "a complete checkpoint was lost"
        said = re.search(r"resuming at step (\d+) \(sha ok\)", self.log.read_text())
        assert not said or int(said[1]) == before
        if after == small.STEPS:
            self.finish()
            shutil.rmtree(self.run)

    def finish(self) -> None:
        """The same command once more, undisturbed: it ends as the run to which nothing happened."""
        small.again(self.zygote, self.command, self.log)
        small.same_end(self.calm, self.run)
        assert not list((self.run / "checkpoints").glob(".t*"))
        self.ends += 1


@pytest.mark.parametrize("kills", [40, pytest.param(200, marks=soak)])
def test_kills_at_random_times_lose_nothing(zygote: Zygote, calm: Path, tmp_path: Path, kills: int) -> None:
    """T1: no checkpoint lost, none unreadable, the curve of the undisturbed run, half of the kills inside a save."""
    killer = Killer(zygote, calm, tmp_path, seed=kills)
    for _ in range(3 * kills):
        killer.once()
        if killer.landed == kills:
            break
    killer.finish()
    assert killer.landed == kills
    assert killer.inside >= kills // 2, f"only {killer.inside} of {kills} inside a save"


def strike_at(zygote: Zygote, run: Path, event: int, act: str, where: tuple[str, ...]) -> tuple[int, str | None]:
    """One run with a fault at an event: its exit code and what the event was; None where it never came."""
    log, note = run.parent / "log", run.parent / "note"
    for path in (log, note):
        path.unlink(missing_ok=True)
    fault = {"kind": "event", "at": event, "act": act, "where": where, "note": str(note)}
    if act != "kill":
        fault["times"] = 10_000  # an error that stays
    code = zygote.run(["train", run.parent / "small.toml", "--out", run], log, faults=[fault])
    return code, note.read_text() if note.exists() else None


# one event of each part of a save in `make test`, all of them under soak
CHOSEN = [1, 3, 5, 8, 12, 15, 18, 20]


@pytest.mark.parametrize("events", ["chosen", pytest.param("all", marks=soak)])
def test_a_kill_at_each_event_of_a_save_loses_nothing(zygote: Zygote, calm: Path, run: Path, events: str) -> None:
    """P2 with the whole program: the save of step 30 over one of step 28 and 29, killed at each event in turn."""
    last = run / "checkpoints" / f"step-{small.STEPS:08d}"
    landed, event = 0, 0
    while event < 100:
        event = event + 1 if events == "all" else next((e for e in CHOSEN if e > event), 100)
        shutil.rmtree(last, ignore_errors=True)
        code, note = strike_at(zygote, run, event, "kill", injections.SAVE)
        if note is None:
            assert code == 0
            break
        assert code == -signal.SIGKILL
        landed += 1
        assert newest_step(run) in (small.STEPS - 1, small.STEPS), note
    assert landed >= (small.EVENTS if events == "all" else len(CHOSEN) - 1)
    small.again(zygote, ["train", run.parent / "small.toml", "--out", run], run.parent / "log")
    small.same_end(calm, run)


@pytest.mark.parametrize(
    ("act", "events"),
    [
        ("ENOSPC", [2, 9]),
        ("EIO", [2, 9]),
        pytest.param("ENOSPC", range(1, 60), marks=soak),
        pytest.param("EIO", range(1, 60), marks=soak),
    ],
)
def test_an_error_at_each_event_of_a_save_keeps_the_last_checkpoint(
    zygote: Zygote, calm: Path, run: Path, act: str, events: list[int]
) -> None:
    """T2 with the whole program: exit 5, the cause named, and the same command goes on."""
    last = run / "checkpoints" / f"step-{small.STEPS:08d}"
    landed = 0
    for event in events:
        shutil.rmtree(last, ignore_errors=True)
        code, note = strike_at(zygote, run, event, act, injections.SAVE)
        if note is None:
            break
        landed += 1
        said = (run.parent / "log").read_text()
        assert newest_step(run) in (small.STEPS - 1, small.STEPS), note
        if code == 0:  # what could not be deleted is left for the next start, and no reason to fail
            assert note.split()[1] in ("os.remove", "os.rmdir", "os.listdir", "open"), note
            continue
        assert code == 5, f"{note}: {said}"
        body = small.message(said)
        assert ("No space left" if act == "ENOSPC" else "Input/output error") in body
        assert str(run) in body
        assert small.status(run)["code"] == "E-STORAGE"
    assert landed >= min(len(events), 15 if act == "ENOSPC" else small.EVENTS)
    small.again(zygote, ["train", run.parent / "small.toml", "--out", run], run.parent / "log")
    small.same_end(calm, run)


def test_a_kill_while_resuming_leaves_all_for_the_next_try(zygote: Zygote, calm: Path, run: Path) -> None:
    """P3: killed at each event of the removal of leavings and of the reading."""
    root = run / "checkpoints"
    shutil.rmtree(root / f"step-{small.STEPS:08d}")
    before, _ = newest(root)
    landed = 0
    for event in range(1, 30):
        leavings = root / f".tmp-{small.STEPS:08d}-4711"
        if not leavings.exists():
            shutil.copytree(root / f"step-{small.STEPS - 1:08d}", leavings)
        code, note = strike_at(zygote, run, event, "kill", injections.LOAD)
        if note is None:
            assert code == 0
            break
        assert code == -signal.SIGKILL
        landed += 1
        found, reasons = newest(root)
        assert found is not None
        assert before is not None
        assert (found.step, found.files, reasons) == (before.step, before.files, [])
    assert landed >= 10, "too few events: the check proves nothing"
    small.same_end(calm, run)
    assert not small.left_over(run)


def test_half_written_files_of_a_killed_run_are_removed(zygote: Zygote, calm: Path, run: Path) -> None:
    """What a kill inside the replacing of one file leaves is ours and goes; what others left is not."""
    shutil.rmtree(run / "checkpoints" / f"step-{small.STEPS:08d}")
    code, note = strike_at(zygote, run, 3, "kill", ("diffunet.training.runfolder:write_file",))
    assert (code, note is None) == (-signal.SIGKILL, False)
    assert small.left_over(run)
    (run / ".tmp-notes").write_text("mine")
    small.again(zygote, ["train", run.parent / "small.toml", "--out", run], run.parent / "log")
    assert small.left_over(run) == [".tmp-notes"]
    small.same_end(calm, run)


def test_metrics_that_were_never_synced_do_not_outlive_their_checkpoint(zygote: Zygote, calm: Path, run: Path) -> None:
    """A kill between a line of metrics and its checkpoint: the line is written again, once."""
    shutil.rmtree(run / "checkpoints" / f"step-{small.STEPS:08d}")
    assert small.steps_done(run) == small.STEPS
    said = small.again(zygote, ["train", run.parent / "small.toml", "--out", run], run.parent / "log")
    assert f"resuming at step {small.STEPS - 1} (sha ok)" in said
    assert [r["step"] for r in small.records(run)] == list(range(1, small.STEPS + 1))
    small.same_end(calm, run)
