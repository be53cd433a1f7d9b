"""The libraries: are they there, new enough, and of builds that fit together?"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata

import torch
from packaging.requirements import Requirement

from diffunet import compat
from diffunet.doctor.report import Finding

# what an extra brings, by its name in pyproject
EXTRAS = {
    "demo": "the handwritten digits of configs/digits.toml",
    "eval": "Frechet distances on Inception features",
    "plot": "pictures of `diffunet inspect` and `diffunet verify`",
    "track": "TensorBoard",
    "serve": "the web demo",
    "export": "ONNX",
    "hf": "data sets of the Hugging Face hub",
    "volumes": "medical volumes (.nii)",
}


def requirements() -> list[Requirement]:
    """What diffunet itself asks for, with the extra that each belongs to in its marker."""
    return [Requirement(line) for line in (metadata.requires("diffunet") or [])] if installed("diffunet") else []


def installed(name: str) -> str | None:
    """The version of a library, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def python() -> Finding:
    """The interpreter."""
    version = platform.python_version()
    found = f"{version} ({platform.python_implementation()}), {platform.system()} {platform.machine()}"
    old = sys.version_info < (3, 11)
    return Finding("python", "bad" if old else "ok", found, "install Python 3.11 or newer" if old else "")


def libraries() -> Iterator[Finding]:
    """Each library that diffunet needs, against the oldest version that it works with."""
    if installed("diffunet") is None:
        found = "not installed: it runs from a folder, and nothing says which libraries it needs"
        yield Finding("diffunet", "warn", found, "python -m pip install -e . in that folder")
        return
    for wanted in requirements():
        if wanted.marker is not None:
            continue
        version = installed(wanted.name)
        fits = version is not None and wanted.specifier.contains(version, prereleases=True)
        found = f"{version or 'missing'} (needs {wanted.specifier})"
        advice = "" if fits else f"python -m pip install '{wanted}'"
        yield Finding(wanted.name, "ok" if fits else "bad", found, advice, {"version": version})


def extras() -> Iterator[Finding]:
    """Each extra: there or not, and what it would bring."""
    wanted = requirements()
    for extra, brings in EXTRAS.items():
        own = [r for r in wanted if r.marker is not None and re.search(rf"extra == ['\"]{extra}['\"]", str(r.marker))]
        missing = [r.name for r in own if installed(r.name) is None]
        found = f"{brings}: {'missing ' + ', '.join(missing) if missing else 'there'}"
        advice = f"python -m pip install 'diffunet[{extra}]', if you want it" if missing else ""
        yield Finding(f"extra {extra}", "ok", found, advice, {"missing": missing})


def torch_build() -> Finding:
    """What torch was built for, and on what it will compute."""
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    threads = f"{torch.get_num_threads()} threads"
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else f"the CPU, {threads}"
    return Finding("torch build", "ok", f"{torch.__version__}, {built}; computes on {device}")


def bf16() -> Finding:
    """Does the device compute in bfloat16 by itself?"""
    from diffunet.training.program import resolve_precision

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    fast = resolve_precision("auto", device or torch.device("cpu")) == "bf16"
    found = "in hardware: train.precision = 'auto' takes it" if fast else "not in hardware: 'auto' is float32"
    return Finding("bfloat16", "ok", found, values={"hardware": fast})


def torchvision() -> Finding:
    """Does torchvision import, and are its operators there? A build for another torch has none of them."""
    builds = f"torchvision {installed('torchvision')} beside torch {torch.__version__}"
    advice = "install torch and torchvision from the same index, in one pip command"
    try:
        compat.torchvision()
    except Exception as error:  # a broken binary raises what it likes
        return Finding("torchvision health", "bad", f"{builds} does not import: {error}", advice)
    if torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "CPU"):
        return Finding("torchvision health", "ok", f"{builds}: its operators load")
    mended = f"{builds}: built for another torch, its operators do not load; mended, diffunet needs none of them"
    return Finding("torchvision health", "warn", mended, advice)


def diffusers() -> Finding:
    """Does diffusers import beside them?"""
    try:
        compat.diffusers()
    except Exception as error:
        return Finding("diffusers health", "bad", f"does not import: {error}", "python -m pip install -U diffusers")
    return Finding("diffusers health", "ok", "imports")


def findings() -> Iterator[Finding]:
    """All of it."""
    yield python()
    yield from libraries()
    yield torch_build()
    yield bf16()
    yield torchvision()
    yield diffusers()
    yield from extras()
