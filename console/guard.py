"""Every request is judged here before a route sees it: the name it was sent to, the page that sent it, the key it shows.

Invariants: only known names are answered, so that no other site's page reads through a browser; what changes something comes
from our own page or from no page at all; off loopback, data need a key: with an admin's everything is
shown and written, with one of a run that run is shown. Pure but for the ASGI shell below.
"""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse

from claw_r1 import keys

COOKIE: Final = "claw_key"
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
SAFE: Final = frozenset({"GET", "HEAD"})
OPEN: Final = ("/static/", "/healthz", "/readyz", "/session")
"""Paths that hold no data."""
POLICY: Final = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data:",
        "object-src 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)
VERSION: Final = "x-console-pages"
"""Says which files the console serves now: a page that is made of others reads itself anew (`static/lib/api.js`)."""
HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request says of itself."""

    method: str
    path: str
    host: str
    origin: str | None
    content_type: str
    key: str | None


@dataclass(frozen=True, slots=True)
class Rules:
    """Whom this console answers; `given` is None where no key is asked for."""

    names: frozenset[str]
    given: keys.Secrets | None


@dataclass(frozen=True, slots=True)
class Refusal:
    status: int
    code: str
    message: str


def judge(asked: Asked, rules: Rules, now: float) -> Refusal | keys.Key | None:
    """Why a request is refused, or the key by which it is not; None where it needs none. `now` in seconds since the epoch."""
    if _name(asked.host) not in rules.names:
        return Refusal(
            421,
            "wrong_host",
            f"this console does not answer to the name {_name(asked.host)!r}: CLAW_CONSOLE_NAMES lists those it has",
        )
    if asked.origin is not None and urlsplit(asked.origin).netloc != asked.host:
        return Refusal(403, "wrong_origin", "a page of another site asked: the console answers its own pages only")
    if asked.method not in SAFE and asked.content_type.partition(";")[0].strip() != "application/json":
        return Refusal(415, "not_json", "what changes something is sent as application/json")
    if rules.given is None or asked.path.startswith(OPEN):
        return None
    return whose(asked.key, rules.given, now)


def whose(key: str | None, given: keys.Secrets, now: float) -> Refusal | keys.Key:
    """What a key says, or why it opens nothing."""
    if key is None:
        return Refusal(
            401,
            "no_key",
            "this console needs a key: `claw keys mint --scope admin` makes one, with `--scope analyst --run RUN` one of a run",
        )
    try:
        found = keys.verify(key, given, now)
    except keys.BadKey as error:
        return Refusal(401, error.code, str(error))
    if found.scope not in ("admin", "analyst"):
        return Refusal(
            403,
            "wrong_scope",
            f"the console needs an admin's key, or an analyst's for one run, not a {found.scope} key",
        )
    return found


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def read(request: Request) -> Asked:
    """What a request says of itself."""
    headers = request.headers
    kind, _, token = headers.get("authorization", "").partition(" ")
    key = token.strip() if kind.lower() == "bearer" else None
    if key is None and (cookie := headers.get("cookie")):
        try:
            morsel = SimpleCookie(cookie).get(COOKIE)
        except CookieError:
            morsel = None
        key = morsel.value if morsel is not None else None
    return Asked(
        method=request.method,
        path=request.url.path,
        host=headers.get("host", ""),
        origin=headers.get("origin"),
        content_type=headers.get("content-type", ""),
        key=key,
    )


class Guard:
    """ASGI: refuses, or passes on and puts the policy's headers on the answer, with the `version` of the pages' files."""

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], rules: Rules, pages: frozenset[str], version: str
    ) -> None:
        self._app = app
        self._rules = rules
        self._pages = pages
        self._headers = {**HEADERS, VERSION: version}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                have = {name for name, _ in message["headers"]}
                more = self._headers if b"cache-control" in have else {**self._headers, "cache-control": "no-store"}
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in more.items())]
            await send(message)

        asked = read(Request(scope))
        found = judge(asked, self._rules, time.time())
        if isinstance(found, Refusal) and not (found.status in (401, 403) and self._is_page(asked)):
            body = {"error": {"code": found.code, "message": found.message}}
            return await JSONResponse(body, found.status)(scope, receive, send_with_headers)
        if not isinstance(found, Refusal):  # else it is the empty page, and no route of data finds a run
            scope.setdefault("state", {})["run"] = None if found is None else found.run_id
        return await self._app(scope, receive, send_with_headers)

    def _is_page(self, asked: Asked) -> bool:
        """Whether it is the empty page, which asks for the key itself."""
        top = asked.path.split("/")[1]
        return asked.method in SAFE and asked.origin is None and not asked.path.endswith(".json") and top in self._pages
