"""A table of parts: the one place where a name in a config meets the class that implements it."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, TypeVar

from diffunet.errors import ConfigError

T = TypeVar("T")


def choose(what: str, name: object, choices: Any) -> str:
    """Return `name` if it is one of `choices`.

    Raises:
        ConfigError: it is not; the message names the nearest choice and lists them all.
    """
    names = [str(choice) for choice in choices]
    if name in names:
        return str(name)
    near = get_close_matches(str(name), names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    raise ConfigError(f"unknown {what} '{name}'{hint} one of: {', '.join(names)}")


class Table(dict[str, T]):
    """A literal dict of name -> part whose look-up error teaches.

    >>> Table("fruit", {"apple": int})["aple"]
    Traceback (most recent call last):
    diffunet.errors.ConfigError: unknown fruit 'aple'; did you mean 'apple'? one of: apple
    """

    def __init__(self, what: str, parts: dict[str, T]) -> None:
        super().__init__(parts)
        self.what = what

    def __missing__(self, name: str) -> T:
        choose(self.what, name, self)
        raise AssertionError("choose() raises for a name that is not in the table")

    def build(self, config: Any, *args: Any, **options: Any) -> Any:
        """Make the part that `config.kind` names from its spec and what its surroundings give it."""
        part: Any = self[config.kind]
        return part(config, *args, **options)
