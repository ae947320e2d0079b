"""What every event is made of: the base of a record's payload, and the arrays that it packs.

Invariants: a reader ignores what it does not know, and a packed array is whole.
"""

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict

Json = dict[str, Any]
Packed = bytes
"""A packed little-endian array; the field says which item type."""


def _check_words(packed: Packed) -> Packed:
    if len(packed) % 4:
        raise ValueError(f"{len(packed)} bytes are no whole number of 4-byte items")
    return packed


Words = Annotated[Packed, AfterValidator(_check_words)]
"""A packed array of uint32 or float32. Checked at the door, since no fold could do anything with half an item."""


class Event(BaseModel):
    """A record's payload; `TYPE` and `VERSION` make its CloudEvents type, `claw.<TYPE>.v<VERSION>`."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    TYPE: ClassVar[str]
    VERSION: ClassVar[int] = 1


class Part(BaseModel):
    """A piece of an event."""

    model_config = ConfigDict(frozen=True, extra="ignore")
