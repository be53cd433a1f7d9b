"""What the flags of guidance ask for: a spec, or autoguidance by other weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from diffunet.cli.averages import is_name, names
from diffunet.cli.options import parse_numbers
from diffunet.cli.runs import class_number, open_denoiser
from diffunet.denoiser import Denoiser
from diffunet.errors import CheckpointError, ConfigError
from diffunet.guidance import Autoguidance, Guidance, Interval, SigmaInterval
from diffunet.spec import SampleConfig, guidance_config


class Guided(NamedTuple):
    """The flags as they were given: a scale, two intervals, a rescaling, classes to show as well, classes to shun."""

    scale: float | None
    interval: str | None
    sigmas: str | None
    rescale: float | None
    also: list[str]
    never: list[str]


def guidance_of(den: Denoiser, defaults: SampleConfig, flags: Guided, guide: str | None, run: Path) -> Any:
    """The guidance that flags, and else the config, ask for; None for none.

    Args:
        den: what is guided.
        defaults: the config of its run.
        flags: those of guidance.
        guide: --guide: a weights file, a run folder, or the name of other weights of the same run.
        run: what `den` was opened from.

    Raises:
        ConfigError: flags without a scale, or that do not go together; classes or a guide that do not fit.
    """
    changes: dict[str, Any] = {}
    for name, text in (("interval", flags.interval), ("sigmas", flags.sigmas)):
        if text is not None:
            changes[name] = parse_numbers(text, f"--guidance-{name}", 2)
    if guide is not None:
        if flags.rescale is not None or flags.also or flags.never:
            raise ConfigError("--guide leads away from other weights: leave --guidance-rescale, --and and --not out")
        return _autoguided(den, run, guide, flags.scale, changes)
    changes |= {} if flags.rescale is None else {"rescale": flags.rescale}
    if flags.also or flags.never:
        return guidance_config(_composed(den, flags) | changes)
    if flags.scale is not None:
        return guidance_config({"kind": "classifier_free", "scale": flags.scale} | changes)
    if changes and defaults.guidance is None:
        raise ConfigError("give --guidance W too: there is no guidance that these flags could change")
    return None if defaults.guidance is None else guidance_config(defaults.guidance.model_dump() | changes)


def _composed(den: Denoiser, flags: Guided) -> dict[str, Any]:
    """Each image's own class and those of --and by the scale, those of --not by the scale the other way."""
    if flags.scale is None:
        raise ConfigError("--and and --not need --guidance W, their scale")
    w, others = flags.scale, [class_number(den, name) for name in (*flags.also, *flags.never)]
    scales = [w] * (1 + len(flags.also)) + [-w] * len(flags.never)
    return {"kind": "composition", "scales": scales, "classes": others}


def _autoguided(den: Denoiser, run: Path, guide: str, scale: float | None, changes: dict[str, Any]) -> Guidance:
    if scale is None:
        raise ConfigError("--guide needs --guidance W, its scale")
    guided: Guidance = Autoguidance(den, open_guide(run, guide), scale)
    if "sigmas" in changes:
        guided = SigmaInterval(guided, *changes["sigmas"])
    return Interval(guided, *changes["interval"]) if "interval" in changes else guided


def open_guide(run: Path, guide: str) -> Denoiser:
    """A weights file or run folder, or other weights of the run that is guided; a path that exists goes first.

    Raises:
        CheckpointError: no such file, or a damaged one.
        ConfigError: the run has no weights of that name.
    """
    if Path(guide).exists():
        return open_denoiser(Path(guide))
    if is_name(guide):
        return open_denoiser(run, guide)
    also = f"{run} itself has: {', '.join(names(run))}" if run.is_dir() else "name a run folder or a .safetensors file"
    raise CheckpointError(f"--guide {guide} does not exist; {also}")
