"""What is wrong with a config, in words: a line for each key, with the nearest known name."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from diffunet.spec.run import RunConfig


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


Path = list[int | str]


def _path(location: tuple[int | str, ...], table: Any) -> Path:
    """The keys (and numbers of items) of a location, without the union tags that pydantic puts between them."""
    path: Path = []
    for part in location:
        inside = isinstance(table, dict) and part in table
        if inside or (isinstance(table, list) and isinstance(part, int) and part < len(table)):
            table = table[part]
            path.append(part)
    return path


def _name(path: Path) -> str:
    return ".".join(map(str, path))


def explain(details: list[ErrorDetails], table: dict[str, Any], wrong: set[str]) -> list[str]:
    """One line for each key that pydantic has errors about.

    Args:
        details: what pydantic says.
        table: the config as it was written.
        wrong: patterns of keys that were left out; what contradicts only their defaults is not said.
    """
    said: dict[str, list[str]] = {}
    for detail in details:
        inner = [d for d in details if d["loc"][: len(detail["loc"])] == detail["loc"] and d["loc"] != detail["loc"]]
        if inner:  # a list is too short only because its wrong items were left out
            continue
        path = _path(detail["loc"], table)
        line = LINES.get(detail["type"], _wrong_value)(detail, path, wrong)
        if line:
            said.setdefault(_name(path), []).append(line)
    return [_join(list(dict.fromkeys(said[k]))) for k in said if not any(other.startswith(f"{k}.") for other in said)]


def _join(lines: list[str]) -> str:
    """A key that may be of two types has an error for each: `should be an integer or a list`."""
    return " or ".join([lines[0], *(line.rpartition(": should ")[2].removeprefix("be ") for line in lines[1:])])


def _wrong_value(detail: ErrorDetails, path: Path, wrong: set[str]) -> str:
    a_table = r"dictionary or (instance of \w+|object to extract fields from)"
    expected = re.sub(a_table, "table", detail["msg"].partition(" should ")[2])
    expected = expected.partition(" after validation")[0].replace("valid ", "")
    value = json.dumps(detail["input"], default=str)
    value = value if len(value) <= 60 else f"{value[:60]}..."
    return f"{_name(path)} = {value}: should {expected.replace('a integer', 'an integer').replace('tuple', 'list')}"


def _contradiction(detail: ErrorDetails, path: Path, wrong: set[str]) -> str:
    messages = [m for m in detail["ctx"]["each"] if not any(re.search(pattern, m) for pattern in wrong)]
    where = f"{_name(path)}: " if path else ""
    return where + "; ".join(messages) if messages else ""


def _too_short(detail: ErrorDetails, path: Path, wrong: set[str]) -> str:
    # only the items of a list have no default
    return f"{_name(path)}: should have more items"


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    """The keys that may stand where the last key of a location stands."""
    models: list[type[BaseModel]] = [RunConfig]
    for part in location[:-1]:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        inner = [model for field in fields for model in _models(field.annotation)]
        # what is no field is the kind of a part
        models = inner or [model for model in models if model.model_fields["kind"].default == part]
    return [name for model in models for name in model.model_fields]


def _unknown(detail: ErrorDetails, path: Path, wrong: set[str]) -> str:
    """An unknown key with the nearest known one: first beside it, then anywhere."""
    name, known, siblings = str(path[-1]), keys(), _siblings(detail["loc"])
    elsewhere = [key for key in known if key.endswith(f".{name}") and key != _name(path)] or known
    near = get_close_matches(name, siblings, n=1) or get_close_matches(name, elsewhere, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(siblings)}"
    return f"unknown key '{_name(path)}'{hint}"


def _not_a_choice(detail: ErrorDetails, path: Path, wrong: set[str]) -> str:
    context, value = detail["ctx"], detail["input"]
    expected = str(context.get("expected") or context["expected_tags"])
    choices = [word.strip("' ") for word in expected.replace(" or ", ", ").split(",")]
    chosen = value["kind"] if isinstance(value, dict) and "kind" in value else value
    near = get_close_matches(str(chosen), choices, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{_name(path)} = {chosen!r}: {hint}one of: {', '.join(choices)}"


def without(table: dict[str, Any], details: list[ErrorDetails], wrong: set[str]) -> dict[str, Any] | None:
    """The table without its wrong entries, to find what else is wrong; None where nothing can be taken out."""
    copy = json.loads(json.dumps(table, default=str))
    removed = False
    for detail in details:
        keys_only = [part for part in _path(detail["loc"], table) if isinstance(part, str)]  # of an item, its list
        if not keys_only:
            continue
        *parents, last = keys_only
        place = copy
        for part in parents:
            place = place.get(part, {})
        removed |= last in place
        place.pop(last, None)
        if detail["type"] != "extra_forbidden":
            wrong.add(rf"\b{re.escape(last)}" + (r"\b" if parents else r"\."))
    return copy if removed else None


LINES: dict[str, Callable[[ErrorDetails, Path, set[str]], str]] = {
    "contradiction": _contradiction,
    "extra_forbidden": _unknown,
    "literal_error": _not_a_choice,
    "missing": _too_short,
    "union_tag_invalid": _not_a_choice,
}
