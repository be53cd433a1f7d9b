"""Run folders are read in whatever state they are: half-written, cut back, broken, hostile."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from diffunet.report import read_run, reading
from diffunet.report.reading import Follow, number, whole
from tests.report.conftest import Make, records

NOT_OBJECTS = ["[]", "3", "null", '"x"', "{", "[" * 100_000, "\x00\xff", '{"a": NaN', '{"step": 1} {"step": 2}']


def test_a_last_line_that_is_being_written_is_left_out(make: Make) -> None:
    run = make(records(20))
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 21, "lo')
    found = read_run(run)
    assert [r["step"] for r in found.records] == list(range(1, 21))
    assert found.remarks == ()


@pytest.mark.parametrize("text", NOT_OBJECTS)
def test_broken_lines_are_left_out_and_counted(make: Make, text: str) -> None:
    run = make(records(3))
    for name in ("metrics", "events"):
        with open(run / f"{name}.jsonl", "a", encoding="utf-8", errors="surrogatepass") as file:
            file.write(f'{text}\n{{"step": 4, "kind": "spike"}}\n')
    found = read_run(run)
    assert [r["step"] for r in found.records] == [1, 2, 3, 4]
    assert [e["kind"] for e in found.events] == ["spike"]
    assert len(found.remarks) == 2
    assert all("1 lines are no JSON objects" in remark for remark in found.remarks)


@pytest.mark.parametrize("name", ["config.json", "status.json", "environment.json", "evaluation.json"])
@pytest.mark.parametrize("text", NOT_OBJECTS)
def test_a_broken_file_is_named(make: Make, name: str, text: str) -> None:
    run = make(records(3))
    (run / name).write_text(text)
    assert read_run(run).remarks == (f"{name} is broken",)


def test_a_folder_with_nothing_in_it_is_an_empty_run(tmp_path: Path) -> None:
    found = read_run(tmp_path)
    assert (found.records, found.events, found.saved, found.touched, found.remarks) == ((), (), None, None, ())


@pytest.mark.parametrize("value", [None, True, "3", [], {}, math.nan, math.inf, 1e39, 10**400])
def test_what_is_no_finite_number_is_nan(value: object) -> None:
    assert math.isnan(number(value))


@pytest.mark.parametrize("value", [None, True, "3", 1.0, -1, 2**63, [], {}])
def test_what_is_no_step_is_none(value: object) -> None:
    assert whole(value) is None


def test_a_very_long_file_is_thinned_but_keeps_what_is_rare(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST", 1000)
    lines: list[dict[str, Any]] = [{"step": s} for s in range(1, 2002)]
    lines[776]["held_out"] = {"loss": 1.0}
    found = read_run(make(lines)).records
    assert 1000 >= len(found) > 660
    assert {777, 2001} <= {r["step"] for r in found}


def test_following_reads_what_is_new_and_notices_a_cut(make: Make) -> None:
    lines = records(30)
    run = make(lines[:10])
    path = run / "metrics.jsonl"
    follow = Follow(path)
    assert len(follow()) == 10
    for record in lines[10:20]:
        with open(path, "a") as file:
            file.write(json.dumps(record) + "\n" + '{"step":')  # the next line has begun
        assert follow()[-1]["step"] == record["step"]
        text = path.read_text()
        path.write_text(text[: text.rindex("\n") + 1])
    # resumed from step 5: cut back, then longer than before, with other losses
    other = [{**record, "loss": 7.0} for record in lines[5:]]
    path.write_text("".join(json.dumps(r) + "\n" for r in lines[:5] + other))
    found = follow()
    assert [r["step"] for r in found] == list(range(1, 31))
    assert [r["loss"] == 7.0 for r in found] == [False] * 5 + [True] * 25
    path.unlink()
    assert follow() == ()


def test_only_pictures_and_checkpoints_of_the_run_are_taken(make: Make) -> None:
    run = make(records(3))
    for name in ("step-00000004.png", "step-00000002.png", "step-00000002-neighbours.png", "step-4.png", ".tmp-x.png"):
        (run / "samples").mkdir(exist_ok=True)
        (run / "samples" / name).write_bytes(b"")
    for name in ("step-00000002", "damaged-step-00000003-0", ".tmp-00000004-1", "step-abc"):
        (run / "checkpoints" / name).mkdir(parents=True)
    found = read_run(run)
    assert [step for step, _ in found.previews] == [2, 4]
    assert [step for step, _ in found.neighbours] == [2]
    assert found.saved is not None
    assert found.saved[0] == 2
