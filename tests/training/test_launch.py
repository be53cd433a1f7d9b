"""The launch presets, as accelerate and a shell understand them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from tests.training.runs import write_config

LAUNCH = Path(__file__).parents[2] / "train" / "launch"
# preset -> processes, machines, on GPUs of one machine or several
PRESETS = {"cpu": (1, 1, False), "one_gpu": (1, 1, False), "one_node": (8, 1, True), "two_nodes": (16, 2, True)}


def test_there_is_a_claim_for_every_preset() -> None:
    assert {path.stem for path in LAUNCH.glob("*.yaml")} == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_accelerate_starts_what_the_preset_says(name: str) -> None:
    """Its own reading of the file and of the command that the file's first lines give."""
    path = LAUNCH / f"{name}.yaml"
    text = path.read_text()
    assert text.startswith("# ")
    assert f"accelerate launch --config_file train/launch/{name}.yaml" in text
    given = ["--machine_rank", "0", "--main_process_ip", "10.0.0.1"] if name == "two_nodes" else []
    command = ["--config_file", str(path), *given, "-m", "train", "config.toml"]
    found, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    assert (found.num_processes, found.num_machines, found.multi_gpu) == PRESETS[name]
    assert (found.training_script, found.training_script_args) == ("train", ["config.toml"])
    assert found.mixed_precision == "no", "the run's own precision counts"


# commands that a cluster has and this machine has not
CLUSTER = {"scontrol": '[ "$1" = show ] && echo localhost || echo "$@" > "$REQUEUED"', "srun": 'exec "$@"'}


def submitted(folder: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The batch script on one machine of two CPU processes, as SLURM would run it."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    for name, line in CLUSTER.items():
        (bin_folder / name).write_text(f"#!/bin/bash\n{line}\n")
        (bin_folder / name).chmod(0o755)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1"}
    environment |= {"SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "7", "REQUEUED": str(folder / "requeued")}
    environment["PATH"] = f"{bin_folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", str(LAUNCH / "slurm.sh"), str(write_config(folder)), str(folder / "run"), *flags]
    return subprocess.run(
        command, cwd=LAUNCH.parents[1], env=environment | variables, capture_output=True, text=True, timeout=500
    )


def test_the_slurm_script_starts_every_process_once(tmp_path: Path) -> None:
    done = submitted(tmp_path, "--train.steps", "2")
    assert done.returncode == 0, done.stderr
    assert "2 process(es) on cpu" in done.stdout
    assert (tmp_path / "run" / "weights.safetensors").exists()
    assert not (tmp_path / "requeued").exists()


def test_a_job_that_was_stopped_in_time_is_queued_again(tmp_path: Path) -> None:
    """The state that a preempted run leaves (see test_ranks for the signal itself)."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text('{"state": "interrupted", "exit_code": 75}')
    done = submitted(tmp_path, "--no-such-flag")  # ends at once, so that the status stays as it is
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "requeued").read_text().split() == ["requeue", "7"]
