"""What is wrong with a config, in words: a line for each key, with the nearest known name."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from itertools import takewhile
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from diffunet.spec.run import RunConfig


def _models(annotation: Any, in_lists: bool = True) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    if in_lists or typing.get_origin(annotation) is not tuple:
        for argument in typing.get_args(annotation):
            yield from _models(argument, in_lists)


def keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key that a config may hold; a list is one key, whatever its items are made of."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        inner = [key for m in _models(field.annotation, False) for key in keys(m, f"{prefix}{name}.")]
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
    """A key for people; what is no text in it is escaped, since it goes to a terminal."""
    text = ".".join(map(str, path))[:300]
    return text if text.isprintable() else ascii(text)[1:-1]


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
    """A key that may be of two types has an error for each: `should be an integer or a list`, `... or one of: x, y`."""
    others = [re.split(r": should (?:be )?|.*(?=one of: )", line)[-1] for line in lines[1:]]
    return " or ".join([lines[0], *others])


def _wrong_value(detail: ErrorDetails, path: Path, wrong: set[str]) -> str:
    a_table = r"dictionary or (instance of \w+|object to extract fields from)"
    # pydantic's only message without a `should` is of a number of too many digits
    expected = re.sub(a_table, "table", detail["msg"].partition(" should ")[2] or "be a smaller number")
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


def _kind(model: type[BaseModel]) -> str:
    return model.model_fields["kind"].default if "kind" in model.model_fields else ""


def _models_at(location: tuple[int | str, ...]) -> tuple[list[type[BaseModel]], list[type[BaseModel]]]:
    """The models that may stand at a location: those of the kind that is written there, and those of any kind."""
    models: list[type[BaseModel]] = [RunConfig]
    kinds = models
    for part in location:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if inner := [model for field in fields for model in _models(field.annotation)]:
            models = kinds = inner
        else:  # what is no field is the kind of a part, or the number of an item
            models = [model for model in kinds if _kind(model) == part] or models
    return models, kinds


def _unknown(detail: ErrorDetails, path: Path, wrong: set[str]) -> str:
    """An unknown key with the nearest known one: of another kind, then beside it, then anywhere."""
    name, known, (models, kinds) = str(path[-1]), keys(), _models_at(detail["loc"][:-1])
    if owners := [f"'{_kind(model)}'" for model in kinds if name in model.model_fields]:
        has = "kind {} has it" if len(owners) == 1 else "kinds {} have it"
        return f"unknown key '{_name(path)}' for kind '{_kind(models[0])}'; {has.format(', '.join(owners))}"
    siblings = [field for model in models for field in model.model_fields]
    elsewhere = [key for key in known if key.endswith(f".{name}") and key != _name(path)] or known
    near = get_close_matches(name, siblings, n=1) or get_close_matches(name, elsewhere, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(siblings)}"
    return f"unknown key '{_name(path)}'{hint}"


def _no_kind(detail: ErrorDetails, path: Path, wrong: set[str]) -> str:
    kinds = [_kind(model) for model in _models_at(detail["loc"])[1]]
    return f"{_name(path)} needs a kind; one of: {', '.join(kinds)}"


def _not_a_choice(detail: ErrorDetails, path: Path, wrong: set[str]) -> str:
    context, value = detail["ctx"], detail["input"]
    expected = str(context.get("expected") or context["expected_tags"])
    choices = [word.strip("' ") for word in expected.replace(" or ", ", ").split(",")]
    chosen = value["kind"] if isinstance(value, dict) and "kind" in value else value
    near = get_close_matches(str(chosen), choices, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    # a part may be written as its kind, a whole section may not
    where = _name([*path, "kind"] if isinstance(value, dict) and len(path) == 1 else path)
    return f"{where} = {chosen!r}: {hint}one of: {', '.join(choices)}"


def without(table: dict[str, Any], details: list[ErrorDetails], wrong: set[str]) -> dict[str, Any] | None:
    """The table without its wrong entries, to find what else is wrong; None where nothing can be taken out."""
    copy = json.loads(json.dumps(table, default=str))
    removed = False
    for detail in details:
        # of an item, its list
        keys_only = [str(part) for part in takewhile(lambda part: isinstance(part, str), _path(detail["loc"], table))]
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
    "union_tag_not_found": _no_kind,
}
