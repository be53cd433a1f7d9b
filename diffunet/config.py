"""From a TOML file and flags to one resolved config: all errors at once, each with its key and the nearest name.

Without torch, so that a mistake is answered at once.
"""

from __future__ import annotations

import json
import tomllib
import typing
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from diffunet.errors import ConfigError
from diffunet.spec import RunConfig
from diffunet.zoo import PRESETS

MAX_BYTES = 2**20
# What may change when a run goes on; all else would make another run of it.
RESUMABLE = frozenset(
    f"train.{key}"
    for key in (
        "steps",
        "workers",
        "trackers",
        "checkpoint_every",
        "keep_checkpoints",
        "preview_every",
        "held_out_every",
        "nonfinite_limit",
    )
)


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
        text = data.decode("utf-8-sig")
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config {path} is not well-formed: {error}") from None
    if not isinstance(table, dict):
        raise ConfigError(f"config {path} must hold sections, not {type(table).__name__}")
    return table


def parse_value(text: str) -> Any:
    """A flag's value by TOML's rules; a bare word is a string, and `1,2,2` a list."""
    for candidate in (text, f"[{text}]") if "," in text else (text,):
        try:
            value = tomllib.loads(f"value = {candidate}")["value"]
        except tomllib.TOMLDecodeError:
            continue
        if isinstance(value, (bool, int, float, str, list, dict)):
            return value
    return text


def parse_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """`--section.key value` (or `=value`, or nothing for true) as nested tables.

    Raises:
        ConfigError: an argument that is not such a flag.
    """
    table: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        flag, equals, text = rest.pop(0).partition("=")
        if not flag.startswith("--") or "." not in flag:
            near = get_close_matches(flag.lstrip("-"), [key.split(".")[-1] for key in keys()], n=1)
            full = next((key for key in keys() if near and key.endswith(f".{near[0]}")), None)
            hint = f"; did you mean --{full}?" if full else "; keys are written --section.key value"
            raise ConfigError(f"unknown argument '{flag}'{hint}")
        if not equals:
            text = "true" if not rest or rest[0].startswith("--") else rest.pop(0)
        *parents, last = flag[2:].split(".")
        place = table
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"flag '{flag}' goes inside '{parent}', which another flag sets to a value")
        place[last] = parse_value(text)
    return table


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, table by table; a new `kind` replaces the whole part."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        same = (
            isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind")
        )
        merged[key] = merge(typing.cast(dict[str, Any], old), value) if same else value
    return merged


def resolve(table: dict[str, Any], source: str = "config") -> RunConfig:
    """Check a table and fill in every default.

    Raises:
        ConfigError: anything wrong in it, all of it in one message.
    """
    table = _expand_preset(json.loads(json.dumps(table, default=str)))
    problems: list[str] = []
    remaining: dict[str, Any] | None = table
    while remaining is not None:
        try:
            config = RunConfig.model_validate(remaining)
        except ValidationError as error:
            details = error.errors(include_url=False)
            problems += [line for line in dict.fromkeys(_explain(d, table) for d in details) if line not in problems]
            remaining = _without(remaining, details)
            continue
        if not problems:
            return config
        break
    many = f"{len(problems)} errors in {source}:" if len(problems) > 1 else f"{source}:"
    shown = problems if len(problems) <= 5 else [*problems[:4], "; ".join(problems[4:])]
    raise ConfigError("\n  ".join([many, *shown]) if len(problems) > 1 else f"{many} {problems[0]}")


def load(path: Path, flags: Sequence[str] = ()) -> RunConfig:
    """Read a file, lay flags over it, check it all."""
    table = merge(read(path), parse_flags(flags))
    table.setdefault("run", {})
    if isinstance(table["run"], dict):
        table["run"].setdefault("name", path.stem)
    return resolve(table, path.name)


