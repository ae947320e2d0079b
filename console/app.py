"""People and programs look at the pool here: every page is one empty document, and its data stand under its address + `.json`.

Invariants: a page loads nothing from anywhere else; every request passes the guard; an error says what to do, as JSON.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from claw_r1 import health, keys
from claw_r1.clickhouse import QueryRefused
from claw_r1.errors import DependencyUnreachable, Overloaded, RetryableError, UserError
from claw_r1.settings import ConsoleSettings
from console import asking, curation, exporting, screens, training
from console.assets import KEPT, Assets
from console.board import Board
from console.commands import Commands
from console.exports import Exports
from console.feed import Feed
from console.filters import WrongFilter
from console.guard import COOKIE, LOOPBACK, Guard, Refusal, Rules, whose
from console.reader import Reader
from console.runs import Runs
from console.texts import Texts

STATIC: Final = Path(__file__).parent / "static"
SLOW: Final = 60.0
"""Seconds that a dry run or a comparison may take."""
WAYS_TO_FAIL: Final = (
    (screens.NotFound, 404),
    (screens.ReadOnly, 403),
    (Overloaded, 503),
    (QueryRefused, 502),
    (DependencyUnreachable, 503),
    (RetryableError, 503),
    (UserError, 400),
)


@contextlib.asynccontextmanager
async def opened(
    settings: ConsoleSettings, sharing: screens.Console | None = None, run: str | None = None
) -> AsyncIterator[screens.Console]:
    """What the routes share, for the length of the block; the feed runs inside it.

    With a `run`, what shows that run alone and writes nothing; it shares with `sharing` what is the same for all runs.
    """
    shown = settings if run is None else settings.model_copy(update={"read_only": True})
    reader = Reader(settings, run=run)
    slow = Reader(settings, run=run, timeout=SLOW, at_once=2)
    exports = Exports()
    async with Board.opened(shown, reader) as board:

        async def status() -> dict[str, Any]:
            return (await board.status()).model_dump(mode="json")

        looks = {"trajectories": partial(screens.look, reader), "groups": partial(screens.look_for_groups, reader)}
        feed = Feed(looks, status)
        running = asyncio.create_task(feed.run(), name="feed")
        try:
            yield screens.Console(
                settings=shown,
                run=run,
                reader=reader,
                slow=slow,
                board=board,
                feed=feed,
                texts=sharing.texts if sharing else Texts(settings.tokenizers),
                schema=sharing.schema if sharing else asking.keep_schema(reader, settings.database),
                commands=sharing.commands if sharing else Commands(settings),
                exports=exports,
                beside_log=not settings.read_only,
            )
        finally:
            running.cancel()
            await asyncio.wait([running])
            await reader.close()
            await slow.close()
            exports.close()


def make_app(console: screens.Console, settings: ConsoleSettings) -> FastAPI:
    """The console's routes."""
    app = FastAPI(title="Claw-R1 console", openapi_url=None)
    app.state.runs = Runs(partial(opened, settings, console))
    app.add_exception_handler(RequestValidationError, _fail_reading)
    for kind, status in WAYS_TO_FAIL:
        app.add_exception_handler(kind, partial(_fail, status))
    given = None if keys.is_loopback(settings.host) else keys.Secrets.of(settings.secret)
    rules = Rules(LOOPBACK | {settings.host, *settings.names}, given)
    assets = Assets.read(STATIC)
    app.add_middleware(Guard, rules=rules, pages=screens.PAGES, version=assets.version)

    async def enter(request: Request) -> None:
        run = request.state.run
        request.state.console = console if run is None else await app.state.runs.of(run)

    for routes in (screens.routes, curation.routes, training.routes, asking.routes, exporting.routes):
        app.include_router(routes, dependencies=[Depends(enter)])
    _own_routes(app, given)

    @app.get("/static/{path:path}")
    async def file(path: str) -> Response:
        found = assets.find(path)
        if found is None:
            raise screens.NotFound("there is no such file, or it is of another version: read the page anew")
        content, kind = found
        return Response(content, media_type=kind, headers={"cache-control": KEPT})

    @app.get("/")
    async def first() -> Response:
        return RedirectResponse("/flow")

    @app.get("/{page:path}")
    async def page(page: str, request: Request) -> Response:
        if page.split("/")[0] not in screens.PAGES or page.endswith(".json"):
            raise screens.NotFound(f"there is no page /{page[:80]}: /flow is the first")
        parts = [unquote(part) for part in request.scope["raw_path"].decode("latin-1").strip("/").split("/")]
        return HTMLResponse(assets.page(parts, request.query_params), headers={"cache-control": "no-store"})

    return app


def _own_routes(app: FastAPI, given: keys.Secrets | None) -> None:
    @app.get("/healthz")
    @app.get("/readyz")
    @app.get("/metrics")
    async def own_health(request: Request) -> Response:
        found = health.answer(request.url.path, lambda: None)
        assert found is not None
        status, content_type, body = found
        return Response(body, status, media_type=content_type.decode())

    @app.post("/session")
    async def session(request: Request) -> Response:
        """A browser shows its key once and keeps it where no script reads it."""
        body = await request.json()
        key = str(body.get("key", "")) if isinstance(body, dict) else ""
        found = whose(key, given, time.time()) if given is not None else None
        if isinstance(found, Refusal):
            return JSONResponse({"error": {"code": found.code, "message": found.message}}, found.status)
        done = JSONResponse({"ok": True})
        done.set_cookie(COOKIE, key, httponly=True, samesite="strict", secure=request.url.scheme == "https")
        return done


async def _fail(status: int, _: Request, error: Exception) -> Response:
    body: dict[str, Any] = {"code": type(error).__name__, "message": str(error)}
    if isinstance(error, WrongFilter):
        body["position"] = error.position
    headers = {"retry-after": "1"} if status == 503 else {}
    return Response(json.dumps({"error": body}), status, headers, "application/json")


async def _fail_reading(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    return await _fail(400, request, UserError(f"{place}: {first['msg']}" if place else str(first["msg"])))


async def run(settings: ConsoleSettings, stop: asyncio.Event) -> None:
    """Serve until `stop`. Raises WrongUse for an address that others reach and no secret, OSError if the port is taken."""
    keys.check_listening("the console", settings.host, keys.Secrets.of(settings.secret))
    async with opened(settings) as console:
        app = make_app(console, settings)
        server = health.AppServer(settings.host, settings.port, app)
        await server.start()
        try:
            await stop.wait()
        finally:
            await console.feed.close()
            await app.state.runs.close()
            await server.stop()
