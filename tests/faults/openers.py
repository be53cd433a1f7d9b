"""Every way into diffunet for a file, and what becomes of hostile ones; run in a child of the zygote.

`main([folder, count])` hands `count` payloads to every opener and writes a line of JSON each to FOLDER/results.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diffunet import save
from diffunet.cli import main as diffunet
from diffunet.interop import unpickle
from diffunet.training import checkpoint
from tests import tiny
from tests.faults import payloads, small

DAMAGE = {"unpickled": 0}


def count_pickles(name: str, args: tuple[Any, ...]) -> None:
    """Python says so whenever a pickle asks for something by name."""
    if name == "pickle.find_class":
        DAMAGE["unpickled"] += 1


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def resume(folder: Path, data: bytes, name: str) -> int:
    """The same command over a checkpoint of which one file is the payload, sealed by whoever planted it."""
    root = folder / "run" / "checkpoints"
    shutil.rmtree(folder / "run", ignore_errors=True)
    shutil.copytree(folder / "calm", folder / "run")
    found = checkpoint.read(root, 2)
    shutil.rmtree(root)
    facts = {k: v for k, v in found.manifest.items() if k not in ("files", "step", "format")}
    checkpoint.write(root, 2, {**found.files, name: data}, facts)
    for planted in ("custom_checkpoint_0.pkl", ".metadata", "optimizer.bin", "latest"):
        put(root / "step-00000002" / planted, data)
    return diffunet(["train", str(folder / "small.toml"), "--out", str(folder / "run"), "--train.steps", "3"])


def train_on(folder: Path, data: bytes, kind: str, name: str) -> int:
    """A run whose data is the payload."""
    place = folder / "data"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    path = put(place / name, data)
    where = place if kind in ("folder", "cifar10", "fashion_mnist") else path
    flags = ["--data.name", kind, "--data.path", str(where), "--data.size", "8"]
    out = folder / "new"
    shutil.rmtree(out, ignore_errors=True)
    return diffunet(["train", str(folder / "small.toml"), "--out", str(out), *flags, "--train.steps", "1"])


def reader(folder: Path, data: bytes) -> int:
    """The program that `diffunet convert` runs for a pickle, in a fork, as it is there."""
    path, target = put(folder / "w.pt", data), folder / "converted"
    target.unlink(missing_ok=True)
    out, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        sys.stdout = open(end, "w")  # noqa: SIM115 (this process ends below)
        unpickle.main(str(path), str(target), str(4 * len(data)), str(2**29), "60")
        sys.stdout.flush()
        os._exit(0)
    os.close(end)
    with open(out) as file:
        said = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return 7 if code == 70 or (code == 0 and "groups" not in json.loads(said)) else (0 if code == 0 else code)


OPENERS: dict[str, Callable[[Path, bytes], int]] = {
    "sample FILE.safetensors": lambda f, d: diffunet(
        ["sample", str(put(f / "w.safetensors", d)), "--out", str(f / "o")]
    ),
    "sample FILE.pt": lambda f, d: diffunet(["sample", str(put(f / "w.pt", d)), "--out", str(f / "o")]),
    "inspect FILE": lambda f, d: diffunet(["inspect", str(put(f / "w.ckpt", d))]),
    "evaluate RUN": lambda f, d: diffunet(["evaluate", str(put(f / "w.bin", d))]),
    "train CONFIG": lambda f, d: diffunet(["train", str(put(f / "c.toml", d)), "--out", str(f / "new")]),
    "train CONFIG.json": lambda f, d: diffunet(["train", str(put(f / "c.json", d)), "--out", str(f / "new")]),
    "resume, weights": lambda f, d: resume(f, d, "network.safetensors"),
    "resume, moments": lambda f, d: resume(f, d, "optimizer.safetensors"),
    "resume, numbers": lambda f, d: resume(f, d, "state.json"),
    "data, npz": lambda f, d: train_on(f, d, "array", "x.npz"),
    "data, npy": lambda f, d: train_on(f, d, "array", "x.npy"),
    "data, folder": lambda f, d: train_on(f, d, "folder", "x.png"),
    "data, cifar10": lambda f, d: train_on(f, d, "cifar10", "data_batch_1"),
    "convert": reader,
}


# each starts a run; three of four payloads go to the first way of resuming alone
SLOW = {"resume, moments", "resume, numbers"}


def prepare(folder: Path) -> None:
    """A run of two steps and whole weights."""
    config = small.write_config(folder, 2)
    assert diffunet(["train", str(config), "--out", str(folder / "calm")]) == 0
    save(tiny.denoiser(), folder / "whole.safetensors")


def main(args: list[str]) -> int:
    """See the module."""
    folder, count = Path(args[0]), int(args[1])
    mark = folder / "mark"
    prepare(folder)
    chosen = list(payloads.every(str(mark)))
    chosen = chosen[:: max(1, len(chosen) // count)]
    results: list[dict[str, Any]] = []
    sys.addaudithook(count_pickles)
    for number, (name, data) in enumerate(chosen):
        for opener, give in OPENERS.items():
            if opener in SLOW and number % 4:
                continue
            DAMAGE["unpickled"] = 0
            said, begun = io.StringIO(), time.monotonic()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                code = give(folder, data)
            seconds = time.monotonic() - begun
            results.append({"payload": name, "opener": opener, "code": code, "said": said.getvalue()})
            results[-1] |= {"ran": mark.exists(), "unpickled": DAMAGE["unpickled"], "seconds": seconds}
            if mark.exists():
                shutil.rmtree(mark) if mark.is_dir() else mark.unlink()
        if number % 10 == 0 and name.endswith(("bare", "torch zip", "torch of old", "NumPy objects")):
            results.append({"payload": name, "opener": "careless", "ran": payloads.alive(name, data, mark)})
            time.sleep(0.05)  # a program that it started may still be at work
            results[-1]["ran"] |= mark.exists()
            if mark.exists():
                shutil.rmtree(mark) if mark.is_dir() else mark.unlink()
    torch.set_num_threads(1)
    (folder / "results").write_text("\n".join(map(json.dumps, results)))
    return 0
