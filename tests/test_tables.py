"""Every name that a config may hold is a line of the table that builds it, and the other way round."""

from __future__ import annotations

from typing import get_args

import pytest

from diffunet import presets, spec
from diffunet.errors import ConfigError
from diffunet.nn import BORDERS, ENDS, NETWORKS, NORMS, PRESETS
from diffunet.nn.blocks import ACTIVATIONS
from diffunet.predictions import PREDICTIONS
from diffunet.schedules import GRIDS, SCHEDULES
from diffunet.spec.objectives import PairingName
from diffunet.training.pairing import PAIRINGS
from tests.families import FAMILIES, PARTS, kinds, members


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kinds_of_a_choice_are_the_keys_of_its_table(family: str) -> None:
    choice, table = FAMILIES[family]
    named = [member.model_fields["kind"] for member in members(choice)]
    assert sorted(name for kind in named for name in get_args(kind.annotation)) == sorted(table)
    assert all(get_args(kind.annotation) == (kind.default,) for kind in named)


def test_every_choice_of_parts_in_a_network_is_held_to_its_table() -> None:
    fields = spec.UNetConfig.model_fields.items()
    chosen = {name for name, field in fields if any(issubclass(m, spec.Spec) for m in members(field.annotation))}
    assert chosen == PARTS.keys() | {"attentions", "downs", "ups"}


def test_the_smaller_choices_of_a_block_are_their_tables() -> None:
    plain, blocks = spec.DoubleConvBlock.model_fields, kinds(spec.BlockConfig).values()
    assert sorted(get_args(plain["norm"].annotation)) == sorted(NORMS)
    assert sorted(get_args(plain["activation"].annotation)) == sorted(ACTIVATIONS)
    assert {block.ends for block in blocks} == set(ENDS)
    assert {*get_args(spec.PaddingMode)} - {"zeros"} == {*BORDERS} - {"edge"}  # the edge is what mirrors fall back to


def test_predictions_are_named_once() -> None:
    assert sorted(get_args(spec.PredictionName)) == sorted(PREDICTIONS)


def test_pairings_are_named_once() -> None:
    assert sorted(get_args(PairingName)) == sorted(PAIRINGS)


def test_every_spacing_of_a_schedule_has_a_name_and_every_name_a_schedule() -> None:
    assert {s for schedule in SCHEDULES.values() for s in schedule.spacings} == set(GRIDS)
    assert set(get_args(spec.SpacingName)) == set(GRIDS)
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
