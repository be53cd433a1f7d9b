"""`diffunet evaluate RUN`: how good are the samples, and are they copies? Of a segmentation run, how good the masks?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffunet.cli.options import AsJson, Debug, report
from diffunet.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from diffunet.data import Images
    from diffunet.spec import RunConfig


def evaluate(
    run: Annotated[Path, typer.Argument(help="a run folder", metavar="RUN")],
    n: Annotated[int | None, typer.Option("--n", help="images on each side [default: all held-out]", min=2)] = None,
    extractor: Annotated[str | None, typer.Option(help="auto, classifier, random_conv or inception")] = None,
    seed: Annotated[int | None, typer.Option(help="first seed of the samples", min=0, max=2**40)] = None,
    sampler: Annotated[str | None, typer.Option(help="arc, ddim, ddpm, heun, ... or a diffusers class")] = None,
    option: Annotated[list[str] | None, typer.Option(help="a sampler's option: eta=0.5")] = None,
    steps: Annotated[int | None, typer.Option(help="sampler steps", min=1)] = None,
    guidance: Annotated[float | None, typer.Option(help="classifier-free guidance")] = None,
    bits_per_dim: Annotated[
        bool, typer.Option("--bits-per-dim", help="measure no samples, but the likelihood of held-out images")
    ] = False,
    times: Annotated[
        int | None, typer.Option(help="network calls an image for the bound [default: 100]", min=1, max=1_000_000)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="where the JSON goes [default: RUN/evaluation.json]")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure a run's averaged weights against images that it never saw, beside what real images would score.

    Frechet distance, KID, precision and recall on a named feature extractor, and the distance to the nearest training
    image. The floor is as many random training images in place of the samples.

    With --bits-per-dim: the likelihood of held-out images (128, or --n), by the variational bound of ancestral sampling
    and by the probability flow of the deterministic samplers, with what each tenth of time adds; in bits_per_dim.json.

    Of a segmentation run: Dice and IoU of each class and the pixel error on the held-out images, with standard errors.

    \b
    Examples:
      diffunet evaluate runs/digits
      diffunet evaluate runs/digits --n 500 --steps 20 --json
      diffunet evaluate runs/digits --bits-per-dim --n 64 --times 200
      diffunet evaluate runs/segment_isbi
    """
    from diffunet.training.runfolder import read_config

    config = read_config(run)
    flags = {
        "n": n,
        "extractor": extractor,
        "seed": seed,
        "sampler": sampler,
        "option": option,
        "steps": steps,
        "guidance": guidance,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    if times is not None and not bits_per_dim:
        raise ConfigError("--times is for --bits-per-dim; give both")
    if bits_per_dim and config.run.task == "diffusion":
        from diffunet.cli.bits import evaluate_bits

        evaluate_bits(run, config, given, times, out, as_json)
        _refresh(run, out)
        return
    if bits_per_dim:
        raise ConfigError(f"--bits-per-dim: for a diffusion run; {run} is a segmentation run, which has no likelihood")
    EVALUATIONS[config.run.task](run, config, given, out, as_json)
    _refresh(run, out)


def _refresh(run: Path, out: Path | None) -> None:
    """Put a new evaluation into the run's report, where it has one."""
    from diffunet.report import write

    if out is None and (run / "report.html").exists():
        write(run)


def _masks(run: Path, config: RunConfig, given: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Evaluate a segmentation run, which has no samplers and needs no options."""
    from diffunet.cli.segment import evaluate_masks

    if given:
        names = ", ".join(f"--{name}" for name in given)
        raise ConfigError(f"{names}: for samples; {run} is a segmentation run, whose masks need no such option")
    evaluate_masks(run, config, out, as_json)


def _samples(run: Path, config: RunConfig, given: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Evaluate a diffusion run."""
    from diffunet import data
    from diffunet.cli.runs import open_denoiser, random_label
    from diffunet.cli.sample import draw, sampler_of
    from diffunet.errors import DataError
    from diffunet.metrics import compare, image_count
    from diffunet.storage import write_file
    from diffunet.table import choose

    if "extractor" in given:
        choose("extractor", given["extractor"], ("auto", "classifier", "random_conv", "inception"))
    changes = {key: value for key, value in given.items() if key in ("n", "extractor", "seed")}
    wanted = config.evaluate.model_copy(update=changes)
    split = data.load(config.data)
    if split.held_out is None:
        raise DataError(f"{run} holds out no images (data.held_out = 0), so there is nothing to measure against")
    count = image_count(wanted, len(split.train), len(split.held_out))
    den = open_denoiser(run)
    seeds = list(range(wanted.seed, wanted.seed + count))
    defaults = config.sample
    chosen = sampler_of(given.get("sampler"), given.get("option"), defaults)
    taken, scale = given.get("steps", defaults.steps), given.get("guidance", defaults.guidance)
    images = draw(
        den,
        seeds,
        sampler=chosen,
        steps=taken,
        spacing=defaults.spacing,
        guidance=scale,
        batch_size=defaults.batch_size,
        labels=None if den.num_classes is None else [random_label(den, s) for s in seeds],
        watch=lambda progress: None,
    )
    words = ", ".join(f"{k} {v}" for k, v in chosen.model_dump().items() if k != "kind")
    named = f"{chosen.kind} ({words})" if words else chosen.kind
    described = f"{named}, {taken} steps, EMA weights, guidance {shown(scale)}, seeds from {seeds[0]}"
    train, held_out = stack(split.train), stack(split.held_out)
    evaluation = compare(
        images.cpu(), held_out, train, *labels_of(split.train, split.held_out), wanted, sampler=described
    )
    result = {"run": str(run), **evaluation.to_json()}
    write_file(out or run / "evaluation.json", (json.dumps(result, indent=2) + "\n").encode())
    report(result, evaluation.table(), as_json)


def shown(guidance: Any) -> str:
    """A guidance in a few words: a scale, or the options of a spec that are not its defaults."""
    if guidance is None or isinstance(guidance, float):
        return f"{guidance or 'none'}"
    return " ".join(f"{name} {value}" for name, value in guidance.model_dump(exclude_defaults=True).items())


def stack(images: Images) -> Tensor:
    """All images as one tensor (N, C, *S)."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([images[i] for i in range(len(images))]))


def labels_of(train: Images, held_out: Images) -> tuple[Any, Any]:
    """Labels of both parts, or None."""
    import torch

    return tuple(None if part.labels is None else torch.from_numpy(part.labels) for part in (train, held_out))  # type: ignore[return-value]


EVALUATIONS = {"diffusion": _samples, "segment": _masks}
