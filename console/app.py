"""People and programs ask for the status here: `/` is the page, `/status.json` its data.

Invariants: nothing can be changed through these routes; only loopback names are answered, so that no other site's page can
read them through a browser; the page loads nothing from anywhere else.
"""

import asyncio
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.base import RequestResponseEndpoint

from claw_r1 import health
from claw_r1.errors import UserError
from claw_r1.settings import ConsoleSettings
from console.board import Board
from console.page import render
from console.status import Status

STATIC: Final = Path(__file__).parent / "static"
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
HEADERS: Final = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def make_app(board: Board) -> FastAPI:
    """The console's routes on a board."""
    app = FastAPI(title="Claw-R1 console", openapi_url=None)

    @app.middleware("http")
    async def guard(request: Request, call_next: RequestResponseEndpoint) -> Response:
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname
        if host not in LOOPBACK:
            return Response("This console answers to loopback names only.\n", 421, media_type="text/plain")
        response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return render(await board.status())

    @app.get("/status.json")
    async def data() -> Status:
        return await board.status()

    @app.get("/healthz")
    @app.get("/readyz")
    @app.get("/metrics")
    async def own_health(request: Request) -> Response:
        found = health.answer(request.url.path, lambda: None)
        assert found is not None
        status, content_type, body = found
        return Response(body, status, media_type=content_type.decode())

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


async def run(settings: ConsoleSettings, stop: asyncio.Event) -> None:
    """Serve until `stop`. Raises UserError for an address that others could reach, OSError if the port is taken."""
    if settings.host not in LOOPBACK:
        raise UserError(
            f"CLAW_CONSOLE_HOST={settings.host}: the console has no access control and listens on loopback only. "
            "Leave the setting out, and reach it from elsewhere through `ssh -L`."
        )
    async with Board.opened(settings) as board:
        server = health.AppServer(settings.host, settings.port, make_app(board))
        await server.start()
        try:
            await stop.wait()
        finally:
            await server.stop()
