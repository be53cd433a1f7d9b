"""`diffunet convert SRC DST --to FORMAT`: weights between projects, and programs for those who have no diffunet."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffunet import config as configs
from diffunet.cli.options import AsJson, Debug, report
from diffunet.errors import ConfigError

if TYPE_CHECKING:
    from diffunet.interop.convert import Report

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}
SECTIONS = ("model", "process")


class To(StrEnum):
    """Names of the formats; a test holds them equal to the table's."""

    diffunet = "diffunet"
    diffusers = "diffusers"
    adm = "adm"
    ddpm = "ddpm"
    scoresde = "scoresde"
    edm = "edm"
    edm2 = "edm2"
    onnx = "onnx"
    pt2 = "pt2"


class Order(StrEnum):
    """How guided-diffusion's attention orders its rows."""

    legacy = "legacy"
    new = "new"


def convert(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="a folder, or a weights file", metavar="SRC")],
    target: Annotated[Path, typer.Argument(help="the file or folder to make", metavar="DST")],
    to: Annotated[To, typer.Option(help="what to make")],
    preset: Annotated[str | None, typer.Option(help="whose weights these are: adm-64, iddpm-cifar10, ...")] = None,
    heads: Annotated[int | None, typer.Option(help="heads of attention", min=1)] = None,
    head_channels: Annotated[int | None, typer.Option(help="channels of a head, in place of --heads", min=1)] = None,
    attention_order: Annotated[
        Order | None, typer.Option(help="rows of guided-diffusion's attention: new with --use_new_attention_order")
    ] = None,
    state: Annotated[
        str | None, typer.Option(help="which weights of a checkpoint: ema, raw or a name [default: ema if any]")
    ] = None,
    size: Annotated[int | None, typer.Option(help="side of the images, in pixels", min=1, max=65536)] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Convert a network's weights, and check that the result computes the same.

    SRC is a diffusers folder, a run or weights of diffunet, or the state dict of improved-diffusion, guided-diffusion,
    ermongroup/ddim, score_sde, EDM or EDM2 (.safetensors; .pt, .pth, .ckpt and .bin are read by a process of their own
    that runs no code). The network is found from names and shapes; what these do not show is asked for, and
    --model.KEY VALUE and --process.KEY VALUE overrule what was found.

    DST is weights of diffunet, a diffusers folder, a state dict by another project's names, or a program: ONNX (which
    needs pip install 'diffunet[export]') or torch.export, for any batch and every side that divides often enough.

    \b
    Examples:
      diffunet convert 64x64_diffusion.pt adm.safetensors --to diffunet --preset adm-64
      diffunet convert model.pt x.safetensors --to diffunet --heads 4 --attention-order legacy --process.schedule cosine
      diffunet convert runs/digits folder --to diffusers
      diffunet convert runs/digits digits.onnx --to onnx
      diffunet convert edm.pt adm.pt --to adm --attention-order new
    """
    from diffunet.interop.convert import convert as start
    from diffunet.interop.released import Told

    told = Told(
        heads=heads,
        head_channels=head_channels,
        attention_order=attention_order.value if attention_order else None,
        state=state,
        size=size,
        preset=preset,
        **sections(context.args),
    )
    done = start(source, target, to.value, told)
    report(as_table(done), as_text(done, to.value), as_json)


def sections(arguments: list[str]) -> dict[str, Any]:
    """The flags --model.KEY and --process.KEY as tables.

    Raises:
        ConfigError: another flag.
    """
    table = configs.parse_flags(arguments)
    for name in table:
        if name not in SECTIONS:
            raise ConfigError(f"--{name}.KEY: only --model.KEY and --process.KEY can be said here")
    return table


def as_table(done: Report) -> dict[str, Any]:
    """What was done, for programs."""
    return {
        "source": str(done.source),
        "read": done.read,
        "files": [str(path) for path in done.files],
        "model": done.config.model_dump(mode="json"),
        "process": dict(done.process),
        "assumed": dict(done.assumed),
        "difference": done.difference,
        "sizes": [list(sides) for sides in done.sizes],
        "supported": done.supported or None,
    }


def as_text(done: Report, to: str) -> str:
    """What was done, for people: of the network what is not a default."""
    from diffunet.interop.convert import flat

    usual = flat({"model": type(done.config)().model_dump(mode="json")})
    found = flat({"model": done.config.model_dump(mode="json"), "process": done.process})
    said = {key: value for key, value in found.items() if usual.get(key, ...) != value}
    lines = [f"read {done.source} as {done.read}", *(f"  {key} = {value}" for key, value in said.items())]
    if done.assumed:
        lines.append("not in the weights, taken as usual there; overrule with the flag of the same name:")
        lines += [f"  {key} = {value}" for key, value in done.assumed.items()]
    lines.append(f"wrote {to}: {', '.join(map(str, done.files[:4]))}{' ...' if len(done.files) > 4 else ''}")
    if done.supported:
        lines.append(f"runs on {done.supported}")
    sizes = " and ".join("x".join(map(str, sides)) for sides in done.sizes)
    lines.append(f"largest difference {done.difference:.1e} of the largest value, on random images of {sizes}")
    return "\n".join(lines)
