"""`diffunet doctor`: what it says of this machine, and its proof that killed runs lose nothing."""

from __future__ import annotations

import json
import re
import threading
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

import diffunet
from diffunet.cli import main
from diffunet.doctor import machine, resume, software
from diffunet.doctor.report import Finding, text, worst
from tests.training.runs import write_config


def test_every_line_says_how_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--folder", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    names = re.findall(r"^(?:ok|warn|bad) +([\w -]+?)  ", out, flags=re.MULTILINE)
    for name in ("python", "torch", "accelerate", "torch build", "bfloat16", "torchvision health", "diffusers health",
                 "processors", "memory", "disk", "file system", "open files", "clock"):  # fmt: skip
        assert name in names
    assert "0 bad" in out
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_the_same_is_json_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--folder", str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    found = {finding["name"]: finding for finding in result["findings"]}
    assert result["state"] in ("ok", "warn")
    assert found["disk"]["values"]["free"] > 0
    assert found["file system"]["values"]["bytes_per_second"] > 0
    assert found["safetensors"]["state"] == "ok"


def test_a_folder_that_cannot_keep_runs_is_bad(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--folder", "/proc/runs"]) == 5
    seen = capsys.readouterr()
    assert re.search(r"^bad +file system +/proc/runs: ", seen.out, flags=re.MULTILINE)
    assert seen.err.startswith("diffunet: error[E-STORAGE]: 1 of ")


def test_a_key_without_a_config_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--train.steps", "3"]) == 2
    assert "keys of a config are for --resume-test CONFIG" in capsys.readouterr().err


def test_a_library_that_is_too_old_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [r.name for r in software.requirements() if r.marker is None]
    assert "torch" in wanted
    monkeypatch.setattr(software, "installed", lambda name: "0.0.1")
    found = list(software.libraries())
    assert [finding.name for finding in found] == wanted
    assert {finding.state for finding in found} == {"bad"}
    assert found[0].advice.startswith("python -m pip install '")


def test_every_extra_is_explained() -> None:
    project = tomllib.loads((Path(diffunet.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert set(software.EXTRAS) == set(project["optional-dependencies"]) - {"test", "dev"}


def test_findings_are_a_table_and_the_worst_counts() -> None:
    found = [Finding("a", "ok", "fine"), Finding("longer", "bad", "broken", "mend it"), Finding("b", "warn", "slow")]
    assert worst(found) == "bad"
    assert text(found).splitlines() == [
        "ok    a       fine",
        "bad   longer  broken",
        "              -> mend it",
        "warn  b       slow",
    ]


def test_free_memory_is_below_all_memory() -> None:
    total = int(re.search(r"MemTotal: +(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
    free = machine.free_memory()
    assert free is not None
    assert 0 < free < total


# --- the resume test --------------------------------------------------------------------------------------------------


def test_a_run_is_shortened_and_stays_what_it_is(tmp_path: Path) -> None:
    from diffunet import config as configs

    run = configs.load(write_config(tmp_path), ["--train.steps", "9000", "--train.batch_size", "48"])
    quick, slow = resume.shortened(run, 1e-3), resume.shortened(run, 4.0)
    assert (quick.train.steps, quick.train.batch_size) == (resume.MOST, 48)
    assert slow.train.batch_size == 3
    assert resume.FEWEST <= slow.train.steps <= resume.SECONDS / (4.0 * 3 / 48)
    changed = {key.split(".")[0] for key in configs.differences(run, quick)}
    assert changed <= {"train", "sample"}
    assert quick.train.steps % quick.train.checkpoint_every == 0


def test_killed_runs_are_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six real processes: this is the command that users are told to trust."""
    command = ["doctor", "--resume-test", str(write_config(tmp_path)), "--folder", str(tmp_path / "runs"), "--json"]
    assert main([*command, "--train.batch_size", "8"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["passed"]
    assert result["batch_size"] in (8, 4, 2, 1), "smaller only where the machine is busy"
    whole, killed, saving, stopped = result["checks"]
    assert {check["result"] for check in result["checks"]} == {"ok"}
    assert whole["exit_codes"] == [0, 0]
    # each kill landed, and where it was meant to
    assert killed["exit_code"] == saving["exit_code"] == -9
    assert killed["killed_after_step"] < saving["killed_in_save_of_step"] <= stopped["stopped_at_step"]
    assert killed["resumed_from_step"] <= killed["killed_after_step"] < result["steps"]
    assert saving["resumed_from_step"] < saving["killed_in_save_of_step"], "the half save was not gone on from"
    assert stopped["exit_code"] == 143
    assert stopped["stopped_at_step"] < result["steps"]
    assert list((tmp_path / "runs").iterdir()) == [], "nothing is left behind"


def test_data_that_change_between_two_runs_are_found_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array = np.random.default_rng(0).random((40, 6, 6), dtype=np.float32)
    labels, path, runs = np.arange(40) % 10, tmp_path / "data.npz", tmp_path / "runs"
    np.savez(path, arr_0=array, arr_1=labels)

    def change() -> None:
        """Once the first run is done."""
        while not list(runs.glob("*/uninterrupted/weights.safetensors")) and not given_up.is_set():
            time.sleep(0.002)
        np.savez(path, arr_0=1 - array, arr_1=labels)

    given_up, thread = threading.Event(), threading.Thread(target=change)
    thread.start()
    command = ["doctor", "--resume-test", str(write_config(tmp_path)), "--folder", str(runs), "--data.name", "array"]
    try:
        assert main([*command, "--data.path", str(path), "--train.checkpoint_every", "1"]) == 6
    finally:
        given_up.set()
        thread.join()
    seen = capsys.readouterr()
    assert re.search(r"two uninterrupted runs of \d+ steps: DIFFERS at step 1: \w+ [\d.]+ and [\d.]+", seen.out)
    assert seen.out.endswith("not the same run\n")
    assert seen.err.startswith("diffunet: error[E-NUMERIC]: two uninterrupted runs")


def test_a_run_that_fails_by_itself_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["doctor", "--resume-test", str(write_config(tmp_path)), "--folder", str(tmp_path / "runs")]
    assert main([*command, "--data.name", "array", "--data.path", "/nowhere.npy"]) == 3
    assert "/nowhere.npy does not exist" in capsys.readouterr().err
    (tmp_path / "file").write_text("in the way")
    assert main([*command[:-1], str(tmp_path / "file")]) == 5
