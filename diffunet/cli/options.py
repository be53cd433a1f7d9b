"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from diffunet.errors import ConfigError

AsJson = Annotated[bool, typer.Option("--json", help="print the result as one JSON object")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]


def report(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result for people, or for programs."""
    print(json.dumps(result) if as_json else text)


def parse_numbers(text: str, flag: str, pieces: int) -> tuple[float, ...]:
    """`0.2,0.8` as numbers.

    Raises:
        ConfigError: not that many numbers.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != pieces:
        raise ConfigError(f"{flag} = '{text}' should be {pieces} numbers with commas")
    return numbers


def parse_seeds(text: str) -> list[int]:
    """`0-63` (inclusive) or `3,5,8-10` as a list.

    Raises:
        ConfigError: not such a list, more than a million, or a seed of more than 12 digits.
    """
    seeds: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not all(number.isdecimal() and len(number) <= 12 for number in ((low, high) if dash else (low,))):
            raise ConfigError(f"--seeds '{text[:60]}' should be like 0-63 or 3,5,8-10, each of at most 12 digits")
        if dash and int(high) < int(low):
            raise ConfigError(f"--seeds '{text}': {high} is below {low}")
        last = int(high) if dash else int(low)
        if last - int(low) + len(seeds) >= 1_000_000:
            raise ConfigError(f"--seeds '{text}' names more than a million images; draw them in parts")
        seeds.extend(range(int(low), last + 1))
    return seeds
