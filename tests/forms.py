"""Records as versions of this project other than today's write them, inside one version of an event.

An older one leaves out what came after it: what the golden record of the type has not got. A newer one says more, at any depth,
and in the headers.
"""

import base64
import json
from collections.abc import Callable
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import msgspec
from pydantic import BaseModel

from claw_r1.codec import Record, decode, encode, event_type
from claw_r1.events import Event
from claw_r1.rules import Condition

_GOLDEN: Final = Path(__file__).parent / "golden" / "events"
FUTURE: Final = "a_field_of_the_future"
_ADDED: Final = {FUTURE: {"deep": [1, b"\x00", None, {"er": "yes"}]}}


def todays(record: Record) -> Record:
    return record


def older(record: Record) -> Record:
    """As the release wrote it that wrote the golden record of this type."""
    event = decode(record.headers, record.value)
    known = _names(event, _golden(event_type(event)))

    def leave_out(part: BaseModel, fields: dict[str, Any]) -> dict[str, Any]:
        seen = known.get(type(part), fields.keys())
        return {n: v for n, v in fields.items() if n in seen or type(part).model_fields[n].is_required()}

    return record._replace(value=_rewrite(event, leave_out))


def newer(record: Record) -> Record:
    """As a later release may write it: a condition of a recipe alone is a whole, which nothing may be added to."""

    def add(part: BaseModel, fields: dict[str, Any]) -> dict[str, Any]:
        return fields if isinstance(part, Condition) else fields | _ADDED

    value = _rewrite(decode(record.headers, record.value), add)
    return record._replace(value=value, headers=[("claw-future", b"\xff"), *record.headers])


def by_turns() -> Callable[[Record], Record]:
    """One record older, one newer, one today's, and so on, whatever they say."""
    forms = cycle((older, newer, todays))
    return lambda record: next(forms)(record)


def as_read(record: Record) -> Record:
    """Today's form of what today's readers take out of a record."""
    return encode(decode(record.headers, record.value), source="test", key=record.key)


@lru_cache(maxsize=64)
def _golden(kind: str) -> Any:
    document = json.loads((_GOLDEN / f"{kind}.json").read_text())
    return msgspec.msgpack.decode(base64.b64decode(document["value"]))


def _names(event: Event, written: Any) -> dict[type[BaseModel], set[str]]:
    """Model → the fields that its golden record has; the example of each type has every part of it."""
    found: dict[type[BaseModel], set[str]] = {}

    def look(part: Any, said: Any) -> None:
        if isinstance(part, BaseModel) and isinstance(said, dict):
            found.setdefault(type(part), set()).update(said)
            for name in said.keys() & type(part).model_fields.keys():
                look(getattr(part, name), said[name])
        elif isinstance(part, tuple | list) and isinstance(said, list):
            for one in part:
                for other in said:
                    look(one, other)

    look(event, written)
    return found


def _rewrite(event: Event, change: Callable[[BaseModel, dict[str, Any]], dict[str, Any]]) -> bytes:
    def plain(value: Any) -> Any:
        if isinstance(value, BaseModel):
            return change(value, {name: plain(one) for name, one in value.__dict__.items()})
        if isinstance(value, tuple | list):
            return [plain(one) for one in value]
        if isinstance(value, dict):
            return {name: plain(one) for name, one in value.items()}
        return value

    return msgspec.msgpack.encode({name: one for name, one in plain(event).items() if one is not None})
