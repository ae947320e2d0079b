"""Bytes go to a server over a socket of their own, whatever they are, and its answers come back, whatever they are."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import httptools


@dataclass(slots=True)
class Answer:
    """One HTTP answer as far as it came."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False


class _Reader:
    """Puts answers together; what follows an answer is the next one."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.parser = httptools.HttpResponseParser(self)

    def on_message_begin(self) -> None:
        self.answers.append(Answer())

    def on_header(self, name: bytes, value: bytes) -> None:
        self.answers[-1].headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.answers[-1].status = self.parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self.answers[-1].body += data

    def on_message_complete(self) -> None:
        self.answers[-1].whole = True


async def exchange(
    port: int, parts: Sequence[bytes], *, answers: int = 1, pause: float = 0.0, leave_after: float | None = None
) -> list[Answer]:
    """Send the parts, `pause` seconds between them, and read until so many answers came or the server closed.

    `leave_after`: close the connection so many seconds after the last part, whatever came.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    found = _Reader()
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(leave_after):
                await _write(writer, parts, pause)
                with contextlib.suppress(ConnectionError):
                    await _read(reader, found, answers)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return [answer for answer in found.answers if answer.status >= 200]


async def _write(writer: asyncio.StreamWriter, parts: Sequence[bytes], pause: float) -> None:
    """A server that closes early has answered before: what it said is read all the same."""
    with contextlib.suppress(ConnectionError):
        for number, part in enumerate(parts):
            if number and pause:
                await asyncio.sleep(pause)
            writer.write(part)
            await writer.drain()


async def _read(reader: asyncio.StreamReader, found: _Reader, answers: int) -> None:
    while sum(answer.whole and answer.status >= 200 for answer in found.answers) < answers:
        data = await reader.read(2**18)
        if not data:
            return
        found.parser.feed_data(data)


def request(
    method: str,
    target: str | bytes,
    headers: Sequence[tuple[bytes | str, bytes | str]] = (),
    body: bytes | None = None,
    *,
    version: str = "1.1",
) -> bytes:
    """An HTTP request; `content-length` is added where there is a body and no header says how long it is."""
    target = target if isinstance(target, bytes) else target.encode("utf-8", "surrogateescape")
    lines = [b"%s %s HTTP/%s" % (method.encode(), target, version.encode()), b"host: claw"]
    names = {_bytes(name).lower() for name, _ in headers}
    lines += [_bytes(name) + b": " + _bytes(value) for name, value in headers]
    if body is not None and not names & {b"content-length", b"transfer-encoding"}:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join([*lines, b"", b""]) + (body or b"")


def _bytes(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
