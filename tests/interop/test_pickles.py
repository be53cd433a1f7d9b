"""Weights come out of pickles; code, bombs and broken archives do not."""

from __future__ import annotations

import io
import os
import pickle
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffunet.errors import CheckpointError, ConfigError, UnsafeError
from diffunet.interop import pickles, unpickle

STATE = OrderedDict((f"module.layer{i}.weight", torch.randn(3, 4)) for i in range(3))
MEAN = OrderedDict((name, value + 1) for name, value in STATE.items())
OPTIMIZER = {"state": {i: {"step": 4, "exp_avg": torch.zeros(3, 4)} for i in range(3)}, "param_groups": [{"lr": 0.1}]}


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pt"


def refused(path: Path, data: bytes, error: type[Exception]) -> str:
    """Write the file and see it refused, quickly and in one line that names it; the message."""
    path.write_bytes(data)
    start = time.monotonic()
    with pytest.raises(error) as caught:
        pickles.states(path)
    assert time.monotonic() - start < 30
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Runs:
    """Unpickling this calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


def hostile(canary: Path) -> dict[str, bytes]:
    """Files that make `canary` when their pickle runs."""
    system = {"weight": torch.zeros(2), "x": Runs(os.system, f"touch {canary}")}
    source = {"x": Runs(exec, f"open({str(canary)!r}, 'w').close()")}
    start = [STATE, Runs(subprocess.Popen, ["touch", str(canary)])]
    return {
        "os.system in today's format": saved(system),
        "exec in the old format": saved(source, _use_new_zipfile_serialization=False),
        "a program in a bare pickle": pickle.dumps(start, protocol=4),
    }


@pytest.mark.parametrize("name", hostile(Path("x")))
def test_a_pickle_cannot_run_code(name: str, path: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    data = hostile(canary)[name]
    refused(path, data, UnsafeError)
    assert not canary.exists()
    load = {"weights_only": False} if name != "a program in a bare pickle" else None  # the payloads are alive
    opened = torch.load(io.BytesIO(data), **load) if load else pickle.loads(data)
    if not load:
        opened[1].wait()
    assert canary.exists()


def test_objects_are_refused_with_the_way_to_a_state_dict(path: Path) -> None:
    message = refused(path, saved({"ema": Runs(zipfile.ZipFile, "x")}), UnsafeError)
    assert "zipfile.ZipFile" in message
    assert "pickle.load(open('weights.pt', 'rb'))['ema']" in message
    assert "state_dict()" in message


def laughs() -> Any:
    """Lists of lists: 10^40 entries in a few hundred bytes."""
    inner: Any = [torch.zeros(1)]
    for _ in range(40):
        inner = [inner] * 10
    return inner


class Claims:
    """A tensor of 2^40 values, of which one is stored."""

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, (torch.zeros(1).storage(), 0, (2**20, 2**20), (0, 0), False, {})


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("name", ["expanded tensor", "declared storage", "many tables", "reused tensor"])
def test_a_bomb_does_not_go_off(name: str, path: Path) -> None:
    one = torch.zeros(1000)
    data = {
        "expanded tensor": lambda: saved({"weight": Claims()}),
        # the old format writes the number of values as text-like integers beside the name of the type
        "declared storage": lambda: saved({"w": one}, _use_new_zipfile_serialization=False).replace(
            b"M\xe8\x03", b"\x8a\x06" + (2**40).to_bytes(6, "little")
        ),
        "many tables": lambda: saved([[[i] for i in range(150)] for _ in range(150)]),
        "reused tensor": lambda: saved({str(i): one for i in range(100)}),
    }[name]()
    message = refused(path, data, UnsafeError)
    assert re.search(r"claim \d+ bytes|more memory|more than 20000", message)


def test_nested_lists_are_not_walked(path: Path) -> None:
    path.write_bytes(saved(laughs()))
    with pytest.raises(CheckpointError, match="holds no tensors"):
        pickles.choose(pickles.states(path), None, path)


def test_a_slow_pickle_is_stopped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of one hash make the reader's dict quadratic: minutes for a megabyte."""
    monkeypatch.setattr(pickles, "SECONDS", 3)
    parts = [b"\x80\x02}("]
    parts += [b"\x8a\x0b" + (i * (2**61 - 1)).to_bytes(11, "little", signed=True) + b"N" for i in range(1, 60_000)]
    slow = b"".join(parts) + b"u."
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file, zipfile.ZipFile(io.BytesIO(saved({"w": torch.zeros(2)}))) as good:
        for member in good.namelist():
            file.writestr(member, slow if member.endswith("data.pkl") else good.read(member))
    assert "takes more than 3 s" in refused(path, archive.getvalue(), UnsafeError)


