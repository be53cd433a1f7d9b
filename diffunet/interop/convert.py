"""Networks between projects: read, write, read again and compare; what does not compute the same is not left behind."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diffunet import config as configs
from diffunet import spec, weights
from diffunet.denoiser import Denoiser
from diffunet.errors import CheckpointError, ConfigError, NumericError
from diffunet.interop import diffusers, pickles, probe, torch_export
from diffunet.interop.essence import copied, essence, explained
from diffunet.interop.formats import FORMATS, REFUSED, STATES, Source, StateFormat, folder_runner, read_state
from diffunet.interop.released import Told
from diffunet.schedules import SCHEDULES
from diffunet.spec import ProcessConfig, UNetConfig
from diffunet.storage import fsync_dir, storage_error
from diffunet.zoo import preset

PROGRAMS = {".onnx": "an ONNX file", ".pt2": "a program of torch.export"}


@dataclass(frozen=True)
class Report:
    """What was done.

    Args:
        source, target: the paths.
        read: the format that was found, and which weights of the file were taken.
        files: what was written.
        config: of the network.
        assumed: keys that nobody said, with the project's usual value.
        process: schedule, prediction and clip, where they are known.
        difference: the largest, as a share of the largest value; over `sizes`.
        supported: the sizes that the result takes, where they are limited.
    """

    source: Path
    target: Path
    read: str
    files: tuple[Path, ...]
    config: Any
    assumed: Mapping[str, Any]
    process: Mapping[str, Any]
    difference: float
    sizes: tuple[tuple[int, ...], ...]
    supported: str


def convert(source: str | Path, target: str | Path, to: str, told: Told | None = None) -> Report:
    """Convert weights to another format, and see that they compute the same.

    Args:
        source: a diffusers folder, a run folder or weights of diffunet, or a state dict (.safetensors, or a pickle:
            .pt, .pth, .ckpt, .bin, which another process reads within limits).
        target: what to make; a file is replaced, a folder must be empty.
        to: a name in FORMATS.
        told: what the tensors do not show.

    Raises:
        ConfigError: something must be said, or the target cannot say the network; the message names it.
        CheckpointError: the source is missing, damaged, or of no known network.
        UnsafeError: the source is more than weights.
        NumericError: weights that are not finite, or a result that computes something else; nothing is left behind.
        StorageError: the disk is full or the folder cannot be written.
    """
    source, target, form = Path(source), Path(target), FORMATS[to]
    check_target(source, target, to)
    said = (told or Told()).with_preset()
    found, name, used = read(source, said)
    check_used(told or Told(), {*used, *form.uses})
    check_finite(found.network, source)
    with made_beside(target) as path:
        form.write(found, path, said)
        gap = probe.difference(found.runs, form.opens(path, found, said), found.network, found.schedule)
        if not gap <= probe.LIMIT:
            raise NumericError(
                f"{target} would differ from {source} by {gap:.1e} of the largest value (limit {probe.LIMIT:.0e}); "
                "it was not kept"
            )
    config: Any = found.network.config
    limited = torch_export.supported(config) if to in ("onnx", "pt2") else ""
    files = tuple(sorted(p for p in target.rglob("*") if p.is_file())) if target.is_dir() else (target,)
    process = {key: found.description().get(key) for key in ("schedule", "prediction", "clip") if found.denoiser}
    return Report(source, target, name, files, config, found.assumed, process, gap, probe.sizes(config), limited)


def check_target(source: Path, target: Path, to: str) -> None:
    """Refuse a name that the format cannot have, before anything is read."""
    form = FORMATS[to]
    if target.suffix not in (form.suffixes or ("",)):
        wanted = f"a file ending in {', '.join(form.suffixes)}" if form.suffixes else "a folder"
        raise ConfigError(f"{target}: {form.about} is {wanted}")
    if target.is_dir() and (form.suffixes or any(target.iterdir())):
        raise ConfigError(
            f"{target} is a folder that holds other things; name {'a file' if form.suffixes else 'a new one'}"
        )
    if target.is_file() and not form.suffixes:
        raise ConfigError(f"{target} is a file; {form.about} is a folder")
    if source.resolve() == target.resolve():
        raise ConfigError(f"{source} would be replaced by what is made of it; name another place")


def check_used(told: Told, used: set[str]) -> None:
    """Refuse words that neither side listens to."""
    spare = [name for name in told.given() if name not in used]
    if spare:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in spare)
        raise ConfigError(f"{flags}: nothing here needs it; leave it out")


def check_finite(network: nn.Module, source: Path) -> None:
    """Refuse weights that hold NaN or infinity."""
    bad = [name for name, value in network.state_dict().items() if not bool(value.isfinite().all())]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise NumericError(f"{source} holds values that are not finite: {', '.join(bad[:5])}{more}")


def read(path: Path, told: Told) -> tuple[Source, str, set[str]]:
    """What a source is, the name of its format, and which words were listened to.

    Raises:
        CheckpointError: there is nothing, or nothing known.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.suffix in PROGRAMS:
        raise ConfigError(f"{path} is {PROGRAMS[path.suffix]}, which cannot be converted back; convert its source")
    if path.is_dir() and not (path / "weights.safetensors").exists():
        den = sized(diffusers.load(path), told.size)
        return Source(den.network, den, folder_runner(path)), "diffusers", {"size"}
    if path.is_dir() or (path.suffix == ".safetensors" and "diffunet" in weights.read_tensors(path)[1]):
        return read_ours(path, told), "diffunet", {"size"}
    if path.suffix not in (".safetensors", *pickles.SUFFIXES):
        raise ConfigError(f"{path}: weights are .safetensors, {', '.join(pickles.SUFFIXES)}, or a folder")
    which, state = read_state(path, told.state)
    name = recognise(state, path)
    kind, read_words = STATES[name], {"state", "size", "model", "process", "preset"}
    with naming(path):
        found = from_state(kind, state, told)
    return found, f"{name}, weights '{which}'" if which else name, read_words | set(kind.reads)


