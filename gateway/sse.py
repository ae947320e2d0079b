"""The bytes of an event stream become whole events, however the network cut them (WHATWG HTML, section 9.2).

Invariants: the events' bytes joined are the stream's bytes; the same stream gives the same events under any cutting.
"""

import re
from typing import Final

# Atomic, so that one CR LF never counts as two line ends.
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
MAX_EVENT_BYTES: Final = 16 * 1024 * 1024


class EventTooLarge(ValueError):
    """An event grew past MAX_EVENT_BYTES without an end."""


class EventSplitter:
    """Holds the bytes of the one event that has not ended."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The events that these bytes complete, with their line ends. Raises EventTooLarge."""
        data = self._rest + data if self._rest else data
        if b"\r" not in data:  # as every engine writes
            *events, self._rest = data.split(b"\n\n")
            events = [event + b"\n\n" for event in events]
        else:
            events, self._rest = _split(data)
        if len(self._rest) > MAX_EVENT_BYTES:
            raise EventTooLarge(f"an event of the stream is larger than {MAX_EVENT_BYTES} bytes")
        return events

    def rest(self) -> bytes:
        """What is left when the stream has ended: an event without its blank line, or nothing."""
        rest, self._rest = self._rest, b""
        return rest


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    events: list[bytes] = []
    start = 0
    for match in _BLANK_LINE.finditer(data):
        if match.end() == len(data) and data.endswith(b"\r"):
            break  # its LF may still come
        events.append(data[start : match.end()])
        start = match.end()
    return events, data[start:]


def event_data(event: bytes) -> bytes | None:
    """The data of an event, its lines joined by LF; None if it has none (a comment, for instance)."""
    if event.startswith(_BYTE_ORDER_MARK):  # which may begin a stream, and is no part of it
        event = event.removeprefix(_BYTE_ORDER_MARK)
    if event.startswith(b"data: ") and b"\n" not in (line := event[6:].rstrip(b"\r\n")) and b"\r" not in line:
        return line
    lines = [_value(line) for line in _LINE_END.split(event) if line == b"data" or line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def _value(line: bytes) -> bytes:
    value = line[5:]
    return value[1:] if value.startswith(b" ") else value
