"""`diffunet inspect PRESET|CONFIG|RUN`: what a network costs, sees and needs, before it is trained or after."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffunet import config as configs
from diffunet.cli.options import AsJson, Debug, report
from diffunet.errors import CheckpointError, ConfigError
from diffunet.spec import NetworkConfig
from diffunet.table import choose
from diffunet.zoo import PRESETS

if TYPE_CHECKING:
    from diffunet.analysis.probes import Probe
    from diffunet.analysis.report import Section

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}
SIDE = 32
VALID_SIDE = 572  # the paper's, for networks that lose their border


@dataclass(frozen=True)
class Found:
    """A network that was asked for: its name, config and, where it has been trained, its weights."""

    name: str
    config: NetworkConfig
    weights: Path | None = None
    sides: tuple[int, ...] | None = None


def inspect(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(help="a preset, a config .toml, a run folder or a weights file", metavar="PRESET|CONFIG|RUN"),
    ],
    size: Annotated[str | None, typer.Option(help="side of the images, or HxW [default: the data's, or 32]")] = None,
    batch_size: Annotated[int, typer.Option(help="images at once", min=1, max=2**20)] = 1,
    receptive_field: Annotated[
        bool, typer.Option("--receptive-field", help="also measure the effective receptive field")
    ] = False,
    aliasing: Annotated[bool, typer.Option("--aliasing", help="also measure what a shift changes")] = False,
    gradients: Annotated[bool, typer.Option("--gradients", help="also measure where gradients go")] = False,
    alternatives: Annotated[
        bool, typer.Option("--alternatives", help="also compare networks without down and up operators")
    ] = False,
    time: Annotated[bool, typer.Option("--time", help="with --alternatives: seconds of a forward pass too")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="also train and infer, to measure the memory")] = False,
    seeds: Annotated[int, typer.Option(help="random inputs of --receptive-field", min=1, max=1000)] = 4,
    out: Annotated[Path | None, typer.Option(help="folder for diagram.svg, diagram.png, receptive_field.png")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Count and measure a network: parameters, multiplications and memory of every part, and what it can see.

    Counting allocates nothing, so that the largest preset takes seconds. Every key of the model is also a flag:
    --model.base_channels 64 --model.attention_levels 1,2.

    \b
    Examples:
      diffunet inspect ddpm-cifar10
      diffunet inspect unet-2015 --size 572 --out pictures
      diffunet inspect configs/digits.toml --batch-size 64 --measure
      diffunet inspect runs/digits --receptive-field --aliasing --gradients
      diffunet inspect small --model.skip bottleneck --alternatives --time --json
    """
    found = locate(target, context.args)
    sides = sides_of(size, found)
    from diffunet.analysis.findings import ALWAYS, ON_REQUEST
    from diffunet.analysis.report import Subject, summary_of

    wanted = {
        "effective_receptive_field": receptive_field or out is not None,
        "alternatives": alternatives or time,
        "aliasing": aliasing,
        "gradients": gradients,
        "measured_memory": measure,
    }
    subject = Subject(found.name, probe_of(found, sides), batch_size, seeds, time)
    try:
        summary = summary_of(subject)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{found.name} cannot take images of {'x'.join(map(str, sides))}: {error}") from None
    makers = ALWAYS | {name: make for name, make in ON_REQUEST.items() if wanted[name]}
    sections = {name: make(subject, summary) for name, make in makers.items()}
    written = write_pictures(sections, out) if out else []
    text = "\n\n".join(section.text for section in sections.values())
    text += "".join(f"\nwrote {path}" for path in written)
    values = {name: section.values for name, section in sections.items()}
    report({"name": found.name, **values, "files": [str(path) for path in written]}, text, as_json)


