"""Pickles that run code, in every format that holds one; each leaves a mark where it runs.

`every` gives (name, bytes); openers.py hands them to all that opens files, in a child of the zygote.
"""

from __future__ import annotations

import builtins
import gzip
import io
import os
import pickle
import pickletools
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Calls:
    """Unpickling this calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


def calls(mark: str) -> dict[str, Calls]:
    """Ways to make the mark."""
    source = f"open({mark!r}, 'w').close()"
    return {
        "os.system": Calls(os.system, f"touch {mark}"),
        "exec": Calls(exec, source),
        "eval": Calls(eval, source),
        "mkdir": Calls(os.mkdir, mark),
        "Popen": Calls(subprocess.Popen, ["touch", mark]),
        "open": Calls(open, mark, "w"),
        "getattr": Calls(getattr(builtins, "exec"), source),  # noqa: B009 (as a gadget would)
    }


def by_hand(mark: str) -> dict[str, bytes]:
    """Opcodes that pickle itself no longer writes, or that hide the name of what they call."""
    text = mark.encode()
    return {
        "GLOBAL REDUCE": b"cos\nmkdir\n(S'" + text + b"'\ntR.",
        "INST": b"(S'" + text + b"'\nios\nmkdir\n.",
        "OBJ": b"(cos\nmkdir\nS'" + text + b"'\no.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c" + bytes([len(text)]) + text + b"\x85R.",
        "NEWOBJ": b"\x80\x02cpathlib\nPath\n(S'/'\nt\x81c__builtin__\neval\n(S'open(\"" + text + b'", "w")\'\ntR.',
        "BUILD": b"\x80\x02cos\nmkdir\nU" + bytes([len(text)]) + text + b"\x85R}b.",
        "memo": b"\x80\x02cos\nmkdir\nq\x000h\x00U" + bytes([len(text)]) + text + b"\x85R.",
        "after a tensor": pickle.dumps({"w": [0.0]}, 2)[:-1] + b"0cos\nmkdir\n(S'" + text + b"'\ntR.",
    }


def saved(content: Any, modern: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=modern)
    return buffer.getvalue()


def zipped(files: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def objects(content: Any) -> bytes:
    """A NumPy array of objects, which are pickled."""
    array = np.empty(1, dtype=object)
    array[0] = content
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def every(mark: str) -> Iterator[tuple[str, bytes]]:
    """All of them, 250 and more."""
    for name, call in calls(mark).items():
        for protocol in range(6):
            bare = pickle.dumps(call, protocol=protocol)
            yield f"{name}, protocol {protocol}, bare", bare
            yield f"{name}, protocol {protocol}, in a dict", pickle.dumps({"state_dict": [1, call]}, protocol=protocol)
            yield f"{name}, protocol {protocol}, optimized", pickletools.optimize(bare)
        inside = {"weight": torch.zeros(2), "x": call}
        yield f"{name}, torch zip", saved(inside, True)
        yield f"{name}, torch of old", saved(inside, False)
        yield f"{name}, NumPy objects", objects(call)
        yield f"{name}, in an npz", zipped({"images.npy": objects(call)})
    for name, data in by_hand(mark).items():
        yield f"{name}, bare", data
        yield f"{name}, as data.pkl", zipped({"archive/data.pkl": data, "archive/version": b"3\n"})
        yield f"{name}, zip in a zip", zipped({"inner.pt": zipped({"archive/data.pkl": data})})
        yield f"{name}, deflated", zipped({"archive/data.pkl": data}, zipfile.ZIP_DEFLATED)
        yield f"{name}, tar of torch", tarred({"sys_info": data, "pickle": data, "tensors": data, "storages": data})
        yield f"{name}, gzip", gzip.compress(data)
        yield f"{name}, behind a safetensors header", (2).to_bytes(8, "little") + b"{}" + data
        yield f"{name}, as metadata", _metadata(data)
        yield f"{name}, behind a PNG's signature", b"\x89PNG\r\n\x1a\n" + data


def _metadata(data: bytes) -> bytes:
    import json

    header = json.dumps({"__metadata__": {"diffunet": data.decode("latin1"), "sha256": "0"}}).encode()
    return len(header).to_bytes(8, "little") + header


def alive(name: str, data: bytes, mark: Path) -> bool:
    """Whether it works where one is careless; for those that a reader of Python's or torch's opens."""
    try:
        if "NumPy" in name:
            np.load(io.BytesIO(data), allow_pickle=True)
        elif "torch zip" in name or "torch of old" in name:
            torch.load(io.BytesIO(data), weights_only=False)
        else:
            pickle.loads(data)
    except Exception:
        pass
    return mark.exists()
