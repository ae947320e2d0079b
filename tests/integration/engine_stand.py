"""A scripted engine that tells its health, its version and its weights, and can be stopped and started at the same port."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from claw_r1.local.ports import find_port
from tests.integration.gateway_stand import a_reply


@dataclass
class Vllm:
    """Answers chats at once, or when `hold` is set; `weights` is what /weight_info says."""

    port: int = field(default_factory=find_port)
    version: str = "0.32.0"
    weights: str | None = None
    health: int = 200
    status: int = 200
    hold: asyncio.Event | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def id(self) -> str:
        return f"127.0.0.1-{self.port}"

    async def start(self) -> None:
        app = web.Application()
        app.add_routes([web.post("/v1/chat/completions", self._chat), web.get("/{path:.*}", self._get)])
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _chat(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers.get("authorization"))
        self.asked.append(json.loads(await request.read()))
        if self.hold is not None:
            await self.hold.wait()
        reply = a_reply([1, 2, 3], [4, 5])
        del reply["choices"][0]["weight_versions"]
        return web.json_response(reply, status=self.status)

    async def _get(self, request: web.Request) -> web.Response:
        self.paths.append(request.path)
        answers: dict[str, Any] = {
            "/version": {"version": self.version},
            "/v1/models": {"object": "list", "data": [{"id": "tiny", "object": "model"}]},
        }
        if self.weights is not None:
            answers["/weight_info"] = {"weight_version": self.weights}
        if request.path == "/health":
            return web.Response(status=self.health)
        if request.path not in answers:
            return web.json_response({"detail": "Not Found"}, status=404)
        return web.json_response(answers[request.path])


@contextlib.asynccontextmanager
async def vllms(*engines: Vllm) -> AsyncIterator[None]:
    """Listening engines."""
    try:
        for engine in engines:
            await engine.start()
        yield
    finally:
        for engine in engines:
            await engine.stop()
