"""Weights inside a pickle (.pt, .pth, .ckpt, .bin), read by another process that can neither run them nor grow.

What can be seen without reading the pickle is refused here: a tar, a deflated or overlapping archive, a TorchScript
program. The rest is read by `unpickle.py` under limits that the size of the file explains, and comes back as a
safetensors file in a private temporary folder. Only `convert` opens such files.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffunet.errors import CheckpointError, ConfigError, StorageError, UnsafeError
from diffunet.weights import read_tensors

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
READER = Path(__file__).with_name("unpickle.py")
MAX_MEMBERS = 100_000
SECONDS, BYTES_PER_SECOND = 60, 20 * 2**20  # a reader's time: at least, and for a large file
MEMORY = 2**29  # beside the tensors
AVERAGED = re.compile(r"(^|[/_.])(ema|averaged?|shadow_params)([/_.]|$)")
# of the environment, what a Python needs to start
KEPT = ("HOME", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "PATH", "PYTHONPATH", "TMPDIR", "VIRTUAL_ENV")
MENDING = (
    "only where you trust the file, make a plain state dict of it in its own project's checkout, for example: "
    "python -c \"import pickle, torch; net = pickle.load(open('NAME', 'rb'))['ema']; "
    "torch.save(net.state_dict(), 'weights.pt')\", and convert that"
)


def check_archive(path: Path) -> None:
    """Refuse what no torch.save of today or yesterday writes, without reading the pickle.

    Raises:
        UnsafeError: a tar, a deflated or overlapping member, too many members, or a TorchScript program.
        CheckpointError: an archive that is cut off.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    if head[257:262] == b"ustar":
        raise UnsafeError(f"{path} is in the tar format of torch before 0.2, which is not read; save it again")
    if not head.startswith(b"PK\x03\x04"):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except OSError:
        raise
    except Exception as error:  # a broken directory of members makes zipfile give up in many ways
        raise CheckpointError(f"{path} is damaged: {error} (truncated?)") from None
    if len(members) > MAX_MEMBERS:
        raise UnsafeError(f"{path} holds {len(members)} members (limit {MAX_MEMBERS}); it is not read")
    if any(m.compress_type != zipfile.ZIP_STORED for m in members):
        raise UnsafeError(f"{path} is compressed, which torch.save never does; it is not read")
    if sum(m.file_size for m in members) > path.stat().st_size:
        raise UnsafeError(f"{path} claims to hold more bytes than it has; it is not read")
    if any(m.filename.endswith("/constants.pkl") for m in members):
        raise UnsafeError(
            f"{path} is a TorchScript program, which is code; save its state dict: "
            f"torch.save(torch.jit.load('{path.name}').state_dict(), 'weights.pt')"
        )


def states(path: Path) -> dict[str, dict[str, Tensor]]:
    """Every table of tensors in a pickle: its name (keys joined by '/') -> name -> tensor, in the file's order.

    Raises:
        UnsafeError: it holds more than tensors, or wants more time, memory or disk than its size explains.
        CheckpointError: missing or damaged.
        StorageError: no room for the tensors in the temporary folder.
    """
    try:
        check_archive(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    size = path.stat().st_size
    seconds = SECONDS + size // BYTES_PER_SECOND
    with tempfile.TemporaryDirectory(prefix="diffunet-") as folder:
        target = Path(folder, "tensors.safetensors")
        answer = _answer(path, target, 2 * size, 4 * size + MEMORY, seconds)
        if "groups" not in answer:
            raise _error(path, answer)
        tensors, _ = read_tensors(target)
    values = iter([tensors[str(i)] for i in range(len(tensors))])
    return {group: {name: next(values) for name in names} for group, names in answer["groups"]}


def _answer(path: Path, target: Path, budget: int, memory: int, seconds: int) -> dict[str, Any]:
    """What the reader says; where it was stopped, why."""
    program = [sys.executable, "-P", READER, path.absolute(), target, budget, memory, seconds]
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    try:
        run = subprocess.run(
            [str(word) for word in program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=target.parent,
            timeout=2 * seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"kind": "unsafe", "reason": f"reading it takes more than {2 * seconds} s"}
    if run.returncode == 0:
        return json.loads(run.stdout)
    slow = run.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
    said = f"reading it takes more than {seconds} s" if slow else f"its reader stopped with code {run.returncode}"
    return {"kind": "unsafe", "reason": said}


def _error(path: Path, answer: dict[str, str]) -> Exception:
    """The error of a file that was not read."""
    reason = answer["reason"].encode("unicode_escape").decode()
    if answer["kind"] == "storage":
        return StorageError(f"{path} cannot be read through {tempfile.gettempdir()}: {reason}; set TMPDIR to more room")
    if answer["kind"] == "damaged":
        return CheckpointError(f"{path} is damaged: {reason}")
    mending = f"; {MENDING.replace('NAME', path.name)}" if reason.startswith("it holds ") else ""
    return UnsafeError(f"{path} is more than weights ({reason}), so it is not loaded{mending}")


def choose(found: Mapping[str, dict[str, Tensor]], wanted: str | None, path: Path) -> tuple[str, dict[str, Tensor]]:
    """One set of weights of those in a file, with the wrapper's prefix off its names.

    Args:
        found: as `states` gives them.
        wanted: `ema`, `raw`, the name of a table in the file, or None for the average where there is one.
        path: for messages.

    Returns:
        Where the weights were, and they.

    Raises:
        CheckpointError: the file holds no weights.
        ConfigError: none of that name, or several and no word which.
    """
    raw = {n: s for n, s in found.items() if not AVERAGED.search(n) and any(not k.isdecimal() for k in s)}
    averages = {n: s for n, s in found.items() if AVERAGED.search(n)}
    position = [n for n in found if n.isdecimal()]
    if len(position) > 1 and not averages:  # [state, optimizer, epoch, step, average]
        averages = {position[-1]: raw.pop(position[-1])}
    tables = {"raw": raw, "ema": averages}
    pool = tables.get(wanted or ("ema" if averages else "raw"), {n: s for n, s in found.items() if n == wanted})
    if not found:
        raise CheckpointError(f"{path} holds no tensors")
    if len(pool) != 1:
        what = f"no weights '{wanted}'" if wanted and not pool else f"{len(pool)} sets of weights"
        raise ConfigError(f"{path} holds {what}; say which by --state: {', '.join(list(found)[:10])}")
    ((name, state),) = pool.items()
    if all(key.isdecimal() for key in state):
        state = _named(state, raw, path)
    return name, without_prefix(state)


def _named(values: Mapping[str, Tensor], raw: Mapping[str, dict[str, Tensor]], path: Path) -> dict[str, Tensor]:
    """A bare list of averages under the names of the weights that it averages, in their order.

    Weights that were not trained (tables, random frequencies) have no average and keep their value.
    """
    if len(raw) != 1:
        raise ConfigError(f"{path} holds averages without names and {len(raw)} sets of weights that could name them")
    named = dict(next(iter(raw.values())))
    rest = list(values.values())
    for name, value in named.items():
        if rest and rest[0].shape == value.shape:
            named[name] = rest.pop(0)
    if rest:
        raise CheckpointError(f"{path}: its averages are not those of its weights ({len(rest)} are left over)")
    return named


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the `module.` of DataParallel and the `_orig_mod.` of torch.compile."""
    return {re.sub(r"^((module|_orig_mod)\.)+", "", name): value for name, value in state.items()}
