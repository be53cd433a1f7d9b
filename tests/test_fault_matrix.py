"""Every row of the fault matrix is held by tests that exist and that `make test` runs."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

import pytest

from tests.faults.matrix import ROWS
from tests.faults.matrix_inputs import FIGURES, INPUTS

TESTS = Path(__file__).parent
GROUPS = {"P": 12, "S": 11, "N": 6, "D": 12, "C": 6, "M": 8}
TARGETS = {1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 18}
# rows of which no test runs under `make test`, and why
ONLY_SOAK: dict[str, str] = {}


@lru_cache
def functions(file: str) -> dict[str, str]:
    """The tests of a file, with the source of their decorators."""
    tree = ast.parse((TESTS / file).read_text())
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node.name: " ".join(ast.unparse(d) for d in node.decorator_list) for node in found}


def test_every_row_is_listed_once() -> None:
    rows = [*ROWS, *INPUTS]
    assert rows == [f"{group}{number + 1}" for group, count in GROUPS.items() for number in range(count)]
    assert [f"T{number}" for number in sorted(TARGETS)] == list(FIGURES)


@pytest.mark.parametrize("row", [*ROWS, *INPUTS])
def test_each_row_is_held_by_tests_that_exist(row: str) -> None:
    about, names = (ROWS | INPUTS)[row]
    assert about
    assert names, "nothing holds this row"
    for name in names:
        file, _, function = name.partition("::")
        assert function in functions(file), f"{name} does not exist"
    daily = [name for name in names if not only_under_soak(name)]
    assert daily or row in ONLY_SOAK


@pytest.mark.parametrize("figure", FIGURES)
def test_each_figure_has_its_test(figure: str) -> None:
    name = FIGURES[figure][1]
    file, _, function = name.partition("::")
    assert function in functions(file), f"{name} does not exist"
    assert not only_under_soak(name)


def only_under_soak(name: str) -> bool:
    """A test that is marked itself, and not only in some of its parameters."""
    file, _, function = name.partition("::")
    marks = functions(file)[function]
    return marks.startswith(("pytest.mark.soak", "soak")) or " pytest.mark.soak" in marks.replace("marks=", "marks")
