"""A request's body comes in and an answer goes out, over one ASGI connection.

Invariants: a body never grows past its bound; what is sent after an answer began is in-band; a caller that hangs up is
noticed while an engine works.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any, Final, Self

from gateway.dialects.base import Dialect
from gateway.patience import within
from gateway.replies import Headers, Refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_TIMEOUT: Final = 60.0
"""Longest wait for the next part of a request's body, seconds."""


DISCARD_TIMEOUT: Final = 10.0
"""Longest time for which a body that is too large is read and thrown away, seconds."""
DISCARD_SILENCE: Final = 1.0


SEND_TIMEOUT: Final = 300.0
"""Longest time for which a caller may read nothing of what it is sent, seconds."""


class HungUp(Exception):
    """The caller closed its connection, or reads no more from it."""


async def send_on(send: Send, message: Message) -> None:
    """Send when the caller reads. Raises HungUp if it does not."""
    try:
        with within(SEND_TIMEOUT):
            await send(message)
    except TimeoutError as error:
        raise HungUp from error


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises Refusal(413 or 408), or HungUp."""
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limit:
            await _discard(scope, receive)
            raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            with within(BODY_TIMEOUT):
                message = await receive()
        except TimeoutError as error:
            raise Refusal(408, f"no more of the body came for {BODY_TIMEOUT:g} s", code="body_timeout") from error
        if message["type"] == "http.disconnect":
            raise HungUp
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            parts.clear()
            await _discard(scope, receive)
            raise _too_large(limit)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def _discard(scope: Scope, receive: Receive) -> None:
    """Read on for a while: a caller that still sends when its connection is closed may never see the answer."""
    if any(name == b"expect" for name, _ in scope["headers"]):
        return  # it waits for leave to send
    try:
        async with asyncio.timeout(DISCARD_TIMEOUT):
            while True:
                async with asyncio.timeout(DISCARD_SILENCE):
                    message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return  # whoever sends without end gets its answer now, or a closed connection


def _too_large(limit: int) -> Refusal:
    return Refusal(
        413,
        f"the body is larger than {limit} bytes: send less, or raise CLAW_GATEWAY_MAX_BODY_BYTES",
        code="body_too_large",
        headers=[(b"connection", b"close")],
    )


def check_json(scope: Scope) -> None:
    """Raise Refusal(415) unless the body is said to be JSON: a foreign web page can send everything else unasked."""
    for name, value in scope["headers"]:
        if name == b"content-type" and b"json" in value.lower():
            return
    raise Refusal(415, "send the body with the header content-type: application/json", code="not_json")


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was already read, then what comes after it."""
    return _Replayed(body, receive).receive


class _Replayed:
    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    @property
    def disconnected(self) -> bool | None:
        return has_left(self._receive)

    async def receive(self) -> Message:
        body, self._body = self._body, None
        return await self._receive() if body is None else {"type": "http.request", "body": body, "more_body": False}


def has_left(receive: Receive) -> bool | None:
    """Whether the caller has closed its connection, as far as the server says so at once; None: `receive` must be awaited."""
    said = getattr(getattr(receive, "__self__", None), "disconnected", None)  # uvicorn's own word
    return said if isinstance(said, bool) else None


class Answer:
    """One answer: whole, or begun and continued."""

    def __init__(self, send: Send, dialect: Dialect | None = None) -> None:
        self._plain_send = send
        self._tap: Callable[[Message], None] | None = None
        self._dialect = dialect
        self.headers: Headers = []
        """Sent with whatever answer is given."""
        self.begun = False

    def tap(self, tap: Callable[[Message], None]) -> None:
        """Give `tap` whatever is answered from here on."""
        self._tap = tap

    async def _send(self, message: Message) -> None:
        if self._tap is not None:
            self._tap(message)
        await send_on(self._plain_send, message)

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [*headers, length])
        await self._send({"type": "http.response.body", "body": body})

    async def begin(self, status: int, headers: Headers) -> None:
        await self._start(status, headers)

    async def go_on(self, body: bytes) -> None:
        if body:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": body})

    async def refuse(self, refusal: Refusal) -> None:
        """An error status, or, once the answer has begun, an in-band error without the terminal event."""
        if self.begun:
            await self.end(refusal.event if self._dialect is None else self._dialect.break_off(refusal))
        else:
            body = refusal.body if self._dialect is None else self._dialect.refusal(refusal)
            await self.whole(refusal.status, refusal.headers, body)

    async def _start(self, status: int, headers: Headers) -> None:
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *self.headers]})


class hang_up:  # used as `async with hang_up(receive)`, like asyncio.timeout
    """Within it, HungUp is raised as soon as the caller closes its connection."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._hung_up = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watcher.cancel()
        if self._hung_up and self._task is not None and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise HungUp from error

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._hung_up = True
        if self._task is not None:
            self._task.cancel()
