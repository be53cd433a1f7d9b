"""What a user's pip installs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import diffunet

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_diffunet_and_nothing_else(tmp_path: Path) -> None:
    """`train` and `sample` stay in the checkout: as installed packages they would shadow users' files."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(
        ".venv", ".git", "runs", "build", "*.egg-info", "__pycache__", ".*_cache", ".coverage*"
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("diffunet-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry = next(n for n in names if n.endswith("entry_points.txt"))
        assert "diffunet = diffunet.cli:console" in archive.read(entry).decode()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"diffunet", f"diffunet-{diffunet.__version__}.dist-info"}
    assert "diffunet/py.typed" in names
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "diffunet").rglob("*.py")}
    assert modules <= set(names)


def test_every_public_name_is_there() -> None:
    for name in diffunet.__all__:
        assert getattr(diffunet, name) is not None
    assert set(diffunet.__all__) <= set(dir(diffunet))
