"""One self-describing safetensors file: the weights, and in its metadata all that is needed to use them.

The metadata holds one JSON object under the key `diffunet` (format and network; of a denoiser its schedule, prediction,
clip and data, of a segmenter its classes and tiles; and whatever the writer adds) and under `sha256` the digest of that
text and of every tensor, so that a flipped bit is seen. A file is read into memory and its header is checked before
anything is parsed; nothing here can run code.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from diffunet import nn as networks
from diffunet import spec
from diffunet.denoiser import Denoiser
from diffunet.errors import CheckpointError, ConfigError, UnsafeError
from diffunet.schedules import SCHEDULES
from diffunet.segmenter import Segmenter
from diffunet.storage import write_file

FORMAT = 1
MAX_HEADER = 16 * 2**20
MAX_TENSORS = 20_000
MAX_VALUES = 20 * MAX_TENSORS
_PICKLE_MAGIC = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
# what opens the weights of each task
USES = {"diffusion": "`diffunet sample`, or load()", "segment": "`diffunet segment`, or weights.load_segmenter()"}
Model = TypeVar("Model", Denoiser, Segmenter)
_PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}


def _shown(text: object) -> str:
    """What a file says, fit for a message: one short line without control characters."""
    return str(text)[:200].encode("unicode_escape").decode()


def digest(description: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the description and every tensor's name, type, shape and bytes."""
    total = hashlib.sha256(description.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are not repeated: readers disagree on which of two would count."""
    if len(table := dict(pairs)) != len(pairs):
        raise ValueError("repeated key")
    return table


def check_header(data: bytes, path: Path) -> dict[str, Any]:
    """Parse a safetensors header within limits.

    Raises:
        UnsafeError: the file is a pickle or archive, or its header is too large.
        CheckpointError: the file is too short, or its header is not JSON or repeats a key.
    """
    # a header within the limit leaves bytes 3 to 7 of its size zero, so that one of 640 bytes is no pickle
    pickled = data.startswith(_PICKLE_MAGIC) and data[3:8] != bytes(5)
    if pickled or path.suffix in _PICKLE_SUFFIXES:
        raise UnsafeError(
            f"{path} is a pickle or zip file, which can run code and is not loaded; weights are .safetensors"
        )
    if len(data) < 8:
        raise CheckpointError(f"{path} is damaged: {len(data)} bytes are too few; copy or make it again")
    (size,) = struct.unpack("<Q", data[:8])
    if size > MAX_HEADER:
        raise UnsafeError(f"{path} claims a header of {size} bytes (limit {MAX_HEADER}); it is not loaded")
    if len(data) < 8 + size:
        raise CheckpointError(f"{path} is damaged: it ends inside its header; copy or make it again")
    text = data[8 : 8 + size]
    if text.count(b",") > MAX_VALUES:  # counted before parsing, which would take seconds and gigabytes
        raise UnsafeError(f"{path} is refused: its header holds more than {MAX_VALUES} values")
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is damaged: its header is not JSON with unique keys") from None
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise UnsafeError(f"{path} is refused: its header is not a table of at most {MAX_TENSORS} tensors")
    return header


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, read into memory first (a file that shrinks cannot kill us).

    Raises:
        CheckpointError: missing, truncated or damaged.
        UnsafeError: a pickle, or a header beyond the limits.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    metadata = check_header(data, path).get("__metadata__", {})
    try:
        return safetensors.torch.load(data), metadata if isinstance(metadata, dict) else {}
    except Exception as error:  # safetensors' Rust errors share no base class
        raise CheckpointError(f"{path} is damaged: {_shown(error)}; copy or make it again") from None


def describe(den: Denoiser) -> dict[str, Any]:
    """What a file must say of a denoiser to rebuild it."""
    return {
        "format": FORMAT,
        "network": cast(Any, den.network).config.model_dump(mode="json"),
        "schedule": den.schedule.config.model_dump(mode="json"),
        "prediction": den.prediction,
        "clip": den.clip.model_dump(mode="json") if isinstance(den.clip, spec.DynamicClip) else den.clip,
        "data": den.data.model_dump(mode="json") if den.data else None,
    }


def describe_segmenter(segmenter: Segmenter) -> dict[str, Any]:
    """What a file must say of a segmenter to rebuild it."""
    return {
        "format": FORMAT,
        "task": "segment",
        "network": cast(Any, segmenter.network).config.model_dump(mode="json"),
        "segments": segmenter.info.model_dump(mode="json"),
    }


def _in_order(data: bytes) -> bytes:
    """The same file with a sorted header: safetensors shuffles its metadata; equal weights should be equal bytes."""
    (size,) = struct.unpack("<Q", data[:8])
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    sorted_header = header.encode().ljust(size)
    assert len(sorted_header) == size, "sorting keys keeps their length"
    return data[:8] + sorted_header + data[8 + size :]


def save(
    den: Denoiser | Segmenter, path: str | Path, tensors: Mapping[str, Tensor] | None = None, **extra: Any
) -> None:
    """Write a denoiser or a segmenter to one file, complete or not at all.

    Args:
        den: a Denoiser or Segmenter around a diffunet network.
        path: a name ending in .safetensors.
        tensors: the weights, where they are other ones than the network's own (an average of them).
        extra: JSON values that stand beside the description (for example step=1000).

    Raises:
        ConfigError: another suffix.
        StorageError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ConfigError(f"weights are written as .safetensors, not '{path.name}'")
    own = describe_segmenter(den) if isinstance(den, Segmenter) else describe(den)
    description = json.dumps(extra | own, sort_keys=True)
    values = {name: value.detach().cpu().contiguous() for name, value in (tensors or den.network.state_dict()).items()}
    metadata = {"diffunet": description, "sha256": digest(description, values)}
    write_file(path, _in_order(safetensors.torch.save(values, metadata)))


def load(path: str | Path, device: str | torch.device = "cpu") -> Denoiser:
    """Open weights, or the weights of a run folder, as a denoiser in eval mode.

    Raises:
        CheckpointError: missing, damaged, not written by diffunet, or a segmenter's.
        UnsafeError: a pickle or another unsafe file.
    """
    return _opened(path, "diffusion", build).to(device).eval()


def load_segmenter(path: str | Path, device: str | torch.device = "cpu") -> Segmenter:
    """Open weights, or the weights of a run folder, as a segmenter in eval mode.

    Raises:
        CheckpointError: missing, damaged, not written by diffunet, or a denoiser's.
        UnsafeError: a pickle or another unsafe file.
    """
    return _opened(path, "segment", build_segmenter).to(device).eval()


def described(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor], Path]:
    """What a weights file, or that of a run folder, says of itself, its tensors, and its path.

    Raises:
        CheckpointError: missing, damaged, or not written by diffunet.
        UnsafeError: a pickle or another unsafe file.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "weights.safetensors").exists():
            raise CheckpointError(f"{path} holds no weights.safetensors; train a run there or name a weights file")
        path = path / "weights.safetensors"
    tensors, metadata = read_tensors(path)
    text = metadata.get("diffunet")
    if text is None:
        raise CheckpointError(f"{path} was not written by diffunet; `diffunet convert` reads other weights")
    if metadata.get("sha256") != digest(text, tensors):
        raise CheckpointError(f"{path} is damaged: its content does not match its SHA-256; copy or make it again")
    with suppress(ValueError, RecursionError):
        if isinstance(description := json.loads(text), dict):
            return description, tensors, path
    raise CheckpointError(f"{path} is damaged: its description is not a JSON object")


def _opened(path: str | Path, task: str, make: Callable[[dict[str, Any], dict[str, Tensor], Path], Model]) -> Model:
    """The model in a file that must be of this task; a file that names none is of a denoiser."""
    description, tensors, path = described(path)
    found = description.get("task", "diffusion")
    if found != task:
        use = USES.get(str(found), "a newer diffunet")
        raise CheckpointError(f"{path} holds a model of task '{_shown(found)}', not '{task}'; use {use}")
    return make(description, tensors, path)


def _check_format(description: dict[str, Any], path: Path) -> None:
    if description.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {_shown(description.get('format'))}; this diffunet reads {FORMAT}")


def _cannot_build(error: Exception, path: Path) -> CheckpointError:
    return CheckpointError(f"{path} describes a network that we cannot build: {_shown(str(error).splitlines()[0])}")


def _empty_network(description: dict[str, Any]) -> nn.Module:
    config = TypeAdapter(spec.NetworkConfig).validate_python(description["network"])
    with torch.device("meta"):
        return networks.NETWORKS.build(config)


def build(description: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> Denoiser:
    """The denoiser that a description and its tensors make."""
    _check_format(description, path)
    try:
        schedule = spec.schedule_config(description["schedule"])
        data = spec.DataInfo(**description["data"]) if description["data"] else None
        clip = spec.clip_config(description["clip"])
        network = _empty_network(description)
        den = Denoiser(network, SCHEDULES.build(schedule), description["prediction"], clip, data)
    except (ValidationError, KeyError, TypeError, ConfigError) as error:
        raise _cannot_build(error, path) from None
    load_exactly(network, tensors, path)
    return den


def build_segmenter(description: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> Segmenter:
    """The segmenter that a description and its tensors make."""
    _check_format(description, path)
    try:
        info = spec.SegmentInfo(**description["segments"])
        network = _empty_network(description)
    except (ValidationError, KeyError, TypeError, ConfigError) as error:
        raise _cannot_build(error, path) from None
    load_exactly(network, tensors, path)
    return Segmenter(network, info)


def load_exactly(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Put tensors in a network whose names, shapes and kinds of number must be the same.

    Raises:
        CheckpointError: they differ; the message shows the first five differences.
    """
    check_fit(network, tensors, path)
    network.load_state_dict(tensors, assign=any(v.is_meta for v in network.state_dict().values()))


def check_fit(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Hold tensors against the state of a network.

    Raises:
        CheckpointError: names, shapes or kinds of number differ; the message shows the first five differences.
    """
    wanted = network.state_dict()
    wrong = [f"{n}: missing" for n in wanted if n not in tensors]
    wrong += [f"{_shown(n)}: not in this network" for n in tensors if n not in wanted]
    wrong += [
        f"{n}: {tuple(tensors[n].shape)} where {tuple(v.shape)} is expected"
        for n, v in wanted.items()
        if n in tensors and tensors[n].shape != v.shape
    ]
    wrong += [
        f"{n}: {tensors[n].dtype} where {v.dtype} is expected"
        for n, v in wanted.items()
        if n in tensors and tensors[n].is_floating_point() != v.is_floating_point()
    ]
    if wrong:
        shown = "; ".join(wrong[:5])
        raise CheckpointError(f"{path} does not fit the network ({len(wrong)} differences): {shown}; use its config")
