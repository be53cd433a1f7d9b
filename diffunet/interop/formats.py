"""What `convert` reads and writes: one literal table of formats, each with how it is written and how it runs again."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from diffunet import compat, weights
from diffunet.denoiser import Denoiser
from diffunet.errors import ConfigError
from diffunet.interop import adm, ddpm, diffusers, edm, edm2, onnx, pickles, probe, scoresde, torch_export
from diffunet.interop.released import Told
from diffunet.nn import UNet
from diffunet.storage import write_file
from diffunet.table import Table

STATE_SUFFIXES = (".safetensors", *pickles.SUFFIXES[:3])


@dataclass(frozen=True)
class Source:
    """What was read.

    Args:
        network: in eval mode.
        denoiser: the network with its process, or None where nobody said the process.
        unsaid: in that case, how to say it.
        runs: the source as its own project runs it, for comparison.
        assumed: keys that the tensors do not show and the user did not say, with the project's usual value.
        said: what a source without a denoiser says of itself.
    """

    network: nn.Module
    denoiser: Denoiser | None
    runs: probe.Runner
    unsaid: str = ""
    assumed: Mapping[str, Any] = field(default_factory=dict)
    said: Mapping[str, Any] = field(default_factory=dict)

    def whole(self) -> Denoiser:
        """The denoiser.

        Raises:
            ConfigError: the process is not known.
        """
        if self.denoiser is None:
            raise ConfigError(self.unsaid)
        return self.denoiser

    @property
    def schedule(self) -> Any:
        """The schedule, where one is known."""
        return self.denoiser.schedule if self.denoiser else None

    def description(self) -> dict[str, Any]:
        """What a program's file says of itself."""
        config: Any = self.network.config
        own = {"network": config.model_dump(mode="json"), **self.said}
        return weights.describe(self.denoiser) if self.denoiser else own


@dataclass(frozen=True)
class Format:
    """Something to convert to.

    Args:
        about: what it is, for --help and messages.
        suffixes: that its files have; none for a folder.
        write: makes the file or folder.
        opens: runs what was written, the way its project does.
        uses: what else the user may say for it.
    """

    about: str
    suffixes: tuple[str, ...]
    write: Callable[[Source, Path, Told], None]
    opens: Callable[[Path, Source, Told], probe.Runner]
    uses: tuple[str, ...] = ()


@dataclass(frozen=True)
class StateFormat:
    """A project's state dict.

    Args:
        module: matches, from_state and to_state.
        reads, writes: what from_state and to_state must be told beside the tensors.
        process: how its networks are usually trained; None where that differs from file to file.
    """

    module: ModuleType
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    process: Mapping[str, Any] | None = None

    def network(self, state: Mapping[str, Tensor], told: Told) -> Any:
        """The network of a state dict."""
        said = {name: getattr(told, name) for name in self.reads if getattr(told, name) is not None}
        return self.module.from_state(state, **said, **told.model)

    def write(self, source: Source, path: Path, told: Told) -> None:
        """Write the state dict, as safetensors or by torch.save."""
        if not isinstance(source.network, UNet):
            raise ConfigError(f"{self.module.PROJECT} has U-Nets of diffusion only")
        data = source.denoiser.data if source.denoiser else None
        said = {name: getattr(told, name) for name in self.writes}
        if "size" in said and said["size"] is None and data:
            said["size"] = data.shape[-1]
        for name, value in said.items():
            if value is None:
                raise ConfigError(f"{self.module.PROJECT}'s names need --{name.replace('_', '-')}")
        state = self.module.to_state(source.network, **said)
        buffer = io.BytesIO()
        if path.suffix == ".safetensors":
            buffer.write(safetensors.torch.save(state, {"format": "pt"}))
        else:
            torch.save(state, buffer)
        write_file(path, buffer.getvalue())

    def opens(self, path: Path, source: Source, told: Told) -> probe.Runner:
        """The network of what was written; `to_state` has seen to it that the tensors describe it."""
        config: Any = source.network.config
        said = {name: getattr(told, name) for name in self.writes if name in self.reads}
        said |= {"heads": 1} if "heads" in self.reads else {}  # the config says them
        tensors = read_state(path, None)[1]
        return probe.runner(self.module.from_state(tensors, **said, **config.model_dump(mode="json")))


