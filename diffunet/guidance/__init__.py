"""Guidance: a denoiser around a denoiser. Samplers never know.

Scale w is D_u + w (D_c - D_u), so w = 1 is the conditional model and w = 0 the unconditional one (the papers of
classifier-free and of compositional guidance, and azula, write 1 + w for our w). Kinds are combined by wrapping:
`Interval(Rescale(Autoguidance(ClassifierFree(den, 2.0), guide, 1.5), 0.7), 0.2, 0.8)`.
"""

from __future__ import annotations

from typing import Any

from diffunet.errors import ConfigError
from diffunet.guidance.base import Estimates, Guidance, Interval, Rescale, SigmaInterval
from diffunet.guidance.classes import ClassifierFree, Composition, classifier_free, composition
from diffunet.guidance.guides import Autoguidance, ClassifierGuidance
from diffunet.spec import guidance_config
from diffunet.table import Table

GUIDANCES: Table[Any] = Table("guidance", {"classifier_free": classifier_free, "composition": composition})
ALWAYS = (0.0, 1.0)


def build(den: Any, guidance: Any, interval: tuple[float, float] = ALWAYS) -> Any:
    """The denoiser that `guidance` makes of `den`.

    Args:
        den: a denoiser.
        guidance: None; the scale of classifier-free guidance; a dict or spec with `kind`; a Guidance, which has its own
            denoiser; or a callable den -> guided denoiser, such as `lambda den: Autoguidance(den, weak, 2.0)`.
        interval: (low, high); guidance acts for low < t <= high.

    Raises:
        ConfigError: unknown guidance or option, a denoiser without a null class, or an interval of nothing.
    """
    guided = _build(den, guidance)
    if tuple(interval) == ALWAYS:
        return guided
    if not isinstance(guided, Guidance):
        raise ConfigError(f"guidance_interval = {list(interval)} was given, but no guidance that could act in it")
    return Interval(guided, *interval)


def _build(den: Any, guidance: Any) -> Any:
    if guidance is None or isinstance(guidance, Guidance):
        return den if guidance is None else guidance
    if callable(guidance):
        return guidance(den)
    config = guidance_config(guidance)
    guided = GUIDANCES.build(config, den)
    if config.rescale > 0:
        guided = Rescale(guided, config.rescale)
    if config.sigmas is not None:
        guided = SigmaInterval(guided, *config.sigmas)
    return guided if config.interval == ALWAYS else Interval(guided, *config.interval)


__all__ = [
    "GUIDANCES",
    "Autoguidance",
    "ClassifierFree",
    "ClassifierGuidance",
    "Composition",
    "Estimates",
    "Guidance",
    "Interval",
    "Rescale",
    "SigmaInterval",
    "build",
]
