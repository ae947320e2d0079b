"""An event becomes the bytes of one Kafka record, and back.

The body is one msgpack map without None fields; the headers are CloudEvents 1.0 in binary mode for Kafka
(https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/kafka-protocol-binding.md) plus `traceparent`.
Arrays are packed little-endian. Every body that a released version wrote decodes for ever: tests/golden holds one of each.
"""

import hashlib
import sys
from array import array
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from mmap import mmap
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError

from claw_r1.errors import InvalidRecord
from claw_r1.events import EVENTS, Event, Fact, GroupFact, Packed, Step
from claw_r1.ids import event_key
from claw_r1.recipes import FROM_LOG

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_RECORD_BYTES: Final = 8 * 1024 * 1024
"""The one size limit: producers, topics, consumers and the gateway's refusal."""
MAX_DEPTH: Final = 32
"""Every 32nd link of a delta-encoded context is a full context."""
MOVED: Final = "claw-moved"
"""The header of an outcome that was written again because its group's facts go to another partition from now on:
`PARTITION/OFFSET` of what it repeats."""

Headers = Sequence[tuple[str, bytes]]
E = TypeVar("E", bound=Event)


class Record(NamedTuple):
    """What a producer sends: key, value and headers of one record."""

    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]


def _dump(part: object) -> object:
    if isinstance(part, BaseModel):
        return part.__dict__
    raise TypeError(f"{type(part).__name__} is no part of an event")


_encode = msgspec.msgpack.Encoder(enc_hook=_dump).encode
_decode = msgspec.msgpack.Decoder(dict).decode
_MODELS: Final = {name.encode(): model for name, model in EVENTS.items()}


def event_type(model: type[Event] | Event) -> str:
    """The CloudEvents type, for instance `claw.step.v1`."""
    return f"claw.{model.TYPE}.v{model.VERSION}"


def encode(event: Event, *, source: str, key: bytes | None = None, traceparent: str | None = None) -> Record:
    """The record of an event; facts of a group get their group's key unless another is given.

    Raises InvalidRecord: "too_large" above MAX_RECORD_BYTES, "unencodable" for text that is not Unicode, for numbers of
    more than 64 bits and for what is nested too deeply.
    """
    if key is None and isinstance(event, GroupFact):
        key = event_key(event.run_id, event.prompt_uid)
    value = encode_body(event)
    headers = [*_common_headers(event_type(event), source)]
    if isinstance(event, Fact):
        headers.append(("ce_id", event.fact_id.encode()))
        headers.append(("ce_time", datetime.fromtimestamp(event.at, UTC).isoformat().encode()))
    if key is not None:
        headers.append(("ce_partitionkey", key))
    if traceparent is not None:
        headers.append(("traceparent", traceparent.encode()))
    if len(value) > MAX_RECORD_BYTES - 4096:
        raise InvalidRecord(
            "too_large", f"{event.TYPE} is {len(value)} bytes; a record holds at most {MAX_RECORD_BYTES - 4096}"
        )
    return Record(key, value, headers)


@lru_cache(maxsize=1024)
def _common_headers(kind: str, source: str) -> tuple[tuple[str, bytes], ...]:
    return (
        ("content-type", b"application/msgpack"),
        ("ce_specversion", b"1.0"),
        ("ce_type", kind.encode()),
        ("ce_source", source.encode()),
    )


def encode_body(event: Event) -> bytes:
    """The msgpack body alone, without the event's None fields; what stands inside maps is kept as it is."""
    try:
        return _encode({name: value for name, value in event.__dict__.items() if value is not None})
    except (OverflowError, RecursionError, ValueError) as error:
        raise InvalidRecord("unencodable", f"{event.TYPE} holds what no record can: {error}") from error


def header(headers: Headers | Iterable[tuple[str, bytes]], name: str) -> bytes | None:
    """The first header of that name."""
    for key, value in headers:
        if key == name:
            return value
    return None


