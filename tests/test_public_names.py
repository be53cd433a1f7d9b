"""The public names are what they say, in whatever order the parts are imported."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import diffunet

MODULES = sorted(
    m.name for m in pkgutil.walk_packages(diffunet.__path__, "diffunet.") if not m.name.endswith("__main__")
)


@pytest.mark.parametrize(
    "first", ["diffunet.training", "diffunet.cli.sample", "diffunet.interop.diffusers", "diffunet.nn"]
)
def test_names_are_functions_and_classes_after_any_import(first: str) -> None:
    """A module that shares its name with a public function would shadow it once it is imported."""
    script = f"import {first}; import diffunet; assert all(callable(getattr(diffunet, n)) for n in diffunet.__all__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_module_shares_a_public_name() -> None:
    assert not {module.split(".")[1] for module in MODULES} & set(diffunet.__all__)
