"""An engine that answers at once what was prepared: `python -m benchmarks.stub_engine PORT [SHAPES]`.

Invariants: it is no bottleneck: answers are bytes made before the first request, a request is searched for its mark and not
parsed; a stream goes out event by event, with a turn of the loop between, so that a gateway sees them arrive one by one.
"""

import asyncio
import gc
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Final, cast

import uvloop

from benchmarks.shapes import MODEL, SHAPES, Shape, events, find_mark, reply

_JSON: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_STREAM: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_LENGTH: Final = b"content-length:"
Answers = dict[tuple[str, int], bytes | list[bytes]]


def prepare(shapes: Iterable[Shape]) -> Answers:
    """Every answer as bytes on the wire: a whole one, or the parts of a stream."""
    answers: Answers = {}
    for shape in shapes:
        for turn in range(shape.turns):
            if shape.stream:
                parts = [b"%x\r\n%s\r\n" % (len(event), event) for event in events(shape, turn)]
                answers[shape.name, turn] = [_STREAM + parts[0], *parts[1:-1], parts[-1] + b"0\r\n\r\n"]
            else:
                answers[shape.name, turn] = _whole(reply(shape, turn))
    return answers


def _whole(body: bytes) -> bytes:
    return _JSON % len(body) + body


_MODELS: Final = _whole(json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode())
_UNKNOWN: Final = _whole(b"{}")


class Connection(asyncio.Protocol):
    """One kept connection; a request is answered when its last byte is here."""

    def __init__(self, answers: Answers, loop: asyncio.AbstractEventLoop) -> None:
        self._answers = answers
        self._loop = loop
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass of it

    def data_received(self, data: bytes) -> None:
        data = self._data + data if self._data else data
        while data and (size := _size(data)) is not None and len(data) >= size:
            self._answer(data[:size])
            data = data[size:]
        self._data = data

    def _answer(self, request: bytes) -> None:
        assert self._transport is not None
        if request.startswith(b"GET"):
            self._transport.write(_MODELS)
            return
        found = find_mark(request)
        answer = _UNKNOWN if found is None else self._answers.get(found, _UNKNOWN)
        if isinstance(answer, bytes):
            self._transport.write(answer)
        else:
            self._stream(answer, 0)

    def _stream(self, parts: Sequence[bytes], place: int) -> None:
        assert self._transport is not None
        if self._transport.is_closing():
            return
        self._transport.write(parts[place])
        if place + 1 < len(parts):
            self._loop.call_soon(self._stream, parts, place + 1)


def _size(data: bytes) -> int | None:
    """Bytes of the request that `data` begins with; None until its head is here."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = data[:end].lower()
    at = head.find(_LENGTH)
    if at >= 0:
        return end + 4 + int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0])
    if b"transfer-encoding: chunked" in head:
        last = data.find(b"\r\n0\r\n\r\n", end)
        return None if last < 0 else last + 7
    return end + 4


async def serve(port: int, shapes: Iterable[Shape]) -> None:
    """Serve until the process is ended."""
    answers = prepare(shapes)
    gc.freeze()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(answers, loop), "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asked = [Shape(**fields) for fields in json.loads(sys.argv[2])] if sys.argv[2:] else SHAPES.values()
    uvloop.run(serve(int(sys.argv[1]), asked))