def read_state(path: Path, which: str | None) -> tuple[str, dict[str, Tensor]]:
    """A state dict from safetensors, or from a pickle in another process, and which of the file's it is."""
    if path.suffix in pickles.SUFFIXES:
        return pickles.choose(pickles.states(path), which, path)
    if which is not None:
        raise ConfigError(f"--state {which}: {path} holds one set of weights")
    return "", pickles.without_prefix(weights.read_tensors(path)[0])


def write_ours(source: Source, path: Path, told: Told) -> None:
    """Weights of diffunet."""
    weights.save(source.whole(), path)


def open_ours(path: Path, source: Source, told: Told) -> probe.Runner:
    """The network in weights of diffunet."""
    return probe.runner(weights.load(path).network)


def write_folder(source: Source, path: Path, told: Told) -> None:
    """A pipeline folder of diffusers."""
    diffusers.export(source.whole(), path)


def open_folder(path: Path, source: Source, told: Told) -> probe.Runner:
    """diffusers' own network, as its own pipeline opens it."""
    library = compat.diffusers()
    library.utils.logging.disable_progress_bar()
    try:
        return unet2d(library.DDPMPipeline.from_pretrained(path, local_files_only=True).unet)
    finally:
        library.utils.logging.enable_progress_bar()


def unet2d(model: Any) -> probe.Runner:
    """What a UNet2DModel of diffusers computes."""
    model.float().eval()
    return lambda given: model(given["x"], given["t"], given.get("class_labels")).sample


def folder_runner(path: Path) -> probe.Runner:
    """diffusers' own network of a folder that is read."""
    inner = path / "unet" if (path / "model_index.json").exists() else path
    return unet2d(compat.diffusers().UNet2DModel.from_pretrained(inner, local_files_only=True))


def program(module: ModuleType, about: str, suffix: str) -> Format:
    """A program of the network, for those who have no diffunet."""
    return Format(
        about,
        (suffix,),
        lambda source, path, told: module.write(source.network, path, source.description(), source.schedule),
        lambda path, source, told: module.open_runner(path),
    )


def state(kind: StateFormat) -> Format:
    """A state dict by a project's names."""
    return Format(f"{kind.module.PROJECT}'s names", STATE_SUFFIXES, kind.write, kind.opens, kind.writes)


EDM_PROCESS = {"schedule": {"kind": "karras"}, "prediction": "edm", "clip": False}
STATES: Table[StateFormat] = Table(
    "state dict",
    {
        "adm": StateFormat(adm, ("heads", "head_channels", "attention_order"), ("attention_order",)),
        "ddpm": StateFormat(ddpm, process={}),
        "scoresde": StateFormat(scoresde, process={}),
        "edm": StateFormat(edm, writes=("size",), process=EDM_PROCESS),
        "edm2": StateFormat(edm2, writes=("size",), process=EDM_PROCESS),
    },
)
FORMATS: Table[Format] = Table(
    "format",
    {
        "diffunet": Format("weights of diffunet", (".safetensors",), write_ours, open_ours),
        "diffusers": Format("a pipeline folder of diffusers", (), write_folder, open_folder),
        **{name: state(kind) for name, kind in STATES.items()},
        "onnx": program(onnx, "an ONNX file", ".onnx"),
        "pt2": program(torch_export, "a program of torch.export", ".pt2"),
    },
)
# names that only a network of this kind has -> why it cannot become one of ours
REFUSED = {
    r"^(inner_model\.|model\.)*u_net\.d_blocks\.": (
        "k-diffusion's image_v1: its GELU, its norms without weights that the time scales (AdaGN), and its one skip a "
        "level have no counterpart here"
    ),
    r"^(.*\.)?(downs|ups)\.\d+\.\d+\.(block1|fn)\.": (
        "denoising-diffusion-pytorch's Unet: its weight-standardised convolutions and its memory tokens of attention "
        "have no counterpart here"
    ),
    r"^(.*\.)?(double_)?blocks\.\d+\.(attn|adaLN_modulation|self_attn)\.": (
        "a transformer (DiT and its kin), not a U-Net"
    ),
    r"^(.*\.)?down_blocks\.\d+\..*\.attn2\.": "diffusers' UNet2DConditionModel, which looks at text",
    r"^(.*\.)?(down|up)_blocks\.\d+\.resnets\.": (
        "a bare state dict of diffusers; convert its folder, which holds config.json too"
    ),
}
