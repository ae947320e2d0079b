"""A process says whether it lives, whether it is ready, its version, and what it counted: `/healthz`, `/readyz`, `/metrics`.

For processes that serve nothing else; the gateway and the console mount the same answers beside their own routes.
"""

import asyncio
import contextlib
import importlib.metadata
import json
import os
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from functools import cache
from typing import Any

import prometheus_client
import uvicorn
from prometheus_client import multiprocess

GRACE_S = 5
"""Seconds that requests in flight may take at the stop; a live stream would never end."""
Ready = Callable[[], str | None]
"""None when ready, else the reason why not."""
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def answer(path: str, ready: Ready) -> tuple[int, bytes, bytes] | None:
    """(status, content type, body) of a health path; None if the path is another."""
    if path == "/healthz":
        return 200, b"application/json", b'{"status": "alive"}'
    if path == "/readyz":
        reason = ready()
        body = {"status": "ready"} if reason is None else {"status": "waiting", "reason": reason}
        body["version"] = version()
        return (200 if reason is None else 503), b"application/json", json.dumps(body).encode()
    if path == "/metrics":
        return 200, prometheus_client.CONTENT_TYPE_LATEST.encode(), _metrics()
    return None


@cache
def version() -> str:
    """Of claw-r1, as it was installed; `unknown` where only its files were copied."""
    try:
        return importlib.metadata.version("claw-r1")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _metrics() -> bytes:
    """Of this process, or of all processes that share a port."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return prometheus_client.generate_latest()
    registry = prometheus_client.CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return prometheus_client.generate_latest(registry)


async def respond(send: Send, status: int, content_type: bytes, body: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def health_app(ready: Ready) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An ASGI app of the three paths."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        found = answer(scope["path"], ready) or (
            404,
            b"application/json",
            b'{"error": "try /healthz /readyz /metrics"}',
        )
        await respond(send, *found)

    return app


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process owns its signals: this server must not take them."""
        yield


class AppServer:
    """Serves an ASGI app inside the running event loop."""

    def __init__(self, host: str, port: int, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises OSError if the port is taken."""
        self._task = asyncio.create_task(self._server.serve(), name="http")
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise OSError("the HTTP server stopped at its start")
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._server.should_exit = True
        if self._task is not None:
            await self._task


class HealthServer(AppServer):
    """Serves the three paths and nothing else."""

    def __init__(self, host: str, port: int, ready: Ready) -> None:
        super().__init__(host, port, health_app(ready))
