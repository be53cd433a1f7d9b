"""What a network is, apart from the words that say it: the configs of other projects' weights, and their comparison."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError, create_model

from diffunet import config as configs
from diffunet.errors import CheckpointError, ConfigError
from diffunet.spec import Spec, UNetConfig
from diffunet.spec.explain import explain

M = TypeVar("M", bound=Spec)


def changed(detected: Mapping[str, Any], changes: Mapping[str, Any]) -> UNetConfig:
    """The config that was detected, with what the user says laid over it.

    Raises:
        ConfigError: an unknown key, or values that contradict each other or the weights.
    """
    base = UNetConfig().model_dump(mode="json") | {name: plain(value) for name, value in detected.items()}
    table = configs.merge(base, {name: plain(value) for name, value in changes.items()})
    return explained(UNetConfig, table, "model")


def explained(kind: type[M], table: Mapping[str, Any], section: str) -> M:
    """A section of a run's config, whose mistakes are explained as there.

    Raises:
        ConfigError: an unknown key, or values that are wrong or contradict each other.
    """
    whole = {section: dict(table)}
    try:
        return getattr(create_model("Section", __base__=Spec, **{section: (kind, ...)}).model_validate(whole), section)  # type: ignore[call-overload]
    except ValidationError as error:
        raise ConfigError("; ".join(explain(error.errors(include_url=False), whole, set()))) from None


def plain(value: Any) -> Any:
    """A part's spec as the table that a config file would hold."""
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def wide(base: int, widths: Collection[int]) -> dict[str, Any]:
    """Base channels with multipliers, or with the width of each level where they are no multiples."""
    if all(width % base == 0 for width in widths):
        return {"base_channels": base, "channel_multipliers": tuple(width // base for width in widths)}
    return {"base_channels": base, "channels": tuple(widths)}


# what says how a network trains and starts, not what it computes, or is said otherwise below
UNSAID = {
    *("kind", "base_channels", "channel_multipliers", "channels", "stem_channels", "blocks_per_level"),
    *("attention", "attentions", "down", "downs", "up", "ups", "num_classes", "null_class", "checkpoint_levels"),
    *("block.dropout", "block.zero_init", "block.groups", "block.group_channels", "time.width"),
}


def essence(config: UNetConfig) -> dict[str, Any]:
    """What decides the function of a network, by dotted names, with equal ways to say it made the same."""
    flat: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json").items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    unsaid = UNSAID | ({"time.scale"} if config.time.kind == "fourier" else set())  # of frequencies that are drawn
    unsaid |= {name for name in flat if name.startswith("class_embedding.") and config.num_classes is None}
    restated = ("attention.", "down.", "up.")
    said = {name: value for name, value in flat.items() if name not in unsaid and not name.startswith(restated)}
    widths, levels = config.widths, range(len(config.widths))
    attended = sorted({*config.attention_levels, *([levels[-1]] if config.attention_in_mid else [])})
    joined = sorted({config.stem_width, *widths, *(a + b for a in widths for b in (config.stem_width, *widths))})
    kinds = [plain(config.attention_at(level)) | {"heads": None, "head_channels": None} for level in attended]
    counts = [getattr(config.attention_at(i), "count", lambda width: 0)(widths[i]) for i in attended]
    return said | {
        "attention_levels": sorted(set(config.attention_levels)),
        "attention_up": config.attention_up if config.attention_levels else "every",
        "base_channels": config.base_channels,
        "time.width": config.embed_channels,
        "stem_channels": config.stem_width,
        "channels": widths,
        "blocks_per_level": config.depths,
        "block.groups": {width: config.block.groups_of(width) for width in joined},
        "attention": kinds,
        "attention.heads": dict(zip(attended, counts, strict=True)),
        "down": [plain(config.down_at(i)) for i in levels[:-1]],
        "up": [plain(config.up_at(i)) for i in levels[:-1]],
        "num_classes": (config.num_classes or 0) + (config.null_class and config.class_embedding.kind == "table"),
    }


def copied(config: UNetConfig, keys: Collection[str]) -> dict[str, Any]:
    """Some dotted keys of a config, where it has them, as nested tables."""
    table: dict[str, Any] = {}
    for key in keys:
        value, words = plain(config), key.split(".")
        for word in words:
            value = value.get(word) if isinstance(value, dict) else None
        if value is not None:
            for word in reversed(words):
                value = {word: value}
            table = configs.merge(table, value)
    return table


def same_network(
    config: UNetConfig, detected: Callable[[], Mapping[str, Any]], project: str, hidden: Collection[str] = ()
) -> None:
    """Refuse a network that its weights under a project's names do not describe.

    Args:
        config: of the network.
        detected: what the weights, by the project's names, say of it.
        project: for messages.
        hidden: keys that the project has, but its weights do not show.

    Raises:
        ConfigError: the message names our options that the project has not.
    """
    try:
        back = essence(changed(detected(), copied(config, hidden)))
    except (CheckpointError, ConfigError) as error:
        raise ConfigError(f"{project} cannot say this network: {error}") from None
    lost = [f"{name} = {value}" for name, value in essence(config).items() if back.get(name) != value]
    if lost:
        raise ConfigError(f"{project} cannot say {', '.join(lost)}")
