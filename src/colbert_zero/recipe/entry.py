"""What every entry of a recipe is made of: keys that are known, numbers that are numbers, what counts in an id."""

from collections.abc import Set
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)
from pydantic_core import PydanticCustomError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]


class Neutral:
    """Beside a field: the values that mean what the program did before the key existed.

    At one of them a key stays out of every fingerprint, so that a new key retrains nothing that is finished.
    """

    def __init__(self, *values: Any):
        self.values = values


class Entry(BaseModel):
    """An entry of a recipe: frozen, and without keys that nobody knows."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    def asked(self, exclude: Set[str] = frozenset()) -> dict[str, Any]:
        """What is asked for, for a fingerprint: all values, without keys at a neutral one (`Neutral`).

        Args:
            exclude: Keys of this entry that do not change what is made.
        """
        values = self.model_dump(exclude=set(exclude))
        for key, field in type(self).model_fields.items():
            value = getattr(self, key)
            neutral = [v for mark in field.metadata if isinstance(mark, Neutral) for v in mark.values]
            if key in exclude or value in neutral:
                values.pop(key, None)
            elif isinstance(value, Entry):
                values[key] = value.asked()
        return values


def _no_switch(value: Any) -> Any:
    # Otherwise `steps: yes` would be one step.
    if isinstance(value, bool):
        raise PydanticCustomError("switch", "should be a number")
    return value


Int = Annotated[int, BeforeValidator(_no_switch)]


Float = Annotated[float, BeforeValidator(_no_switch)]


Precision = Literal["float32", "bfloat16", "auto"]
"""What an encoder is asked to compute in; `auto` is what the device is faster in."""


Seed = Annotated[Int, Field(ge=0, lt=2**32)]
