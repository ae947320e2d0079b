"""The least that a proxy in Python can do: raw ASGI in, aiohttp out, bytes as they come, nothing captured.

`python -m benchmarks.passthrough PORT UPSTREAM`. The gateway's own server and client libraries with the same settings, so
that the distance to it is what capture and durability cost.
"""

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp
import uvicorn

Message = MutableMapping[str, Any]

_DROPPED = frozenset({"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding"})


class PassThrough:
    """An ASGI application that hands every request to one engine."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._session: aiohttp.ClientSession | None = None

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        parts = []
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        async with self._session.request(
            scope["method"], self._upstream + scope["path"], data=b"".join(parts), headers=headers
        ) as response:
            passed = [
                (k.lower().encode(), v.encode()) for k, v in response.headers.items() if k.lower() not in _DROPPED
            ]
            if response.content_length is not None:
                passed.append((b"content-length", str(response.content_length).encode()))
            await send({"type": "http.response.start", "status": response.status, "headers": passed})
            async for data in response.content.iter_any():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def main(port: int, upstream: str) -> None:
    """Serve until the process is ended."""
    uvicorn.run(
        PassThrough(upstream),
        host="127.0.0.1",
        port=port,
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=75,
        backlog=4096,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
