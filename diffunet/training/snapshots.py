"""Averages that a run stored (RUN/ema/step-00000500-0.050.safetensors), and averages of any length made of them.

A reconstruction reads one tensor at a time of all the snapshots, so that memory holds little more than one network
however many there are; sums are in float64.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from diffunet import weights
from diffunet.denoiser import Denoiser
from diffunet.errors import CheckpointError, ConfigError
from diffunet.segmenter import Segmenter
from diffunet.training.posthoc import Profile, gamma_of, lack
from diffunet.training.posthoc import weights as coefficients

NAME = re.compile(r"step-(\d{8})-(0\.\d{3})\.safetensors")
FOLDER = "ema"


class Snapshot(Mapping[str, Tensor]):
    """A stored average: what it says of itself, and its tensors, each read when it is asked for.

    Args:
        path: a file that the trainer wrote.

    Attributes:
        description: what the file says (network, schedule, ... and step, updates, sigma_rel).
        profile: its place among the power-function averages, counted in updates of the weights.

    Raises:
        CheckpointError: missing, damaged, or not a stored average.
        UnsafeError: a pickle, or a header beyond the limits.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._verified = path, False
        try:
            with open(path, "rb") as file:
                head = file.read(8)
                head += file.read(min(int.from_bytes(head, "little"), weights.MAX_HEADER))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
        header = weights.check_header(head, path)
        metadata = header.pop("__metadata__", None)
        self._begin, self._places = len(head), header
        try:
            self._sha256, self._text = str(metadata["sha256"]), str(metadata["diffunet"])
            self.description: dict[str, Any] = dict(json.loads(self._text))
            self.step, self.sigma_rel = int(self.description["step"]), float(self.description["sigma_rel"])
            self.profile = Profile(float(self.description["updates"]), gamma_of(self.sigma_rel))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise CheckpointError(
                f"{path} is no average that a run stored: it does not say its step, updates and sigma_rel"
            ) from None

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        try:
            begin, end = place["data_offsets"]
            with open(self.path, "rb") as file:
                file.seek(self._begin + begin)
                data = file.read(min(end - begin, self.path.stat().st_size))
            # a file of this one tensor: the library knows what its bytes mean
            alone = json.dumps({"x": place | {"data_offsets": [0, len(data)]}}).encode()
            return safetensors.torch.load(len(alone).to_bytes(8, "little") + alone + data)["x"]
        except Exception as error:  # safetensors' Rust errors share no base class
            raise CheckpointError(f"{self.path} is damaged: {name[:200]!a} cannot be read ({error})") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return {name: tuple(place["shape"]) for name, place in self._places.items()}

    def verify(self) -> None:
        """Read all of it, once in the life of this object.

        Raises:
            CheckpointError: its content does not match its SHA-256.
        """
        if not self._verified and weights.digest(self._text, self) != self._sha256:
            raise CheckpointError(
                f"{self.path} is damaged: its content does not match its SHA-256; put a copy back, or move it away to "
                "do without it"
            )
        self._verified = True


class Listed(NamedTuple):
    """A snapshot by its name alone; the length has three decimals there."""

    step: int
    length: str
    path: Path


def listed(run: Path) -> list[Listed]:
    """The snapshots of a run, in order of their steps and then lengths; none where it stored none."""
    folder = run / FOLDER
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [Listed(int(m[1]), m[2], path) for path in paths if (m := NAME.fullmatch(path.name))]


def stored(run: Path, at_step: int | None = None) -> list[Snapshot]:
    """The snapshots that an average at a step may be made of: those up to it, which must be one of their steps.

    Raises:
        ConfigError: there are none, or none of that step.
        CheckpointError: one is damaged.
    """
    found = listed(run)
    if not found:
        raise ConfigError(
            f"{run} holds no snapshots of averages; train with ema.sigma_rel = [0.05, 0.1] and ema.snapshot_every, for "
            "example a fiftieth of train.steps"
        )
    steps = sorted({one.step for one in found})
    last = steps[-1] if at_step is None else at_step
    if last not in steps:
        near = min(steps, key=lambda step: abs(step - last))
        raise ConfigError(
            f"no snapshot of step {last} in {run / FOLDER}; the nearest of {len(steps)} is that of step {near}"
        )
    return [Snapshot(one.path) for one in found if one.step <= last]


class Reconstruction(NamedTuple):
    """How an average is to be made: of which snapshots, by which weights, and what its profile will lack.

    error is ||p - sum x_i p_i|| / ||p|| of the profiles, 0 where the length was stored; spread is sum |x_i|, by which
    the rounding of the stored numbers grows.
    """

    sigma_rel: float
    snapshots: Sequence[Snapshot]
    weights: list[float]
    error: float

    @property
    def newest(self) -> Snapshot:
        """The one that buffers come from."""
        return max(self.snapshots, key=lambda one: one.step)

    @property
    def spread(self) -> float:
        """sum |x_i|."""
        return sum(map(abs, self.weights))


def plan(snapshots: Sequence[Snapshot], sigma_rel: float) -> Reconstruction:
    """The sum of snapshots nearest to the average of this length at the last of their steps.

    Raises:
        ConfigError: a length outside (0, 0.2886).
    """
    profiles = [one.profile for one in snapshots]
    wanted = Profile(max(one.step for one in profiles), gamma_of(sigma_rel))
    x = coefficients(profiles, wanted)
    return Reconstruction(sigma_rel, snapshots, x, lack(profiles, x, wanted))


@torch.no_grad()
def reconstruct(recipe: Reconstruction) -> Denoiser | Segmenter:
    """The model whose parameters are the planned sum; its buffers are the newest snapshot's.

    Every snapshot is verified before its numbers count, also those of small weight.

    Raises:
        CheckpointError: a snapshot is damaged, or of another network than the newest.
    """
    newest = recipe.newest
    model = OPEN[str(newest.description.get("task", "diffusion"))](newest.path)
    network: nn.Module = model.network
    for one in recipe.snapshots:
        one.verify()
        if one.shapes != newest.shapes:
            raise CheckpointError(f"{one.path} is of another network than {newest.path}; move it away")
    for name, parameter in network.named_parameters():
        total = torch.zeros(parameter.shape, dtype=torch.float64)
        for x, one in zip(recipe.weights, recipe.snapshots, strict=True):
            total.add_(one[name].double(), alpha=x)
        parameter.copy_(total)
    return model


OPEN: dict[str, Callable[[Path], Denoiser | Segmenter]] = {
    "diffusion": weights.load,
    "segment": weights.load_segmenter,
}
