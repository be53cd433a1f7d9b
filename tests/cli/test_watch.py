"""`diffunet watch`: how a run does, told from its files; a dead process is said plainly."""

from __future__ import annotations

import json
import os
import platform
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from diffunet.cli import main
from tests.training.conftest import Zygote, wait_for
from tests.training.runs import write_config

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format-1" / "run"


def watched(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command prints."""
    capsys.readouterr()
    assert main(["watch", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def status(run: Path, **changes: Any) -> None:
    """Change status.json."""
    known = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(known | changes))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be written in."""
    return Path(shutil.copytree(trained, tmp_path / "a run"))


def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_finished_run_in_words(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = watched(capsys, run)
    for words in ("tiny: DONE", "step 12/12", "100 %", "loss ", "held-out ", "seen ", "lr ", "images/s", "MiB",
                  "step 12, ", f"next: diffunet sample '{run}'"):  # fmt: skip
        assert words in text, words
    assert max(map(len, text.split("\nnext:")[0].splitlines())) <= 100
    assert "\x1b" not in text


def test_the_same_in_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(watched(capsys, run, "--json"))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (found["state"], found["step"], found["steps"], found["name"]) == ("done", 12, 12, "tiny")
    assert found["held_out"] == last["held_out"]["loss"]
    assert found["gap"] == pytest.approx(last["held_out"]["loss"] - last["seen"]["loss"])
    assert (found["memory"], found["lr"]) == (last["memory"], last["lr"])
    assert found["checkpoint"]["step"] == 12
    assert found["checkpoint"]["seconds_ago"] >= 0
    assert found["seconds_left"] is None
    assert found["copies"]["train"] == 1438


def test_a_run_at_work_and_one_that_was_killed(
    zygote: Zygote, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, steps="100000", checkpoint_every="5")
    run = tmp_path / "run"
    child = zygote.start(["train", config, "--out", run], tmp_path / "log")
    wait_for(lambda: list(run.glob("checkpoints/step-*")))
    found = json.loads(watched(capsys, run, "--json"))
    assert (found["state"], found["alive"], found["pid"], found["next"]) == ("running", True, child.pid, None)
    assert found["seconds_left"] > 1
    assert "tiny: RUNNING" in watched(capsys, run, "--once")
    child.kill(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    text = watched(capsys, run)
    assert "tiny: DIED" in text
    assert f"its process {child.pid} is gone" in text
    assert f"next: diffunet train {run}/config.json --out {run}" in text
    last = json.loads(watched(capsys, run, "--json"))["checkpoint"]["step"]
    again = ["train", run / "config.json", "--out", run, "--train.steps", last + 1]
    assert zygote.run(again, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert f"tiny: DONE, process {json.loads((run / 'status.json').read_text())['pid']}" in watched(capsys, run)


def test_a_run_of_another_host_is_believed_until_it_is_silent(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status(run, state="running", host="elsewhere", pid=gone())
    found = json.loads(watched(capsys, run, "--json"))
    assert (found["state"], found["alive"], found["silent"]) == ("running", None, False)
    for path in run.iterdir():
        os.utime(path, (time.time() - 5000,) * 2)
    text = watched(capsys, run)
    assert "no sign of life for 83 min; whether process" in text
    assert "cannot be seen from here" in text
    status(run, host=platform.node())
    assert "tiny: DIED" in watched(capsys, run)


def test_how_a_run_failed_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status(run, state="failed", exit_code=6, message="the loss was not finite \x1b[31m")
    with open(run / "events.jsonl", "a") as file:
        for kind in ("spike", "spike", "damaged"):
            event = {"time": "2026-11-20T01:02:03+0000", "kind": kind, "step": 7, "message": f"about a {kind}\x1b[2J"}
            file.write(json.dumps(event) + "\n")
    text = watched(capsys, run)
    for words in ("tiny: FAILED", "! the loss was not finite \\x1b[31m", "! 1 x damaged", "! 2 x spike",
                  "01:02:03 damaged 7: about a damaged\\x1b[2J", "next: diffunet train"):  # fmt: skip
        assert words in text, words
    assert "\x1b" not in text


def test_an_old_run_and_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = watched(capsys, FIXTURE)
    assert "tiny: DONE, no status.json" in text
    assert "held-out 0.9601" in text
    for wrong in (tmp_path, tmp_path / "nothing"):
        assert main(["watch", str(wrong)]) == 4
        assert "is not a run folder: it holds no config.json" in capsys.readouterr().err
    assert main(["watch", str(FIXTURE), "--once", "--report"]) == 2


def test_the_report_is_written_on_demand(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "report.html").unlink(missing_ok=True)
    assert watched(capsys, run, "--report") == f"report: {run / 'report.html'}\n"
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert json.loads(watched(capsys, run, "--report", "--json")) == {"report": str(run / "report.html")}


def python(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options)


def test_it_needs_no_torch(run: Path) -> None:
    code = (
        f"import sys; from diffunet.cli import main; main(['watch', {str(run)!r}]); assert 'torch' not in sys.modules"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "tiny: DONE" in done.stdout


def test_an_ascii_terminal_gets_ascii(run: Path) -> None:
    (run / "metrics.jsonl").write_text("".join(f'{{"step": {s}, "loss": {s}}}\n' for s in range(1, 200)))
    code = f"from diffunet.cli import main; main(['watch', {str(run)!r}])"
    done = python(code, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("loss ")]
    assert line.split()[-1].strip("_.-=+*%#") == ""
    assert (line.split()[-1][0], line[-1]) == ("_", "#")
    assert done.stdout.isascii()


def test_on_a_terminal_it_is_renewed_until_the_run_ends(run: Path) -> None:
    status(run, state="running", pid=os.getpid())
    code = f"from diffunet.cli import main; raise SystemExit(main(['watch', {str(run)!r}, '--every', '0.1']))"
    leader, follower = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=follower, stderr=follower)
    os.close(follower)
    seen = os.read(leader, 4000)
    while b"tiny: RUNNING" not in seen or seen.count(b"\x1b[H") < 3:
        seen += os.read(leader, 4000)
    status(run, state="done")
    try:
        while True:
            seen += os.read(leader, 4000)
    except OSError:  # the other end is closed
        pass
    assert process.wait(timeout=60) == 0
    assert b"tiny: DONE" in seen
    os.close(leader)


def test_control_c_leaves_it_quietly(run: Path) -> None:
    status(run, state="running", pid=os.getpid())
    # a shell lets what it starts in the background ignore Ctrl-C; a terminal does not
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}; from diffunet.cli import main; raise SystemExit(main(['watch', {str(run)!r}]))"
    leader, follower = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stdout=follower, stderr=follower) as process:
        os.close(follower)
        while b"RUNNING" not in os.read(leader, 4000):
            pass
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
    os.close(leader)
