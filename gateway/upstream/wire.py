"""A call goes to an engine over a kept connection, and its answer comes back as bytes, as they come (HTTP/1.1, RFC 9112).

A client of its own, since a general one costs as much as all that the gateway does itself (docs/decisions/0045); it speaks
with the server's parser, and says what goes wrong in aiohttp's words, as the gateway's other connections do.

Invariants:
- one call at a time on a connection; it is used again only after an answer whose end its length told, and nothing behind it;
- what waits for its reader is bounded: a reader that is slow slows the engine;
- silence is bounded from the request's last byte to the answer's; a connection that nobody needs is closed.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Final, Self

import aiohttp
import httptools
from aiohttp.client_reqrep import ConnectionKey
from yarl import URL

HIGH_WATER: Final = 2**16
"""Bytes of an answer that may wait for their reader."""
MAX_HEAD_BYTES: Final = 2**16
_INFORMATIONAL: Final = range(100, 200)
_BODILESS: Final = (204, 304)

Headers = list[tuple[bytes, bytes]]


class Reply:
    """An engine's answer, of which the head is here."""

    __slots__ = (
        "_parts",
        "_size",
        "_waiter",
        "_whole",
        "_wire",
        "begun",
        "done",
        "error",
        "on_end",
        "raw_headers",
        "status",
    )

    def __init__(self, wire: "_Wire", on_end: Callable[[], None]) -> None:
        self._wire: _Wire | None = wire
        self.on_end = on_end
        """Called once: the connection is free, or closed."""
        self.begun = False
        """The head is here."""
        self.status = 0
        self.raw_headers: Headers = []
        self.done = False
        """The last byte is here."""
        self.error: Exception | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._whole = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def content_type(self) -> str:
        """Lower case, without parameters."""
        for name, value in self.raw_headers:
            if name.lower() == b"content-type":
                return value.split(b";", 1)[0].strip().lower().decode("latin-1")
        return "application/octet-stream"

    async def head(self) -> None:
        """Return when the head is here. Raises aiohttp.ClientError or TimeoutError."""
        while not self.begun:
            if self.error is not None:
                raise self.error
            await self._wait()

    async def parts(self) -> AsyncIterator[bytes]:
        """What comes, as it comes: all that is here in one. Raises aiohttp.ClientError or TimeoutError."""
        while True:
            while self._parts:
                part = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
                self._parts.clear()
                self._size = 0
                if self._wire is not None:
                    self._wire.resume()
                yield part
            if self.done:
                return
            if self.error is not None:
                raise self.error
            await self._wait()

    async def read(self, limit: int) -> bytes | None:
        """All of it; None if it is more than `limit` bytes. Raises aiohttp.ClientError or TimeoutError."""
        self._whole = True
        while not self.done:
            if self._size > limit:
                return None
            if self.error is not None:
                raise self.error
            if self._wire is not None:
                self._wire.resume()
            await self._wait()
        if self._size > limit:
            return None
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def close(self) -> None:
        """Give up what has not come: the engine's connection is closed. A no-op after the last byte."""
        if self._wire is not None:
            self._wire.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # ------------------------------------------------------------------------------------------------ told by the wire

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def take(self, part: bytes) -> bool:
        """Whether the engine may go on."""
        self._parts.append(part)
        self._size += len(part)
        return self._whole or self._size < HIGH_WATER

    def finish(self, error: Exception | None) -> None:
        """Nothing comes any more."""
        if self._wire is None:
            return
        self._wire = None
        self.done, self.error = error is None, error
        self.wake()
        self.on_end()


