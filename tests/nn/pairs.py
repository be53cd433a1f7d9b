"""Pairwise covering: a few cases in which every value of one key meets every value of every other key.

Most defects of a family of parts show where two particular parts meet, and all pairs fit into about as many cases as
the two largest families have pairs; all combinations would be millions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

Case = dict[str, Any]
Choices = Mapping[str, Sequence[Any]]
Pair = frozenset[tuple[str, Any]]


def met(case: Case) -> Iterator[Pair]:
    """The pairs of a case."""
    return (frozenset(pair) for pair in combinations(case.items(), 2))


def every_pair(choices: Choices) -> list[Pair]:
    """Each value of each key with each value of each other key."""
    return [frozenset({(a, x), (b, y)}) for a, b in combinations(choices, 2) for x in choices[a] for y in choices[b]]


def contradictory(choices: Choices, refused: Callable[[Case], bool]) -> set[Pair]:
    """The pairs that are refused whatever value a third key takes."""
    thirds = [{}, *({key: value} for key, values in choices.items() for value in values)]
    return {pair for pair in every_pair(choices) if all(refused(third | dict(pair)) for third in thirds)}


def cover(choices: Choices, forbidden: set[Pair]) -> list[Case]:
    """Cases in which every pair is met that is not forbidden.

    Greedy: a case begins with a pair that was not met yet, and each further key takes the value that meets most new
    pairs, of several the one that was taken least often.
    """
    missing = dict.fromkeys(pair for pair in every_pair(choices) if pair not in forbidden)  # a set that keeps its order
    taken: Counter[tuple[str, Any]] = Counter()
    cases: list[Case] = []
    while missing:
        case: Case = dict(sorted(next(iter(missing)), key=lambda item: list(choices).index(item[0])))
        for key in (key for key in choices if key not in case):

            def worth(value: Any, key: str = key, case: Case = case) -> tuple[int, int]:
                new = sum(frozenset({(key, value), item}) in missing for item in case.items())
                return new, -taken[key, value]

            possible = [v for v in choices[key] if not any(frozenset({(key, v), i}) in forbidden for i in case.items())]
            case[key] = max(possible, key=worth)
        case = {key: case[key] for key in choices}
        for pair in met(case):
            missing.pop(pair, None)
        taken.update(case.items())
        cases.append(case)
    return cases


def each(cases: Sequence[Case], choices: Choices) -> list[Case]:
    """A few of the cases, in which every value of `choices` stands at least once."""
    missing, chosen = {(key, value) for key, values in choices.items() for value in values}, []
    while missing:
        chosen.append(max(cases, key=lambda case: len(missing & case.items())))
        missing -= set(chosen[-1].items())
    return chosen
