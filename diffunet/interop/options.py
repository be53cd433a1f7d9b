"""Options of another project's object: read through tables, and refused by name where we have no such thing."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from diffunet.errors import ConfigError


def their_value(table: Mapping[Any, Any], ours: Any) -> Any:
    """The inverse of a table of values."""
    return next(theirs for theirs, our in table.items() if our == ours)


class Options(dict[str, Any]):
    """Options of an object, over the defaults of its class where one is given, and where they stand (for messages)."""

    def __init__(self, given: Mapping[str, Any], owner: Any, where: Any) -> None:
        known = inspect.signature(owner.__init__).parameters if owner else {}
        super().__init__({n: p.default for n, p in known.items() if n != "self"} | dict(given))
        self.where = where
        self.unknown = [name for name in given if name not in known and not name.startswith("_")]

    def refusal(self, name: str, why: str) -> ConfigError:
        """The error for one option that we cannot say."""
        return ConfigError(f"{name} = {self[name]!r} has no counterpart in diffunet: {why}")

    def check(self, fixed: Mapping[str, Collection[Any]]) -> None:
        """Refuse options outside their allowed values."""
        for name, allowed in fixed.items():
            if name in self and self[name] not in allowed:
                raise self.refusal(name, f"it must be {' or '.join(map(repr, allowed))}")

    def ours(self, name: str, table: Mapping[Any, Any], value: Any = None) -> Any:
        """What the table says of an option, or of one value in it."""
        value = self[name] if value is None else value
        if value not in list(table):  # a list, since what stands in a JSON file need not be hashable
            raise self.refusal(name, f"{value!r} is none of {', '.join(map(repr, table))}")
        return table[value]

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Say where the options stand that the block refuses, or that are so malformed that our own checks fail."""
        try:
            yield
        except ConfigError as error:
            raise ConfigError(f"{self.where}: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise ConfigError(f"{self.where}: {name + ': ' if name else ''}{first['msg']}") from None
        except (TypeError, LookupError, ArithmeticError) as error:
            raise ConfigError(f"{self.where} is malformed: {error!r}") from None
