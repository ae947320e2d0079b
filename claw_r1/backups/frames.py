"""A record of a topic becomes bytes of a backup's file and comes back, with its offset, time, key, value and headers. Pure.

A frame is its length (4 bytes, little-endian) and a msgpack array. `spaced` says how many offsets behind a record hold nothing
that a reader sees: ends of transactions, and what compaction took.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Final, NamedTuple, Protocol

import msgspec

LENGTH: Final = 4


class Frame(NamedTuple):
    """A record as it stands on its partition."""

    offset: int
    timestamp: int
    """Milliseconds since the epoch."""
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class Source(Protocol):
    """What can be read from, as a file."""

    def read(self, size: int, /) -> bytes: ...


class CutOff(ValueError):
    """The bytes end in the middle of a frame."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode


def pack(frame: Frame) -> bytes:
    body = _encode(frame)
    return len(body).to_bytes(LENGTH, "little") + body


def unpack(source: Source) -> Iterator[tuple[Frame, bytes]]:
    """Every frame, and its bytes. Raises CutOff, or msgspec.MsgspecError for what is none."""
    while head := source.read(LENGTH):
        size = int.from_bytes(head, "little")
        body = source.read(size)
        if len(head) != LENGTH or len(body) != size:
            raise CutOff("the file ends in the middle of a record")
        yield _decode(body), head + body


async def spaced(frames: AsyncIterator[Frame], end: int) -> AsyncIterator[tuple[Frame, int]]:
    """Every frame with the number of empty offsets between it and the next, or `end` behind the last."""
    held: Frame | None = None
    async for frame in frames:
        if held is not None:
            yield held, frame.offset - held.offset - 1
        held = frame
    if held is not None:
        yield held, end - held.offset - 1
