"""Rows P6 and P7 under the real launchers: ten seconds of start each, so under soak but for what test_ranks holds."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.faults import small
from tests.training.conftest import wait_for
from tests.training.test_ranks import ROOT, environment

HANDLED = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


def launched(launcher: list[str], folder: Path, run: Path) -> subprocess.Popen:
    """A launcher with a run that has begun."""
    command = [
        sys.executable,
        "-m",
        *launcher,
        "-m",
        "train",
        str(small.write_config(folder, 100_000)),
        "--out",
        str(run),
    ]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log, start_new_session=True)
    wait_for(lambda: process.poll() is not None or small.steps_done(run) >= 2, 180)
    assert process.poll() is None, (folder / "log").read_text()
    return process


TORCHRUN = [
    "torch.distributed.run",
    "--nproc_per_node",
    "2",
    "--rdzv_backend",
    "c10d",
    "--rdzv_endpoint",
    "127.0.0.1:0",
]


@pytest.mark.soak
def test_usr1_under_torchrun_is_preemption(tmp_path: Path) -> None:
    """P6: named among its signals, torchrun hands it on; it flattens the exit code, and status.json keeps it."""
    run = tmp_path / "run"
    process = launched([*TORCHRUN, "--signals-to-handle", HANDLED], tmp_path, run)
    process.send_signal(signal.SIGUSR1)
    process.wait(60)
    status = small.status(run)
    assert (status["state"], status["exit_code"]) == ("interrupted", 75)
    assert small.whole(run).step == small.steps_done(run)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["torchrun", "accelerate"])
def test_nobody_outlives_a_launcher_that_is_stopped(tmp_path: Path, kind: str) -> None:
    """P7: after 25 seconds no process of the job is left, and what was saved is whole."""
    run = tmp_path / "run"
    preset = ROOT / "train" / "launch" / "cpu.yaml"
    launcher = TORCHRUN if kind == "torchrun" else ["accelerate.commands.launch", "--config_file", str(preset)]
    process = launched(launcher, tmp_path, run)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    stopped = time.monotonic()
    _, alive = psutil.wait_procs(family, timeout=25)
    for left in alive:
        left.kill()
    process.wait(60)
    assert not alive, f"{alive} were still there after {time.monotonic() - stopped:.0f} s"
    assert small.whole(run) is not None