def deflated(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return buffer.getvalue()


def script() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"archive/{name}", b"")
    return buffer.getvalue()


def test_archives_are_checked_before_any_pickle_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_answer", lambda *_: pytest.fail("the pickle was read"))
    good = saved({"weight": torch.zeros(10_000)})
    assert "compressed" in refused(path, deflated(good), UnsafeError)
    assert "tar format" in refused(path, tarred(), UnsafeError)
    assert "TorchScript" in refused(path, script(), UnsafeError)
    for length in (100, len(good) // 2, len(good) - 10):
        assert "damaged" in refused(path, good[:length], CheckpointError)
    with pytest.raises(CheckpointError, match="does not exist"):
        pickles.states(path.with_name("none.pt"))


def test_a_broken_pickle_is_damaged(path: Path) -> None:
    old = saved(dict(STATE), _use_new_zipfile_serialization=False)
    assert "damaged" in refused(path, old[: len(old) // 2], CheckpointError)


def test_the_reader_starts_no_program_and_writes_nowhere_else(tmp_path: Path) -> None:
    target, folder = str(tmp_path / "target"), str(Path(unpickle.__file__).parent)
    acts = ["os.system('true')", f"open({str(tmp_path / 'other')!r}, 'w')", "__import__('socket').socket()", "None"]
    code = (
        f"import os, sys; sys.path.insert(0, {folder!r}); import unpickle\n"
        f"for act in {acts!r}:\n"
        "    if os.fork() == 0:\n"
        f"        unpickle.limit({target!r}, 0, 2**30, 60)\n"
        f"        open({target!r}, 'w').close()\n"
        "        try: eval(act)\n"
        "        except BaseException: pass\n"
        "        os._exit(0)\n"
        "    print(os.waitstatus_to_exitcode(os.wait()[1]))"
    )
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["70", "70", "70", "0"]
    assert sorted(tmp_path.iterdir()) == [tmp_path / "target"]


def same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(got) == [name.removeprefix("module.") for name in wanted]
    assert all(torch.equal(a, b) for a, b in zip(got.values(), wanted.values(), strict=True))


def test_the_average_is_taken_unless_the_raw_weights_are_asked_for(path: Path) -> None:
    path.write_bytes(saved([STATE, OPTIMIZER, 7, 1000, MEAN], _use_new_zipfile_serialization=False))
    found = pickles.states(path)
    assert set(found) == {"0", "4"}
    same(pickles.choose(found, None, path)[1], MEAN)
    same(pickles.choose(found, "raw", path)[1], STATE)
    same(pickles.choose(found, "0", path)[1], STATE)
    with pytest.raises(ConfigError, match="no weights '5'; say which by --state: 0, 4"):
        pickles.choose(found, "5", path)


def test_averages_without_names_take_those_of_the_weights(path: Path) -> None:
    model = {"module.sigmas": torch.arange(7.0), **STATE}
    found = {"model": model, "ema/shadow_params": {str(i): value for i, value in enumerate(MEAN.values())}}
    name, state = pickles.choose(found, None, path)
    assert name == "ema/shadow_params"
    same(state, {"module.sigmas": model["module.sigmas"], **MEAN})
    found["ema/shadow_params"]["3"] = torch.zeros(9)
    with pytest.raises(CheckpointError, match="1 are left over"):
        pickles.choose(found, None, path)


def test_a_plain_state_dict_needs_no_choice_and_two_need_one(path: Path) -> None:
    same(pickles.choose({"": STATE}, None, path)[1], STATE)
    with pytest.raises(ConfigError, match="2 sets of weights; say which by --state: student, teacher"):
        pickles.choose({"student": STATE, "teacher": MEAN}, None, path)
    with pytest.raises(CheckpointError, match="holds no tensors"):
        pickles.choose({}, None, path)
    with pytest.raises(ConfigError, match="no weights 'ema'"):
        pickles.choose({"": STATE}, "ema", path)
