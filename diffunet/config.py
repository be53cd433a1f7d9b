"""From a TOML file and flags to one resolved config: all errors at once, each with its key and the nearest name.

Without torch, so that a mistake is answered at once.
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from diffunet.errors import CheckpointError, ConfigError
from diffunet.spec import ClassicUNetConfig, NetworkConfig, RunConfig, Spec, UNetConfig
from diffunet.spec.explain import explain, keys, without
from diffunet.table import choose
from diffunet.zoo import PRESETS, preset

MAX_BYTES = 2**20
S = TypeVar("S", bound=Spec)
DEEPEST = 8  # dots in a flag
# What may change when a run goes on; all else would make another run of it.
RESUMABLE = frozenset(
    {
        "train.steps",
        "train.workers",
        "train.trackers",
        "train.report",
        "sample.preview_neighbours",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.preview_every",
        "train.held_out_every",
        "train.nonfinite_limit",
        "train.noise_scale",
        "train.on_full_disk",
        "train.rank_timeout",
        "train.worker_timeout",
        "ema.snapshot_every",
        "data.cache",
        "data.allow_change",
    }
)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(table := dict(pairs)) < len(pairs):
        raise ValueError(f"key '{Counter(name for name, _ in pairs).most_common(1)[0][0]}' twice")
    return table


def read(path: Path) -> dict[str, Any]:
    """The table in a .toml or .json file.

    Raises:
        ConfigError: missing, too large, or not well-formed; the message names the line.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"config {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"config {path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"config {path} is larger than {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
        table = json.loads(text, object_pairs_hook=_once) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config {path} is not well-formed: {error}") from None
    if not isinstance(table, dict):
        raise ConfigError(f"config {path} must hold sections, not {type(table).__name__}")
    return table


def parse_value(text: str) -> Any:
    """A flag's value by TOML's rules, or JSON's; a bare word is a string, and `1,2,2` a list."""
    for candidate in (text, f"[{text}]") if "," in text else (text,):
        try:
            (value,) = tomllib.loads(f"value = {candidate}").values()
        except (ValueError, RecursionError):
            continue
        if isinstance(value, (bool, int, float, str, list, dict)):
            return value
    if text.startswith(("[", "{")):
        with suppress(ValueError, RecursionError):
            return json.loads(text, object_pairs_hook=_once)
    return text


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, table by table; a part of a new kind replaces the whole part."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, str) and isinstance(value, dict):
            old = {"kind": old}
        elif isinstance(old, dict) and isinstance(value, str):
            value = {"kind": value}
        if isinstance(old, dict) and isinstance(value, dict):
            same = "kind" not in old or "kind" not in value or old["kind"] == value["kind"]
            value = merge(old, value) if same else value
        merged[key] = value
    return merged


def parse_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """`--section.key value` (or `=value`, or nothing for true) as nested tables.

    Raises:
        ConfigError: an argument that is not such a flag.
    """
    table: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        flag, equals, text = rest.pop(0).partition("=")
        if not flag.startswith("--") or not 1 <= flag.count(".") <= DEEPEST:
            near = get_close_matches(flag.lstrip("-"), [key.split(".")[-1] for key in keys()], n=1)
            named = [key for key in keys() if near and key.endswith(f".{near[0]}")]
            full = min(named, key=lambda key: (key.count("."), not key.startswith("train.")), default=None)
            hint = f"; did you mean --{full}?" if full else "; keys are written --section.key value"
            raise ConfigError(f"unknown argument '{flag}'{hint}")
        if not equals:
            text = "true" if not rest or rest[0].startswith("--") else rest.pop(0)
        value = parse_value(text)
        for part in reversed(flag[2:].split(".")):
            value = {part: value}
        table = merge(table, value)
    return table


class _ModelAlone(Spec):
    """A [model] without the rest of a run; `run` says that every preset will do."""

    run: dict[str, Any]
    model: NetworkConfig = UNetConfig()


def resolve(table: dict[str, Any], source: str = "config") -> RunConfig:
    """Check a table and fill in every default.

    Raises:
        ConfigError: anything wrong in it, all of it in one message.
    """
    return _resolve(RunConfig, table, source)


def resolve_model(table: dict[str, Any], source: str = "config") -> NetworkConfig:
    """Check a [model] table alone and fill in every default.

    Raises:
        ConfigError: anything wrong in it, all of it in one message.
    """
    return _resolve(_ModelAlone, {"run": {"task": "segment"}, "model": table}, source).model


def _resolve(kind: type[S], table: dict[str, Any], source: str) -> S:
    try:
        config, problems = _check(kind, json.loads(json.dumps(table, default=str)))
    except RecursionError:
        raise ConfigError(f"{source} is nested too deeply") from None
    if config is not None:
        return config
    many = f"{len(problems)} errors in {source}:" if len(problems) > 1 else f"{source}:"
    shown = problems if len(problems) <= 5 else [*problems[:4], "; ".join(problems[4:])]
    raise ConfigError("\n  ".join([many, *shown]) if len(problems) > 1 else f"{many} {problems[0]}")


def _check(kind: type[S], table: dict[str, Any]) -> tuple[S | None, list[str]]:
    """The config, or a line for each thing wrong: what is wrong is left out until no more is found."""
    problems: list[str] = []
    wrong: set[str] = set()  # patterns of the keys that were left out
    try:
        table = _expand_preset(table)
    except ConfigError as error:
        problems.append(f"model.preset: {error}")
        wrong.add(r"\bmodel\.")
        table = {key: value for key, value in table.items() if key != "model"}
    table = _with_kinds(table, _defaults(table))
    remaining: dict[str, Any] | None = table
    while remaining is not None:
        try:
            config = kind.model_validate(remaining)
        except ValidationError as error:
            details = error.errors(include_url=False)
            problems += [line for line in explain(details, table, wrong) if line not in problems]
            remaining = without(remaining, details, wrong)
        else:
            return (None if problems else config), problems
    return None, problems


def load(path: Path, flags: Sequence[str] = ()) -> RunConfig:
    """Read a file, lay flags over it, check it all."""
    table = merge(read(path), parse_flags(flags))
    table.setdefault("run", {})
    if isinstance(table["run"], dict):
        table["run"].setdefault("name", path.stem)
    return resolve(table, path.name)


def _defaults(table: dict[str, Any]) -> dict[str, Any]:
    """Every section with its defaults; those of the model are its own kind's."""
    defaults = {name: field.default.model_dump(mode="json") for name, field in RunConfig.model_fields.items()}
    model = table.get("model")
    kind = model.get("kind") if isinstance(model, dict) else None
    own = {c.kind: c.model_dump(mode="json") for c in (UNetConfig(), ClassicUNetConfig())}
    return defaults | ({"model": own[kind]} if isinstance(kind, str) and kind in own else {})


def _with_kinds(table: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The table where parts that name no kind are of the default kind."""
    filled = dict(table)
    for key, default in defaults.items():
        inner = table.get(key)
        if isinstance(default, dict) and isinstance(inner, dict):
            filled[key] = _with_kinds({k: v for k, v in default.items() if k == "kind"} | inner, default)
    return filled


def _expand_preset(table: dict[str, Any]) -> dict[str, Any]:
    model = table.get("model")
    if not isinstance(model, dict) or "preset" not in model:
        return table
    changes = {key: value for key, value in model.items() if key != "preset"}
    name, run = choose("preset", model["preset"], PRESETS), table.get("run", {})
    segments = isinstance(run, dict) and run.get("task") == "segment"
    network = PRESETS[name] if segments else preset(name, UNetConfig)
    return table | {"model": merge(network.model_dump(mode="json"), changes)}


def flatten(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value."""
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = value

    visit("", config.model_dump(mode="json"))
    return flat


def differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Keys in which two configs differ: (old, new)."""
    a, b = flatten(old), flatten(new)
    return {key: (a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)}


def check_resume(old: RunConfig, new: RunConfig, folder: Path) -> str:
    """Refuse to go on with a run under another config; what did change, for people, or an empty text.

    Raises:
        CheckpointError: keys differ that would make it another run; each is shown as old -> new.
    """
    found = differences(old, new)
    if changed := {key: pair for key, pair in found.items() if key not in RESUMABLE}:
        shown = "; ".join(f"{key}: {a!r} -> {b!r}" for key, (a, b) in list(changed.items())[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise CheckpointError(
            f"{folder} holds a run of another config ({shown}{more}); "
            "use the old values to go on with it, or --out for a new folder"
        )
    return "; ".join(f"{key}: {a!r} -> {b!r}" for key, (a, b) in found.items())
