"""Rows M1 to M8: files that want to run code, to fill the machine or to be somewhere else; T6 and T7."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import diffunet
from tests.faults import small
from tests.faults.openers import OPENERS, SLOW
from tests.training.conftest import Zygote

soak = pytest.mark.soak
REFUSALS = {2, 3, 4, 7}


@pytest.mark.parametrize("count", [20, pytest.param(250, marks=soak)])
def test_no_payload_runs_on_any_way_in(zygote: Zygote, tmp_path: Path, count: int) -> None:
    """T7: refused with a message that names the file, the mark not there, and no pickle asked for a name."""
    code = zygote.start([tmp_path, count], tmp_path / "log", call="tests.faults.openers:main").wait(1500)
    assert code == 0, (tmp_path / "log").read_text()
    results: list[dict[str, Any]] = [json.loads(line) for line in (tmp_path / "results").read_text().splitlines()]
    careless = [r for r in results if r["opener"] == "careless"]
    given = [r for r in results if r["opener"] != "careless"]
    assert len(given) >= count * (len(OPENERS) - len(SLOW))
    assert {r["opener"] for r in given} == set(OPENERS)
    assert not [r for r in given if r["ran"]], "code was run"
    assert not [r for r in given if r["unpickled"]], "a pickle was read"
    wrong = [r for r in given if r["code"] not in REFUSALS]
    assert not wrong, wrong[:5]
    for result in given:
        if result["opener"] != "convert":
            assert str(tmp_path) in small.message(result["said"]), result
    assert careless, "no payload was shown to be alive"
    dead = [r["payload"] for r in careless if not r["ran"]]
    assert not dead, dead
    assert max(r["seconds"] for r in given) < 10


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=soak)])
def test_mutated_files_are_opened_or_refused_at_once(zygote: Zygote, tmp_path: Path, count: int) -> None:
    """T6: safetensors, JSON and zip: a user's error or none, in half a second and 100 MB each; no traceback."""
    code = zygote.start([tmp_path, count], tmp_path / "log", call="tests.faults.mutants:main").wait(1500)
    assert code == 0, (tmp_path / "log").read_text()
    found = json.loads((tmp_path / "results").read_text())
    assert found["count"] == count
    assert not found["bugs"], found["bugs"]
    assert found["refused"] > 0.7 * count
    assert found["slowest"] < 0.5
    assert found["grown"] < 100 * 2**20


def test_nothing_in_diffunet_unpacks_an_archive_to_files() -> None:
    """M4 and M5: members are read one by one and by name, so that none of them can be a path, a link or a device."""
    sources = {path: path.read_text() for path in Path(diffunet.__file__).parent.rglob("*.py")}
    for word in ("extractall", ".extract(", "extract_archive", "unpack_archive", "tarfile"):
        assert not [path.name for path, text in sources.items() if word in text], word
