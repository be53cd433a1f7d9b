"""Every name that a config may hold is a line of the table that builds it, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import pytest

from diffunet import presets, spec
from diffunet.errors import ConfigError
from diffunet.nn import ATTENTIONS, BLOCKS, DOWNS, NETWORKS, PRESETS, SKIPS, TIMES, UPS
from diffunet.objectives import WEIGHTS
from diffunet.predictions import PREDICTIONS
from diffunet.samplers import SAMPLERS
from diffunet.schedules import SCHEDULES
from diffunet.table import Table

FAMILIES: dict[str, tuple[Any, Table[Any]]] = {
    "TIMES": (spec.TimeConfig, TIMES),
    "BLOCKS": (spec.BlockConfig, BLOCKS),
    "ATTENTIONS": (spec.AttentionConfig, ATTENTIONS),
    "DOWNS": (spec.DownConfig, DOWNS),
    "UPS": (spec.UpConfig, UPS),
    "SKIPS": (spec.SkipConfig, SKIPS),
    "NETWORKS": (spec.NetworkConfig, NETWORKS),
    "SCHEDULES": (spec.ScheduleConfig, SCHEDULES),
    "WEIGHTS": (spec.WeightConfig, WEIGHTS),
    "SAMPLERS": (spec.SamplerConfig, SAMPLERS),
}


def members(choice: Any) -> Iterator[type[spec.Spec]]:
    """The specs that a choice is made of."""
    if get_origin(choice) is Annotated:
        yield from members(get_args(choice)[0])
    elif isinstance(choice, type):
        yield choice
    else:
        for member in get_args(choice):
            yield from members(member)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kinds_of_a_choice_are_the_keys_of_its_table(family: str) -> None:
    choice, table = FAMILIES[family]
    kinds = [member.model_fields["kind"] for member in members(choice)]
    assert sorted(name for kind in kinds for name in get_args(kind.annotation)) == sorted(table)
    assert all(get_args(kind.annotation) == (kind.default,) for kind in kinds)


def test_predictions_are_named_once() -> None:
    assert sorted(get_args(spec.PredictionName)) == sorted(PREDICTIONS)


def test_every_spacing_of_a_schedule_has_a_name_and_every_name_a_schedule() -> None:
    assert {s for schedule in SCHEDULES.values() for s in schedule.spacings} == set(get_args(spec.SpacingName))
    assert all(schedule.default_spacing in schedule.spacings for schedule in SCHEDULES.values())


def test_presets_are_those_of_the_table() -> None:
    assert presets() == tuple(PRESETS)
    assert {type(config).model_fields["kind"].default for config in PRESETS.values()} == set(NETWORKS)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_name_is_met_with_the_nearest_and_all_choices(family: str) -> None:
    table = FAMILIES[family][1]
    first = next(iter(table))
    with pytest.raises(ConfigError, match=f"unknown {table.what} '{first}x'; did you mean '{first}'") as caught:
        table[f"{first}x"]
    assert all(name in str(caught.value) for name in table)
