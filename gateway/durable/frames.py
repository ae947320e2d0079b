"""A record that waits for the broker becomes a frame of bytes in a segment, and back.

A segment is `CLAWSPL1`, 8 bytes of salt, then frames. A frame is four little-endian uint32 (marker, length of the payload,
CRC-32 of the payload, CRC-32 of salt and these three), then the payload: msgpack `[at, topic, key, value, headers]`.

Invariants:
- a frame that a segment ends within was being written when its process ended: it is torn, and nobody was told of it;
- whatever else does not check is damage: its place is told, and reading goes on at the next frame that checks;
- neither bytes of an older file nor a frame inside somebody's prompt pass for a frame: they lack the segment's salt.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

MAGIC: Final = b"CLAWSPL1"
SALT_BYTES: Final = 8
SEGMENT_HEAD: Final = len(MAGIC) + SALT_BYTES
FRAME_HEAD: Final = 16
_MARKER: Final = 0xC1A75B10
_HEAD: Final = struct.Struct("<IIII")
_FIRST: Final = struct.Struct("<III")
_MARK: Final = _MARKER.to_bytes(4, "little")


class Entry(NamedTuple):
    """One record for the broker; `value` None is a tombstone."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@dataclass
class Scan:
    """What a run of frames holds."""

    entries: list[Entry] = field(default_factory=list)
    first_at: float | None = None
    """When the first entry was spooled, seconds since 1970."""
    damaged: list[tuple[int, int]] = field(default_factory=list)
    """Ranges of bytes that are no frames, though something stands behind them or they are whole."""
    torn_at: int | None = None
    """Where the frame begins that the data ends within."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[float, str, bytes | None, bytes | None, list[tuple[str, bytes]]]).decode


def encode_entry(entry: Entry, at: float) -> bytes:
    """The payload of a frame; `at` in seconds since 1970."""
    return _encode((at, *entry))


def segment_head(salt: bytes) -> bytes:
    return MAGIC + salt


def read_head(data: bytes) -> bytes | None:
    """The salt of a segment; None if it does not begin as one."""
    return data[len(MAGIC) : SEGMENT_HEAD] if len(data) >= SEGMENT_HEAD and data.startswith(MAGIC) else None


def frame_head(payload: bytes, salt: bytes) -> bytes:
    """What stands before a payload."""
    first = _FIRST.pack(_MARKER, len(payload), zlib.crc32(payload))
    return first + zlib.crc32(salt + first).to_bytes(4, "little")


def scan(data: bytes, salt: bytes) -> Scan:
    """Every frame of `data`, which begins at a frame's place."""
    found = Scan()
    position = 0
    while position < len(data):
        head = _read_frame_head(data, position, salt)
        if head is None:
            if len(data) - position < FRAME_HEAD or not data[position:].strip(b"\0"):
                found.torn_at = position  # the rest of a frame's head, or what a file system had not filled yet
                return found
            position = _skip(data, position, salt, found)
            continue
        length, checksum = head
        end = position + FRAME_HEAD + length
        if end > len(data):
            found.torn_at = position
            return found
        if not _take(data[position + FRAME_HEAD : end], checksum, found):
            found.damaged.append((position, end))
        position = end
    return found


def _take(payload: bytes, checksum: int, found: Scan) -> bool:
    if zlib.crc32(payload) != checksum:
        return False
    try:
        at, topic, key, value, headers = _decode(payload)
    except msgspec.MsgspecError:
        return False
    found.entries.append(Entry(topic, key, value, headers))
    if found.first_at is None:
        found.first_at = at
    return True


def _read_frame_head(data: bytes, position: int, salt: bytes) -> tuple[int, int] | None:
    """(length, checksum) of the payload, if a frame's head stands there."""
    if len(data) - position < FRAME_HEAD:
        return None
    marker, length, checksum, check = _HEAD.unpack_from(data, position)
    if marker != _MARKER or check != zlib.crc32(salt + data[position : position + _FIRST.size]):
        return None
    return length, checksum


def _skip(data: bytes, position: int, salt: bytes, found: Scan) -> int:
    """Note what is damaged from `position` on; where the next frame begins."""
    place = data.find(_MARK, position + 1)
    while place >= 0 and _read_frame_head(data, place, salt) is None:
        place = data.find(_MARK, place + 1)
    end = place if place >= 0 else len(data)
    found.damaged.append((position, end))
    return end