def locate(target: str, flags: list[str]) -> Found:
    """The network that a preset name, config, run folder or weights file means, with its keys changed by flags.

    Raises:
        ConfigError: no such thing, a flag of another section, or a contradiction.
        CheckpointError: a run or weights file that is damaged.
    """
    changes = configs.parse_flags(flags)
    if foreign := [name for name in changes if name != "model"]:
        raise ConfigError(f"--{foreign[0]}...: only keys of the model change what is inspected: --model.KEY VALUE")
    path = Path(target)
    if target not in PRESETS and not path.exists():
        if "/" in target or path.suffix:
            raise ConfigError(f"{target} does not exist; name a preset, a config .toml, a run folder or a weights file")
        choose("preset", target, PRESETS)
    table, weights, sides = ({"preset": target}, None, None) if target in PRESETS else read(path)
    change = changes.get("model", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{target}: model should be a table of keys, not {type(table).__name__}")
    config = configs.resolve_model(configs.merge(table, change), path.name)
    # a changed network no longer fits its trained weights
    return Found(path.name, config, None if change else weights, sides)


def read(path: Path) -> tuple[Any, Path | None, tuple[int, ...] | None]:
    """The model's table in a config, run or weights file, its weights, and the sides of its data if said."""
    trained = path / "weights.safetensors" if path.is_dir() else path
    if trained.suffix == ".safetensors" and trained.exists():
        from diffunet import weights

        description, _, _ = weights.described(trained)
        return description.get("network"), trained, numbers(within(description, "data", "shape"))[1:] or None
    if path.is_dir() and not (path / "config.json").exists():
        raise CheckpointError(f"{path} is not a run folder: it holds no config.json; name one, such as runs/digits")
    table = configs.read(path / "config.json" if path.is_dir() else path)
    return table.get("model", {}), None, numbers(within(table, "data", "size")) or None


def within(table: dict[str, Any], section: str, key: str) -> Any:
    """What a table holds at section.key, or None."""
    inner = table.get(section)
    return inner.get(key) if isinstance(inner, dict) else None


def numbers(value: Any) -> tuple[int, ...]:
    """A number or a list of numbers as a tuple; nothing where it is neither."""
    items = value if isinstance(value, list) else [value]
    return tuple(items) if all(type(item) is int for item in items) else ()


def sides_of(size: str | None, found: Found) -> tuple[int, ...]:
    """The sides of --size, or those of the data, or 32 (572 where convolutions are valid), for each dimension.

    Raises:
        ConfigError: not a side, or as many as the network has dimensions.
    """
    dims = found.config.dims
    if size is None:
        valid = found.config.padding == "valid"
        sides = found.sides or (VALID_SIDE if valid else SIDE,)
    elif re.fullmatch(r"[0-9]{1,5}(x[0-9]{1,5})*", size):
        sides = tuple(map(int, size.split("x")))
    else:
        raise ConfigError(f"--size {size}: should be a side or HxW, for example 32 or 48x64")
    sides = sides * dims if len(sides) == 1 else sides
    if len(sides) != dims or min(sides) < 1:
        raise ConfigError(f"--size {'x'.join(map(str, sides))}: should be {dims} sides of at least 1, or one for all")
    return sides


def probe_of(found: Found, sides: tuple[int, ...]) -> Probe:
    """The network to be tried out; a trained one with its weights, and told the time in the middle of its process."""
    from diffunet.analysis.probes import Probe

    if found.weights is None:
        return Probe(found.config, sides)
    import torch

    from diffunet import weights

    description, tensors, path = weights.described(found.weights)
    if description.get("task") == "segment":
        return Probe(found.config, sides, weights.build_segmenter(description, tensors, path).network)
    den = weights.build(description, tensors, path)
    return Probe(found.config, sides, den.network, float(den.schedule.network_time(torch.tensor(0.5))))


def write_pictures(sections: dict[str, Section], folder: Path) -> list[Path]:
    """Draw all the pictures of the sections."""
    from diffunet.analysis.figures import write_figure

    pictures = {name: draw for section in sections.values() for name, draw in section.pictures.items()}
    return [write_figure(draw(), folder / name) for name, draw in pictures.items()]