def recognise(state: Mapping[str, Tensor], path: Path) -> str:
    """The format of a state dict, by its names.

    Raises:
        ConfigError: of a network that is known and has no counterpart.
        CheckpointError: of none that is known.
    """
    for name, kind in STATES.items():
        if kind.module.matches(state):
            return name
    for pattern, why in REFUSED.items():
        if any(re.search(pattern, name) for name in state):
            raise ConfigError(f"{path} looks like {why}")
    shown = ", ".join(name[:60] for name in list(state)[:3]).encode("unicode_escape").decode()
    raise CheckpointError(
        f"{path} holds the weights of no network that is known here ({shown}, ...); known are {', '.join(STATES)}"
    )


def read_ours(path: Path, told: Told) -> Source:
    """Weights of diffunet; of a segmentation run the network alone."""
    if weights.described(path)[0].get("task") == "segment":
        segmenter = weights.load_segmenter(path)
        unsaid, runs = f"{path} is a segmentation network, which has no process", probe.runner(segmenter.network)
        return Source(segmenter.network, None, runs, unsaid, said=weights.describe_segmenter(segmenter))
    den = sized(weights.load(path), told.size)
    return Source(den.network, den, probe.runner(den.network))


def sized(den: Denoiser, size: int | None) -> Denoiser:
    """With the side of its images, where the source does not say it."""
    if den.data is None and size:
        config: Any = den.network.config
        den.data = spec.DataInfo(shape=(config.in_channels, *(size,) * config.dims))
    return den


def from_state(kind: StateFormat, state: Mapping[str, Tensor], told: Told) -> Source:
    """The network of a state dict, with the process that the user or the project says."""
    network = kind.network(state, told)
    if told.preset:
        check_preset(network.config, told)
    assumed = flat(copied(network.config, (*getattr(kind.module, "ASSUMED", ()), "block.dropout")))
    assumed = {f"model.{key}": value for key, value in assumed.items() if key not in flat(told.model)}
    schedule = told.process.get("schedule", {})
    named = isinstance(schedule, str) or "kind" in schedule
    if kind.process is None and not named:
        unsaid = (
            "the weights do not show the noise that they were trained on: give --process.schedule linear or cosine "
            "(their --noise_schedule), with --process.schedule.T where it is not 1000 (--diffusion_steps); or --preset"
        )
        return Source(network, None, probe.runner(network), unsaid, assumed)
    if network.config.divide_by_time and not named:
        unsaid = (
            "no schedule here tells a network sigma itself, as this one was trained (VE SDE): only the network can be "
            f"converted, to a program or to the names of {kind.module.PROJECT}"
        )
        return Source(network, None, probe.runner(network), unsaid, assumed)
    usual = dict(kind.process or {})
    table = configs.merge(ProcessConfig().model_dump(mode="json"), configs.merge(usual, told.process))
    process = explained(ProcessConfig, table, "process")
    side = told.size or (kind.module.image_size(state) if hasattr(kind.module, "image_size") else None)
    den = Denoiser(network, SCHEDULES.build(process.schedule), process.prediction, process.clip).eval()
    assumed |= {f"process.{key}": value for key, value in flat(usual).items() if key.split(".")[0] not in told.process}
    return Source(network, sized(den, side), probe.runner(network), assumed=assumed)


def check_preset(config: UNetConfig, told: Told) -> None:
    """Refuse weights that are not those of the preset that was named."""
    ours, known = essence(config), essence(preset(told.preset or "", UNetConfig))
    free = {"time.scale", "num_classes", "vector_channels", *flat(told.model)}
    wrong = [
        f"{name} is {value}, not {known.get(name)}"
        for name, value in ours.items()
        if known.get(name) != value and name not in free and not name.startswith("class_embedding")
    ]
    if wrong:
        # widths first: the rest follows from them
        shown = sorted(wrong, key=lambda line: not line.startswith(("base", "channels", "blocks")))[:3]
        raise ConfigError(
            f"these are not the weights of preset '{told.preset}' ({len(wrong)} differences): {'; '.join(shown)}"
        )


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say of which file an error speaks."""
    try:
        yield
    except (CheckpointError, ConfigError) as error:
        raise type(error)(f"{path}: {error}") from None
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # names of a known project before shapes that no network has
        raise CheckpointError(f"{path}: the weights are malformed: {str(error).splitlines()[0][:200]}") from None


@contextmanager
def made_beside(target: Path) -> Iterator[Path]:
    """A place to make `target` in, which is moved there when all is well and disappears when not."""
    folder = target.parent / f".tmp-{target.name}-{os.getpid()}"
    path = folder / target.name
    try:
        folder.mkdir(parents=True)
        yield path
        for made in sorted(folder.iterdir(), key=lambda p: p == path):  # what stands beside the file goes first
            place = target.parent / made.name
            if place.is_dir():
                place.rmdir()
            os.replace(made, place)
        fsync_dir(target.parent)
    except OSError as error:
        raise storage_error(error, target, 0) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