def _expand_preset(table: dict[str, Any]) -> dict[str, Any]:
    model = table.get("model")
    if not isinstance(model, dict) or "preset" not in model:
        return table
    changes = {key: value for key, value in model.items() if key != "preset"}
    return table | {"model": merge(PRESETS[model["preset"]].model_dump(mode="json"), changes)}


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key that a config may hold."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        inner = [key for m in _models(field.annotation) for key in keys(m, f"{prefix}{name}.")]
        found += [*(inner or []), f"{prefix}{name}"] if prefix or not inner else inner
    return list(dict.fromkeys(found))


def _path(location: tuple[int | str, ...], table: Any) -> list[str]:
    """The keys of an error's location, without the union tags that pydantic puts between them."""
    path: list[str] = []
    for i, part in enumerate(location):
        inside = isinstance(table, dict) and part in table
        inside = inside or (isinstance(table, list) and isinstance(part, int) and part < len(table))
        if inside:
            table = table[part]
            path.append(str(part))
        elif i == len(location) - 1 and isinstance(table, dict) and isinstance(part, str) and part.isidentifier():
            path.append(part)
    return path


def _explain(detail: ErrorDetails, table: dict[str, Any]) -> str:
    """One line for one of pydantic's errors."""
    path = _path(detail["loc"], table)
    key, kind, value = ".".join(path), detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return _unknown(path)
    if kind == "contradiction":
        return f"{key}: {detail['msg']}" if key else detail["msg"]
    if kind == "missing":
        return f"missing key '{key}'"
    if kind in ("literal_error", "union_tag_invalid"):
        return _not_a_choice(key, value, detail.get("ctx", {}))
    message = detail["msg"].replace("Input should", "should").replace("valid ", "").replace("a integer", "an integer")
    return f"{key} = {json.dumps(value, default=str)[:60]}: {message}"


def _unknown(path: list[str]) -> str:
    """An unknown key with the nearest known one: first beside it, then anywhere."""
    name, known = path[-1], keys()
    siblings = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == ".".join(path[:-1])]
    elsewhere = [key for key in known if key.endswith(f".{name}")] or known
    near = get_close_matches(name, siblings, n=1) or get_close_matches(name, elsewhere, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(siblings)}"
    return f"unknown key '{'.'.join(path)}'{hint}"


def _not_a_choice(key: str, value: Any, context: dict[str, Any]) -> str:
    expected = str(context.get("expected") or context.get("expected_tags") or "")
    choices = [word.strip("' ") for word in expected.replace(" or ", ", ").split(",")]
    chosen = value.get("kind") if isinstance(value, dict) else value
    near = get_close_matches(str(chosen), choices, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{key} = {chosen!r}: {hint}one of: {', '.join(choices)}"


def _without(table: dict[str, Any], details: list[ErrorDetails]) -> dict[str, Any] | None:
    """The table without its wrong entries, to find what else is wrong; None where nothing can be taken out."""
    copy = json.loads(json.dumps(table, default=str))
    removed = False
    for detail in details:
        path, place = _path(detail["loc"], table), copy
        if detail["type"] == "contradiction" and len(path) == 0:
            continue
        for part in path[:-1]:
            place = place.get(part, {}) if isinstance(place, dict) else {}
        if path and isinstance(place, dict) and path[-1] in place:
            del place[path[-1]]
            removed = True
        elif len(path) > 1:  # an item of a list: take out the list
            owner = copy
            for part in path[:-2]:
                owner = owner.get(part, {}) if isinstance(owner, dict) else {}
            removed = (isinstance(owner, dict) and owner.pop(path[-2], None) is not None) or removed
    return copy if removed else None


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


def check_resume(old: RunConfig, new: RunConfig, folder: Path) -> None:
    """Refuse to go on with a run under another config.

    Raises:
        ConfigError: keys differ that would make it another run; each is shown as old -> new.
    """
    changed = {key: pair for key, pair in differences(old, new).items() if key not in RESUMABLE}
    if changed:
        shown = "; ".join(f"{key}: {a!r} -> {b!r}" for key, (a, b) in list(changed.items())[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ConfigError(
            f"{folder} holds a run of another config ({shown}{more}); "
            "use the old values to go on with it, or --out for a new folder"
        )
