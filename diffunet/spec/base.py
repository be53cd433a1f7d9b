"""What every section is made of: a frozen, strict model, and a few shared types."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from diffunet.errors import ConfigError


class Spec(BaseModel):
    """A frozen section: unknown keys, numbers in quotes, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


def named(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def listed(value: Any) -> Any:
    """One value stands for a list of it: `--model.attention_levels 1`."""
    return (value,) if isinstance(value, (int, str)) else value


def contradictions(messages: list[str]) -> None:
    """Raise all the contradictions of one section as one error; each message names every key that it is about."""
    if messages:
        raise PydanticCustomError("contradiction", "{text}", {"text": "; ".join(messages), "each": messages})


def by_name(default: str) -> BeforeValidator:
    """The kind alone stands for a part; a table without a kind is the default one's options."""

    def complete(value: Any) -> Any:
        value = named(value)
        return {"kind": default} | value if isinstance(value, dict) else value

    return BeforeValidator(complete)


def validated(what: str, adapter: TypeAdapter[Any], value: Any) -> Any:
    """A spec from a name, a dict with `kind`, or a spec.

    Raises:
        ConfigError: unknown name or option.
    """
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" if e["loc"] else e["msg"] for e in error.errors()]
        raise ConfigError(f"{what} {value!r}: {'; '.join(reasons)}") from None


ByName = BeforeValidator(named)
IntTuple = Annotated[tuple[int, ...], Strict(False)]
Ints = Annotated[IntTuple, BeforeValidator(listed)]
Floats = Annotated[tuple[float, ...], Strict(False)]
Strings = Annotated[tuple[str, ...], Strict(False), BeforeValidator(listed)]
Pair = Annotated[tuple[float, float], Strict(False)]
Count = Annotated[int, Field(ge=1, le=2**40)]
Whole = Annotated[int, Field(ge=0, le=2**40)]
