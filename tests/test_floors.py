"""The house: who may import whom, how large a file may grow, and what an import costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import diffunet

ROOT = Path(diffunet.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
every_file = pytest.mark.parametrize("file", FILES, ids=[str(f.relative_to(ROOT)) for f in FILES])

# Floors from the ground up. A module may import what stands on lower floors and what stands before it in its own row;
# rows of one floor do not know each other.
FLOORS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("errors", "table", "spec", "zoo", "config"),),
    (("compat",), ("nn",), ("schedules",), ("losses",)),
    (("predictions", "posterior", "denoiser"), ("tiles", "segmenter")),
    (("objectives",), ("samplers",), ("guidance",)),
    (("generation", "inverse"), ("likelihood",), ("storage", "data"), ("metrics",)),
    (("drawing", "pictures", "weights", "report", "training"),),
    (("interop",), ("analysis", "doctor", "preflight")),
    (("cli", "__main__", "__init__"),),
)
PLACES = {name: (floor, row) for floor, rows in enumerate(FLOORS) for row in rows for name in row}
# A denoiser works with any network, and so knows none.
FORBIDDEN = {("predictions", "nn"), ("denoiser", "nn")}
# The lowest floor on which a library may be imported, and the only modules that may where they are few.
LIBRARIES = {
    "numpy": 0,
    "pydantic": 0,
    "pydantic_core": 0,
    "einops": 1,
    "torch": 1,
    "PIL": 4,
    "nibabel": 4,
    "scipy": 4,
    "sklearn": 4,
    "torch_fidelity": 4,
    "tqdm": 4,
    "filelock": 4,
    "safetensors": 5,
    "packaging": 6,
    "typer": 7,
}
ONLY = {
    "accelerate": {"training"},
    "diffusers": {"compat"},
    "matplotlib": {"analysis", "report"},
    "nibabel": {"data"},
    "torchvision": {"compat"},
}
MAX_FILE, MAX_FUNCTION = 300, 50


def module_of(file: Path) -> str:
    """The module or package right below diffunet that a file belongs to."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, wherever it stands in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are written in full"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            # a name that is put together counts by its beginning
            first = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            if isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)
            elif isinstance(first, ast.FormattedValue):
                raise AssertionError(f"line {node.lineno}: an import must say at least the package that it is from")


def target(name: str) -> str:
    """The module below diffunet that an import of `diffunet...` means; a public name means its home."""
    part = name.removeprefix("diffunet").removeprefix(".").split(".")[0]
    return diffunet._HOMES.get(part, part)


@pytest.mark.parametrize("name", sorted({module_of(file) for file in FILES}))
def test_every_module_has_its_floor(name: str) -> None:
    assert name in PLACES, f"add '{name}' to FLOORS, as low as its imports allow"


@every_file
def test_imports_go_down(file: Path) -> None:
    module = module_of(file)
    floor, row = PLACES[module]
    for line, name in imported(ast.parse(file.read_text())):
        if name.split(".")[0] != "diffunet" or not (other := target(name)) or other == module:
            continue
        if module == "__init__" or other == "__version__":
            continue  # the package itself stands on top, and its version on nothing
        below, other_row = PLACES[other]
        earlier = other_row == row and row.index(other) < row.index(module)
        assert below < floor or earlier, f"{file.name}:{line}: {module} (floor {floor}) imports {other} (floor {below})"
        assert (module, other) not in FORBIDDEN, f"{file.name}:{line}: {module} must not know {other}"


@every_file
def test_libraries_stand_on_their_floor(file: Path) -> None:
    module = module_of(file)
    for line, name in imported(ast.parse(file.read_text())):
        library = name.split(".")[0]
        if library == "diffunet" or library in sys.stdlib_module_names:
            continue
        where = f"{file.name}:{line}: {module} imports {library}"
        if library in ONLY:
            assert module in ONLY[library], f"{where}, which only {sorted(ONLY[library])} may"
        else:
            assert LIBRARIES[library] <= PLACES[module][0], f"{where}, which floor {LIBRARIES[library]} may first"


@every_file
def test_files_and_functions_stay_short(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= MAX_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # counted without signature and docstring: the options of a command are a table, not a program
            body = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0 :]
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1
            assert lines <= MAX_FUNCTION, f"{file.name}:{node.lineno}: {node.name} has {lines} lines"


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("def f():\n    from diffunet.training import train", "training"),
        ("import diffunet.cli.train", "cli"),
        ("from diffunet import weights as w", "weights"),
        ("from diffunet import load", "weights"),
        ("import importlib\nimportlib.import_module('diffunet.cli')", "cli"),
        ("from importlib import import_module\nimport_module(f'diffunet.cli.{x}')", "cli"),
    ],
)
def test_an_import_is_found_however_it_is_written(source: str, wrong: str) -> None:
    assert wrong in [target(name) for _, name in imported(ast.parse(source)) if name.startswith("diffunet")]


def python(code: str) -> Any:
    """What a fresh Python prints as JSON."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return json.loads(run.stdout)


LOADED = "import json, sys; print(json.dumps([n for n in {names} if n in sys.modules]))"


@pytest.mark.parametrize("code", ["import diffunet", "import diffunet.spec, diffunet.config, diffunet.zoo"])
def test_the_ground_floor_loads_no_torch(code: str) -> None:
    names = ["torch", "numpy", "diffusers", "torchvision", "accelerate", "safetensors"]
    assert python(f"{code}; {LOADED.format(names=names)}") == []


def test_networks_and_generate_load_no_heavy_library() -> None:
    names = ["diffusers", "torchvision", "accelerate", "matplotlib", "sklearn"]
    assert python(f"from diffunet import UNet, generate; {LOADED.format(names=names)}") == []


def test_importing_costs_little_more_than_torch() -> None:
    code = (
        "import json; from time import process_time; import torch; start = process_time();"
        "from diffunet import UNet, generate; print(json.dumps(process_time() - start))"
    )
    # CPU seconds and the best of three, since other work on the machine can only add to it
    assert min(python(code) for _ in range(3)) <= 0.3
