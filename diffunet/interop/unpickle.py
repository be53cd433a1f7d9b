"""A program of its own: read one pickle of weights within limits and write its tensors as safetensors, or say why not.

`pickles.py` runs it as `python -P unpickle.py SOURCE TARGET BUDGET MEMORY SECONDS`. It knows nothing of diffunet, so
that nothing but torch stands between the limits and the file. torch's own reader of weights, which calls nothing that
the file names, is the first wall; the limits, and the refusal to start programs or to write elsewhere, stand behind it.

Prints one line of JSON: `{"groups": [[name, [weight, ...]], ...]}`, where the i-th weight of all is the tensor `i` of
TARGET; or `{"kind": "unsafe" | "damaged" | "storage", "reason": ...}`.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch

DEEPEST = 2  # containers between the file and a tensor: {"ema": {"shadow_params": [...]}}
MAX_ITEMS = 20_000  # of one container, and of all
FORBIDDEN = ("os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "pty.", "socket.", "subprocess.")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
NOT_WEIGHTS = r"Unsupported operand \d+|Can only [^.\n]+|Only persistent_load[^.\n]+|unsupported persistent id"
KINDS = frozenset(
    getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
)


class Refused(Exception):
    """The file holds something that weights do not need."""


def limit(target: str, budget: int, memory: int, seconds: int) -> None:
    """Bind this process: bytes it may still take, seconds it may run, one file that it may write, no other program."""
    limits = {"CPU": seconds, "FSIZE": budget + 2**24, "CORE": 0}
    if (used := Path("/proc/self/statm")).exists():  # where there is none, the system does not count address space
        limits["AS"] = int(used.read_text().split()[0]) * resource.getpagesize() + memory
    for name, value in limits.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        elsewhere = event == "open" and arguments[2] & WRITING and arguments[0] != target
        if event.startswith(FORBIDDEN) or elsewhere:
            os._exit(70)  # no exception, which the code that tried it could catch

    sys.addaudithook(watch)


def items(container: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of a dict, a list or a tuple; of other things, none."""
    if isinstance(container, dict | list | tuple):
        if len(container) > MAX_ITEMS:
            raise Refused(f"one of its tables has {len(container)} entries (limit {MAX_ITEMS})")
        pairs = container.items() if isinstance(container, dict) else enumerate(container)
        yield from ((str(name), value) for name, value in pairs if isinstance(name, str | int))


def groups(content: Any) -> list[tuple[str, list[str], list[torch.Tensor]]]:
    """Every container that holds tensors: its name (keys joined by '/'), their names and they, from the top."""
    found, level, seen = [], [("", content)], 0
    for _ in range(DEEPEST + 1):
        below: list[tuple[str, Any]] = []
        for path, container in level:
            tensors = [(name, value) for name, value in items(container) if isinstance(value, torch.Tensor)]
            if tensors:
                found.append((path, [name for name, _ in tensors], [value for _, value in tensors]))
            inner = [(f"{path}/{name}".lstrip("/"), value) for name, value in items(container)]
            below += [(name, value) for name, value in inner if isinstance(value, dict | list | tuple)]
            seen += len(inner)
            if seen > MAX_ITEMS:
                raise Refused(f"it holds more than {MAX_ITEMS} things")
        level = below
    return found


def checked(tensor: torch.Tensor) -> torch.Tensor:
    """A plain tensor in memory of its own."""
    if tensor.layout != torch.strided or tensor.dtype not in KINDS or tensor.device.type != "cpu":
        raise Refused(f"one of its tensors is {tensor.layout} of {tensor.dtype} on {tensor.device}")
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def convert(source: str, target: str, budget: int) -> dict[str, Any]:
    """Read, check and write; the names of what was written."""
    with open(source, "rb") as file:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    found = groups(content)
    claimed = sum(t.numel() * t.element_size() for _, _, tensors in found for t in tensors)
    if claimed > budget:
        raise Refused(f"its tensors claim {claimed} bytes, more than {budget}")
    tensors = [checked(tensor) for _, _, group in found for tensor in group]
    safetensors.torch.save_file({str(i): tensor for i, tensor in enumerate(tensors)}, target)
    return {"groups": [[path, names] for path, names, _ in found]}


def failure(error: BaseException) -> dict[str, str]:
    """What an error says of the file."""
    text = str(error)
    if isinstance(error, UnpicklingError) and (named := re.search(r"GLOBAL ([\w.]+)", text)):
        return {"kind": "unsafe", "reason": f"it holds {named[1][:100]}"}
    if isinstance(error, UnpicklingError) and (named := re.search(NOT_WEIGHTS, text)):
        return {"kind": "unsafe", "reason": f"it uses what weights do not need ({named[0][:100]})"}
    if isinstance(error, Refused):
        return {"kind": "unsafe", "reason": text}
    if isinstance(error, MemoryError) or re.search("allocate memory|not enough memory|bad_alloc", text):
        return {"kind": "unsafe", "reason": "it asks for more memory than its size explains"}
    if isinstance(error, OSError) or "os error" in text:
        return {"kind": "storage", "reason": text[:200]}
    return {"kind": "damaged", "reason": f"{type(error).__name__}: {text[:200]}"}


def main(source: str, target: str, budget: str, memory: str, seconds: str) -> None:
    """Answer on stdout; whatever the file provokes becomes an answer too."""
    torch.set_num_threads(1)
    limit(target, int(budget), int(memory), int(seconds))
    try:
        answer = convert(source, target, int(budget))
    except BaseException as error:
        answer = failure(error)
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
