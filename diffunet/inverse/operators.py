"""The table of operators. A new one is its class, its line here, and its spec in spec/inverse.py; tests follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffunet.inverse.convolution import MotionBlur
from diffunet.inverse.operator import Operator
from diffunet.inverse.pointwise import Grey, Identity, Mask
from diffunet.inverse.separable import Average, Bicubic, GaussianBlur, Sensing, UniformBlur
from diffunet.spec.inverse import operator_config
from diffunet.table import Table, choose

OPERATORS: Table[Any] = Table(
    "operator",
    {
        "identity": Identity,
        "mask": Mask,
        "average": Average,
        "bicubic": Bicubic,
        "gaussian_blur": GaussianBlur,
        "uniform_blur": UniformBlur,
        "motion_blur": MotionBlur,
        "grey": Grey,
        "sensing": Sensing,
    },
)


def build_operator(operator: Any, shape: Sequence[int], **given: Any) -> Operator:
    """The operator on images of `shape` (C, *S) of a name, a dict or spec with `kind`; an Operator is itself.

    Args:
        operator: a name of OPERATORS, a spec, or an Operator.
        shape: (C, *S).
        given: tensors that no config holds, such as `known` of a mask.

    Raises:
        ConfigError: unknown operator or option, or one that such images cannot have.
    """
    if isinstance(operator, Operator):
        return operator
    if isinstance(operator, str):
        choose("operator", operator, OPERATORS)
    return OPERATORS.build(operator_config(operator), tuple(shape), **given)