def decode(headers: Headers | Iterable[tuple[str, bytes]], value: bytes | None) -> Event:
    """The event of a record. Raises InvalidRecord with reason no_type, unknown_type, or undecodable."""
    for name, kind in headers:
        if name == "ce_type":
            model = _MODELS.get(kind)
            break
    else:
        raise InvalidRecord("no_type", "the record has no ce_type header: it was not written by this project")
    if model is None:
        raise InvalidRecord("unknown_type", f"{kind!r} is not an event type that this version knows")
    return decode_body(model, value)


def decode_body(model: type[E], value: bytes | mmap | None) -> E:
    """The event of a known type. Raises InvalidRecord("undecodable")."""
    if value is None:
        raise InvalidRecord("undecodable", f"a {model.TYPE} without a body")
    try:
        made: E = model.__pydantic_validator__.validate_python(_decode(value), context=FROM_LOG)
    except (msgspec.MsgspecError, ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRecord("undecodable", f"a {model.TYPE} that does not decode: {error}") from error
    return made


# ----------------------------------------------------------------------------------------------------------- packed arrays
# NumPy is imported by what needs it: a command or a supervisor that reads no tokens starts a quarter of a second sooner.


def pack_ids(ids: Iterable[int]) -> Packed:
    """Token ids as packed little-endian uint32. Raises OverflowError for ids outside [0, 2**32)."""
    packed = array("I", ids)  # three times as fast as NumPy on a list of Python's integers
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def pack_floats(values: Iterable[float]) -> Packed:
    """Floats as packed little-endian float32."""
    import numpy as np

    return np.fromiter(values, dtype="<f4").tobytes()


def unpack_ids(packed: Packed) -> "NDArray[np.uint32]":
    """Token ids, uint32, shape (n,); a view of the bytes, read-only."""
    import numpy as np

    return np.frombuffer(packed, dtype="<u4")


def unpack_floats(packed: Packed) -> "NDArray[np.float32]":
    """Float32, shape (n,); a view of the bytes, read-only."""
    import numpy as np

    return np.frombuffer(packed, dtype="<f4")


def all_finite(packed: Packed) -> bool:
    """Whether no float32 among them is a NaN or an infinity."""
    tops = packed[3::4]  # what is not finite, and little else, has an exponent whose upper seven bits are ones
    if 0x7F not in tops and 0xFF not in tops:
        return True
    import numpy as np

    return bool(np.isfinite(unpack_floats(packed)).all())


def unpack_mask(packed: Packed) -> "NDArray[np.uint8]":
    """Uint8, shape (n,); a view of the bytes, read-only."""
    import numpy as np

    return np.frombuffer(packed, dtype="u1")


# ----------------------------------------------------------------------------------------------------------- contexts


def prefix_hash(packed: Packed) -> bytes:
    """BLAKE2b of a prefix's packed ids, 16 bytes."""
    return hashlib.blake2b(packed, digest_size=16).digest()


def restore_prompt(step: Step, parent_context: Packed | None) -> Packed:
    """A step's full prompt from its parent's context (prompt + response, packed).

    Raises InvalidRecord("no_parent") if the parent is needed and missing, ("prefix_differs") if the prefix is not the one
    that the sender hashed.
    """
    if step.parent_step_id is None:
        return step.new_prompt_ids
    if parent_context is None:
        raise InvalidRecord("no_parent", f"step {step.step_id} refers to step {step.parent_step_id}, which is not here")
    prefix = parent_context[: 4 * step.prefix_len]
    if len(prefix) != 4 * step.prefix_len or prefix_hash(prefix) != step.prefix_hash:
        raise InvalidRecord("prefix_differs", f"step {step.step_id} was made against another prefix of its parent")
    return prefix + step.new_prompt_ids


def restore_messages(step: Step, parent_messages: list[object] | None) -> list[object]:
    """A step's full request messages from its parent's messages + reply.

    Raises InvalidRecord("no_parent"); ValueError or RecursionError if they are no JSON array, or nested too deeply: an agent's
    words are recorded as they came, also where no engine could read them.
    """
    new: list[object] = msgspec.json.decode(step.new_messages, type=list) if step.new_messages else []
    if step.messages_kept == 0:
        return new
    if parent_messages is None or len(parent_messages) < step.messages_kept:
        raise InvalidRecord("no_parent", f"step {step.step_id} continues messages that are not here")
    return parent_messages[: step.messages_kept] + new
