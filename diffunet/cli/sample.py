"""`diffunet sample RUN|WEIGHTS`: images from noise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffunet.cli.options import AsJson, Debug, parse_seeds, report
from diffunet.errors import ConfigError
from diffunet.spec import SampleConfig

if TYPE_CHECKING:
    from diffunet.denoiser import Denoiser
    from diffunet.generation import Progress


Ema = Annotated[
    str, typer.Option(help="weights to use: ema, raw, 0.05, sigma_rel-0.070, 0.05@500; `diffunet ema RUN --list`")
]


def sample(
    run: Annotated[Path, typer.Argument(help="a run folder, or a weights file", metavar="RUN|WEIGHTS")],
    n: Annotated[int | None, typer.Option("--n", help="how many images [default: 64]", min=1, max=1_000_000)] = None,
    seeds: Annotated[str | None, typer.Option(help="seeds, one image each: 0-63, or 3,5,8-10")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="arc, ddim, ddpm, heun, ... or a diffusers class: UniPCMultistepScheduler")
    ] = None,
    option: Annotated[list[str] | None, typer.Option(help="a sampler's option: eta=0.5, variance=fixed_large")] = None,
    steps: Annotated[int | None, typer.Option(help="sampler steps", min=1, max=1_000_000)] = None,
    spacing: Annotated[str | None, typer.Option(help="leading, trailing, linspace, ...")] = None,
    class_label: Annotated[str | None, typer.Option("--class", help="class name or number")] = None,
    guidance: Annotated[float | None, typer.Option(help="classifier-free guidance; 1 is the conditional model")] = None,
    guidance_interval: Annotated[str | None, typer.Option(help="LOW,HIGH: guide for LOW < t <= HIGH only")] = None,
    guidance_sigmas: Annotated[str | None, typer.Option(help="LOW,HIGH: the same in sigma / alpha")] = None,
    guidance_rescale: Annotated[
        float | None, typer.Option(help="0 to 1: give guided images the contrast of the conditional ones", min=0, max=1)
    ] = None,
    guide: Annotated[
        str | None,
        typer.Option(
            help="weaker weights to lead away from, a file or run or by a name of --ema (early, 0.05@500); "
            "--guidance is the scale then"
        ),
    ] = None,
    also: Annotated[list[str] | None, typer.Option("--and", help="a class that the images show as well")] = None,
    never: Annotated[list[str] | None, typer.Option("--not", help="a class to lead away from")] = None,
    ema: Ema = "ema",
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="also write the denoising: a GIF and a strip")
    ] = False,
    batch_size: Annotated[int | None, typer.Option(help="images at once", min=1)] = None,
    out: Annotated[
        Path | None, typer.Option(help="grid.png, a folder, or x.npz [default: RUN/samples/seeds-A-B]")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Draw images. The same seed gives the same image, whatever the batch size or order.

    \b
    Examples:
      diffunet sample runs/digits
      diffunet sample runs/digits --seeds 0-15 --class 3 --guidance 2 --steps 20
      diffunet sample runs/digits --sampler UniPCMultistepScheduler --steps 10 --out ten-steps.png
      diffunet sample runs/digits --n 1000 --out digits.npz
      diffunet sample runs/digits --n 8 --trajectory --out frames/
      diffunet sample runs/digits --class 3 --guidance 4 --guidance-rescale 0.7 --guidance-interval 0.2,0.8
      diffunet sample runs/digits --class 3 --and 5 --not 8 --guidance 2
      diffunet sample runs/digits --ema 0.05 --guide early --guidance 1.5
      diffunet sample runs/digits --class 3 --sampler cfg++ --guidance 0.6
    """
    if n is not None and seeds is not None:
        raise ConfigError("give --n or --seeds, not both")
    chosen = parse_seeds(seeds) if seeds is not None else list(range(n or 64))
    from diffunet.cli.guidance import Guided, guidance_of
    from diffunet.cli.output import Output
    from diffunet.cli.runs import open_denoiser, sample_config

    den, defaults = open_denoiser(run, ema), sample_config(run)
    output = Output(out or run_samples(run, chosen), chosen, den, trajectory)
    labels = choose_labels(den, chosen, class_label)
    wanted = Guided(guidance, guidance_interval, guidance_sigmas, guidance_rescale, also or [], never or [])
    images = draw(
        den,
        chosen,
        sampler=sampler_of(sampler, option, defaults),
        steps=steps or defaults.steps,
        spacing=spacing or defaults.spacing,
        guidance=guidance_of(den, defaults, wanted, guide, run),
        batch_size=batch_size or defaults.batch_size,
        labels=labels,
        watch=output.watch,
    )
    written = output.write(images)
    text = "\n".join(f"wrote {path}" for path in written[:4])
    text += f"\nand {len(written) - 4} more files beside them" if len(written) > 4 else ""
    report({"files": [str(path) for path in written], "seeds": chosen, "labels": labels}, text, as_json)


def run_samples(run: Path, seeds: list[int]) -> Path:
    """Default place: beside the run's own previews, or beside a weights file."""
    folder = run / "samples" if run.is_dir() else run.parent / "samples"
    return folder / f"seeds-{seeds[0]}-{seeds[-1]}"


def sampler_of(name: str | None, options: list[str] | None, defaults: SampleConfig) -> Any:
    """The sampler that flags and config ask for.

    Raises:
        ConfigError: an option that is not NAME=VALUE, or that the sampler has not.
    """
    from diffunet import spec
    from diffunet.config import parse_value
    from diffunet.samplers import SAMPLERS
    from diffunet.table import choose

    if name is not None and name.endswith("Scheduler"):
        table: dict[str, Any] = {"kind": "diffusers", "scheduler": name}
    elif name is not None:
        table = {"kind": choose("sampler", name, SAMPLERS)}
    else:
        table = defaults.sampler.model_dump()
    for item in options or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--option '{item}' should be NAME=VALUE, for example eta=0.5")
        table[key] = parse_value(value)
    return spec.sampler_config(table)


def choose_labels(den: Denoiser, seeds: list[int], wanted: str | None) -> list[int] | None:
    """A label for each seed: the wanted class, or one drawn from (seed, training histogram).

    Raises:
        ConfigError: no such class, or a model without classes.
    """
    from diffunet.cli.runs import class_number, random_label

    if wanted is not None:
        return [class_number(den, wanted)] * len(seeds)
    if den.num_classes is None:
        return None
    return [random_label(den, seed) for seed in seeds]


def draw(
    den: Denoiser, seeds: list[int], *, batch_size: int, labels: list[int] | None, watch: Any, **options: Any
) -> Any:
    """Sample with a progress bar over all steps of all batches."""
    import sys

    from tqdm import tqdm

    from diffunet.generation import generate

    batches = -(-len(seeds) // batch_size)
    with tqdm(total=batches * options["steps"], unit="step", disable=not sys.stderr.isatty()) as bar:

        def on_step(progress: Progress) -> None:
            bar.total = batches * progress.steps
            bar.update()
            watch(progress)

        cond: dict[str, Any] = {} if labels is None else {"class_labels": labels}
        return generate(den, len(seeds), seed=seeds, batch_size=batch_size, on_step=on_step, **options, **cond)
