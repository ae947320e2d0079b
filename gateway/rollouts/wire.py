"""A body of msgpack comes in as one of JSON would.

Invariants: what is neither is refused by its content type, because a foreign web page can send everything else unasked.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec
from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from gateway.replies import Refusal

MSGPACK: Final = "application/msgpack"
_NAMES: Final = (b"application/msgpack", b"application/x-msgpack", b"application/vnd.msgpack")


class _Unpacked(Request):
    """A request whose body was msgpack, for a framework that reads JSON."""

    def __init__(self, request: Request, value: Any) -> None:
        headers = [(name, said) for name, said in request.scope["headers"] if name != b"content-type"]
        headers.append((b"content-type", b"application/json"))
        super().__init__({**request.scope, "headers": headers}, request.receive)
        self._body = b"read"
        self._value = value

    async def json(self) -> Any:
        return self._value


class BodyRoute(APIRoute):
    """A route that takes JSON and msgpack alike."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def either(request: Request) -> Response:
            if not is_msgpack(request):
                return await handle(request)
            body = await request.body()
            if not body:
                return await handle(request)
            try:
                value = msgspec.msgpack.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise Refusal(400, f"the body is not msgpack: {error}", code="invalid_msgpack") from error
            return await handle(_Unpacked(request, value))

        return either


def is_msgpack(request: Request) -> bool:
    """Whether the body is said to be msgpack."""
    for name, value in request.scope["headers"]:
        if name == b"content-type":
            return value.split(b";")[0].strip().lower() in _NAMES
    return False
