"""Every family of parts: what a config may choose, and the table that builds it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from diffunet import nn, spec
from diffunet.guidance import GUIDANCES
from diffunet.inverse import METHODS, OPERATORS
from diffunet.losses import LOSSES
from diffunet.objectives import ERRORS, TIMES, VARIANCES, WEIGHTS
from diffunet.samplers import SAMPLERS
from diffunet.schedules import SCHEDULES
from diffunet.spec.inverse import MethodConfig, OperatorConfig
from diffunet.table import Table

Family = tuple[Any, Table[Any]]

# by the key of the network's config
PARTS: dict[str, Family] = {
    "down": (spec.DownConfig, nn.DOWNS),
    "up": (spec.UpConfig, nn.UPS),
    "skip": (spec.SkipConfig, nn.SKIPS),
    "block": (spec.BlockConfig, nn.BLOCKS),
    "attention": (spec.AttentionConfig, nn.ATTENTIONS),
    "time": (spec.TimeConfig, nn.TIMES),
    "class_embedding": (spec.ClassConfig, nn.CLASSES),
    "input_pyramid": (spec.InputPyramidConfig, nn.INPUT_PYRAMIDS),
    "output_pyramid": (spec.OutputPyramidConfig, nn.OUTPUT_PYRAMIDS),
}
FAMILIES: dict[str, Family] = PARTS | {
    "network": (spec.NetworkConfig, nn.NETWORKS),
    "schedule": (spec.ScheduleConfig, SCHEDULES),
    "weight": (spec.WeightConfig, WEIGHTS),
    "times": (spec.TimesConfig, TIMES),
    "error": (spec.ErrorConfig, ERRORS),
    "variance": (spec.VarianceConfig, VARIANCES),
    "sampler": (spec.SamplerConfig, SAMPLERS),
    "guidance": (spec.GuidanceConfig, GUIDANCES),
    "loss": (spec.LossConfig, LOSSES),
    "operator": (OperatorConfig, OPERATORS),
    "method": (MethodConfig, METHODS),
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


def kinds(choice: Any) -> dict[str, type[spec.Spec]]:
    """The specs of a choice by their kind."""
    return {member.model_fields["kind"].default: member for member in members(choice)}
