"""Rows of ClickHouse's format RowBinaryWithNamesAndTypes become dicts, one at a time, exact in every bit.

Pure. Source: https://clickhouse.com/docs/interfaces/formats/RowBinaryWithNamesAndTypes. Arrays of UInt8, UInt32 and Float32
stay packed little-endian bytes, as events have them; a DateTime64 is seconds since the epoch.
"""

import re
import struct
from collections.abc import Callable, Iterator
from io import BufferedReader
from typing import Any, Final

Read = Callable[[int], bytes]
Reader = Callable[[Read], Any]

_NUMBERS: Final = {
    **{f"UInt{8 * size}": code for size, code in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))},
    **{f"Int{8 * size}": code for size, code in ((1, "b"), (2, "h"), (4, "i"), (8, "q"))},
    "Float32": "f",
    "Float64": "d",
    "Bool": "?",
}
_PACKED: Final = {"UInt8": 1, "UInt32": 4, "Float32": 4}
"""Bytes of an item."""
_TYPE: Final = re.compile(r"\s*(\w+)\s*(?:\((.*)\))?\s*", re.DOTALL)
_NAMED: Final = re.compile(r"\s*(`[^`]+`|\w+)\s+(\S.*)", re.DOTALL)


class Truncated(ValueError):
    """The answer ended within a row."""


def read_rows(stream: BufferedReader) -> Iterator[dict[str, Any]]:
    """The rows of an answer, by column name. Raises Truncated; ValueError for a type that is not known here."""

    def read(size: int) -> bytes:
        found = stream.read(size)
        if len(found) != size:
            raise Truncated(f"the answer ends {size - len(found)} bytes too early")
        return found

    if not stream.peek(1):
        return
    count = _varint(read)
    names = [_text(read) for _ in range(count)]
    readers = [reader_of(_text(read)) for _ in range(count)]
    while stream.peek(1):
        yield {name: reader(read) for name, reader in zip(names, readers, strict=True)}


def reader_of(kind: str) -> Reader:
    """How a value of a ClickHouse type is read. Raises ValueError for one that is not known."""
    match = _TYPE.fullmatch(kind)
    if match is None:
        raise ValueError(f"{kind!r} is no type")
    name, inner = match.groups()
    if name in _NUMBERS:
        return _number(_NUMBERS[name])
    match name:
        case "String":
            return _text
        case "DateTime64":
            ticks, scale = _number("q"), 10 ** int(_split(inner)[0])
            return lambda read: ticks(read) / scale
        case "LowCardinality":
            return reader_of(inner)
        case "Nullable":
            value = reader_of(inner)
            return lambda read: None if read(1) == b"\x01" else value(read)
        case "Array":
            return _array(inner)
        case "Map":
            key, value = map(reader_of, _split(inner))
            return lambda read: {key(read): value(read) for _ in range(_varint(read))}
        case "Tuple":
            return _tuple(_split(inner))
    raise ValueError(f"values of the type {kind} are not read here")


def _array(inner: str) -> Reader:
    size = _PACKED.get(inner.strip())
    if size is not None:
        return lambda read: read(size * _varint(read))
    item = reader_of(inner)
    return lambda read: [item(read) for _ in range(_varint(read))]


def _tuple(parts: list[str]) -> Reader:
    """A tuple with names is a dict."""
    named = [match.groups() for part in parts if (match := _NAMED.fullmatch(part))]
    if len(named) != len(parts):
        readers = [reader_of(part) for part in parts]
        return lambda read: tuple(reader(read) for reader in readers)
    fields = [(name.strip("`"), reader_of(kind)) for name, kind in named]
    return lambda read: {name: reader(read) for name, reader in fields}


def _split(inner: str) -> list[str]:
    """The parts between commas that are in no bracket."""
    parts, depth, begin = [], 0, 0
    for index, sign in enumerate(inner):
        depth += (sign == "(") - (sign == ")")
        if sign == "," and not depth:
            parts.append(inner[begin:index])
            begin = index + 1
    return [*parts, inner[begin:]]


def _number(code: str) -> Reader:
    one = struct.Struct(f"<{code}")
    return lambda read: one.unpack(read(one.size))[0]


def _text(read: Read) -> str:
    return read(_varint(read)).decode()


def _varint(read: Read) -> int:
    value, shift = 0, 0
    while True:
        byte = read(1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
        shift += 7
