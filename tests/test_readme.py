"""Every block of the README runs as it stands, with fewer steps; `make demo` runs in continuous integration itself."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.segments import write_pairs

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
LINES = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
SHORT = "--train.steps 2 --sample.preview_images 4 --sample.steps 2"
SHORT_SEGMENT = "--train.steps 2 --model.base_channels 8 --segment.crop 64 --segment.preview_images 1"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a checkout after a short demo, with some pictures of the user's own."""
    place = tmp_path_factory.mktemp("readme")
    for name in ("configs", "train", "sample"):
        (place / name).symlink_to(ROOT / name)
    (place / "pictures").mkdir()
    for i in range(40):
        Image.effect_noise((50 + i, 40), 80).convert("RGB").save(place / "pictures" / f"{i}.jpg")
    write_pairs(place / "slices")
    run(f"diffunet train configs/digits.toml {SHORT}", place)
    run(f"diffunet train configs/segment_isbi.toml --data.path slices {SHORT_SEGMENT}", place)
    return place


def run(line: str, place: Path) -> str:
    """One line of shell in `place`, with this environment's programs first."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-ec", line], cwd=place, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_set_up_is_two_make_targets() -> None:
    assert LINES[:2] == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    assert "demo: setup" in makefile
    assert "test: setup" in makefile
    assert "make demo" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("diffunet")])
def test_command_runs(line: str, workplace: Path) -> None:
    if line.startswith("diffunet train"):
        # a folder of its own: the run of the workplace stays what it is
        short = f"{SHORT_SEGMENT} --out runs/other" if "segment" in line else SHORT
        line = f"{line} {short} --train.batch_size 4"
    if line.startswith("diffunet evaluate runs/digits"):
        line = f"{line} --steps 2"
    run(line, workplace)
    out = re.search(r"--out (\S+)", line)
    assert out is None or (workplace / out[1]).exists()


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith(("torchrun", "accelerate"))])
def test_many_device_command_starts(line: str, workplace: Path) -> None:
    """The program behind the launcher's options, as a dry run; the launcher's own file must exist and parse."""
    words = shlex.split(line)
    program = words[words.index("-m") :]
    assert "dry run: nothing was trained" in run(shlex.join(["python", *program, "--dry-run"]), workplace)
    assert shutil.which(words[0], path=str(Path(sys.executable).parent))
    if "--config_file" in words:
        assert "distributed_type" in (ROOT / words[words.index("--config_file") + 1]).read_text()


@pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "python"])
def test_python_block_runs(block: str, workplace: Path) -> None:
    (workplace / "block.py").write_text(block)
    run("python block.py", workplace)


def test_every_picture_and_link_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