class _Wire(asyncio.Protocol):
    """One connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: "Pool") -> None:
        self._loop = loop
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._reply: Reply | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._heard = 0.0
        """When something was heard last, or the request sent, or the connection given back; of the loop's clock."""
        self._head_bytes = 0
        self._head_ended = False
        self._has_length = False
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------------------------------------------- use

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def idle(self) -> float:
        """Seconds since it was given back."""
        return self._loop.time() - self._heard

    def ask(self, head: bytes, body: bytes, on_end: Callable[[], None]) -> Reply:
        """Send a request; the answer's head is awaited of what is returned."""
        assert self._transport is not None
        assert self._reply is None, "one call at a time"
        reply = self._reply = Reply(self, on_end)
        self._heard = self._loop.time()
        self._head_bytes, self._head_ended, self._has_length = 0, False, False
        self._transport.write(head + body if len(body) < HIGH_WATER else head)
        if len(body) >= HIGH_WATER:
            self._transport.write(body)
        if self._timer is None:
            self._timer = self._loop.call_later(self._pool.silence, self._look)
        return reply

    def resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._heard = self._loop.time()
            self._transport.resume_reading()

    def abort(self) -> None:
        self._end(aiohttp.ClientConnectionError("the connection was closed"))

    def _look(self) -> None:
        """Whether the engine has been silent for too long, or nobody needs the connection."""
        self._timer = None
        if not self.usable:
            return
        bound = self._pool.keep_alive if self._reply is None else self._pool.silence
        left = self._heard + bound - self._loop.time()
        if left > 0 or self._paused:
            self._timer = self._loop.call_later(max(left, 0.001) if not self._paused else bound, self._look)
        else:
            self._end(TimeoutError(f"silent for {bound:g} s"))

    def _end(self, error: Exception | None) -> None:
        """Close the connection; `error`: why the answer is not whole."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        self._pool.forget(self)
        reply, self._reply = self._reply, None
        if reply is not None:
            reply.finish(error)

    # --------------------------------------------------------------------------------------------------------- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's own class is no subclass of it

    def data_received(self, data: bytes) -> None:
        if self._reply is None:
            self._end(None)  # nobody asked
            return
        if self._head_ended:
            self._heard = self._loop.time()
        else:  # drop by drop is silence too
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end(aiohttp.ClientPayloadError("the engine wants to speak another protocol"))
        except httptools.HttpParserError as error:
            self._end(aiohttp.ClientPayloadError(f"this is no HTTP: {error}"))
        else:
            if not self._head_ended and self._head_bytes > MAX_HEAD_BYTES:
                self._end(aiohttp.ClientPayloadError(f"the head is larger than {MAX_HEAD_BYTES} bytes"))

    def connection_lost(self, error: Exception | None) -> None:
        reply = self._reply
        if reply is None:
            self._end(None)
        elif not self._head_bytes:
            self._end(aiohttp.ServerDisconnectedError())
        elif self._head_ended and not self._has_length and error is None:
            self._end(None)  # an answer without a length ends with its connection (RFC 9112, section 6.3)
        else:
            self._end(aiohttp.ClientPayloadError("the connection was closed in the middle of the answer"))

    # ------------------------------------------------------------------------------------------------------- httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reply is not None and not self._head_ended:  # else it is a trailer
            self._reply.raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        reply = self._reply
        if reply is None:
            return
        status = self._parser.get_status_code()
        if status in _INFORMATIONAL:
            reply.raw_headers = []
            return
        names = {name.lower() for name, _ in reply.raw_headers}
        self._has_length = status in _BODILESS or b"content-length" in names or b"transfer-encoding" in names
        self._head_ended = True
        self._heard = self._loop.time()
        reply.status, reply.begun = status, True
        reply.wake()

    def on_body(self, part: bytes) -> None:
        reply = self._reply
        if reply is None:
            return
        if not reply.take(part) and self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        reply.wake()

    def on_message_begin(self) -> None:
        if self._head_ended:  # a second answer to one request
            self._end(None)

    def on_message_complete(self) -> None:
        reply = self._reply
        if reply is None or not self._head_ended:
            return  # of an informational answer
        if self._has_length and self._parser.should_keep_alive():
            self._reply = None
            self._heard = self._loop.time()
            self.resume()
            self._pool.give_back(self)
            reply.finish(None)
        else:
            self._end(None)


class Pool:
    """The kept connections to one engine."""

    def __init__(self, url: str, *, connect_timeout: float, silence: float, keep_alive: float) -> None:
        """`url`: the engine's base URL; times in seconds."""
        parts = URL(url)
        self._host = parts.host or ""
        self._port = parts.port or 80
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._base = parts.raw_path.rstrip("/").encode()
        host = f"[{self._host}]" if ":" in self._host else self._host
        default = parts.is_default_port()
        self._host_line = f"Host: {host if default else f'{host}:{self._port}'}\r\n".encode("latin-1")
        self._connect_timeout = connect_timeout
        self.silence = silence
        self.keep_alive = keep_alive
        self._idle: list[_Wire] = []
        self._all: set[_Wire] = set()

    def head(self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]], size: int | None) -> bytes:
        """A request's head; `size` of its body in bytes, None: it has none."""
        lines = [b"%b %b%b HTTP/1.1\r\n" % (method.encode(), self._base, path.encode()), self._host_line]
        lines += [b"%b: %b\r\n" % header for header in headers]
        lines.append(b"\r\n" if size is None else b"content-length: %d\r\n\r\n" % size)
        return b"".join(lines)

    async def ask(self, head: bytes, body: bytes, on_end: Callable[[], None]) -> Reply:
        """The answer's head. `on_end` is called when the connection is free or closed, also where this raises.

        Raises aiohttp.ClientConnectorError or ConnectionTimeoutError where no connection was made, ServerDisconnectedError
        where it was closed before anything was answered, another ClientError or TimeoutError for an answer that broke.
        """
        try:
            wire = self._take() or await self._connect()
        except BaseException:
            on_end()
            raise
        reply = wire.ask(head, body, on_end)
        try:
            await reply.head()
        except BaseException:
            reply.close()
            raise
        return reply

    def close(self) -> None:
        for wire in list(self._all):
            wire.abort()

    def give_back(self, wire: _Wire) -> None:
        self._idle.append(wire)

    def forget(self, wire: _Wire) -> None:
        self._all.discard(wire)
        if wire in self._idle:
            self._idle.remove(wire)

    def _take(self) -> _Wire | None:
        while self._idle:
            wire = self._idle.pop()
            if wire.usable and wire.idle < self.keep_alive:
                return wire
            wire.abort()
        return None

    async def _connect(self) -> _Wire:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, wire = await loop.create_connection(lambda: _Wire(loop, self), self._host, self._port, ssl=self._tls)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(
                f"no connection to {self._host}:{self._port} within {self._connect_timeout:g} s"
            ) from error
        except OSError as error:  # ssl's errors among them
            key = ConnectionKey(self._host, self._port, self._tls is not None, True, None, None, None)
            raise aiohttp.ClientConnectorError(key, error) from error
        self._all.add(wire)
        return wire
