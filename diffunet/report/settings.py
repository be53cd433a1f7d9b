"""A config as dotted keys, and which of them are not the defaults. Works for configs of other versions too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffunet.spec import ClassicUNetConfig, RunConfig, UNetConfig

DEPTH = 12


def flat(value: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """Dotted key -> value of nested objects."""
    found: dict[str, Any] = {}
    for key, inner in value.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(inner, Mapping) and inner and depth < DEPTH:
            found |= flat(inner, name, depth + 1)
        else:
            found[name] = inner
    return found


def _defaults(kind: Any) -> dict[str, Any]:
    """All defaults; the model's are those of its kind."""
    defaults = {name: field.default.model_dump(mode="json") for name, field in RunConfig.model_fields.items()}
    models: dict[str, dict[str, Any]] = {
        config.kind: config.model_dump(mode="json") for config in (UNetConfig(), ClassicUNetConfig())
    }
    return defaults | {"model": models.get(str(kind), defaults["model"])}


def changed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a resolved config whose values are not the defaults, with the values."""
    model = config.get("model")
    defaults = flat(_defaults(model.get("kind") if isinstance(model, dict) else None))
    missing = object()
    return {key: value for key, value in flat(config).items() if defaults.get(key, missing) != value}
