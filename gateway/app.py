"""A request finds its handler: model calls go straight to the proxy, all else to the rollout API.

Invariants:
- the hot path is plain ASGI; a gateway that cannot record serves no call and says why in /readyz;
- nothing looks at a request before its key was held against its path; what handles it finds the key in
  `scope["state"]["key"]` (None: it came without), and no key of ours among the headers;
- a refusal has the shape of the dialect in which the call was made.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from claw_r1 import health
from claw_r1.blobs import open_blobs
from claw_r1.errors import RetryableError, needing
from claw_r1.keys import Key, Secrets, check_listening, is_loopback
from claw_r1.settings import GatewaySettings
from gateway.access import Access, check_listed, check_target, place
from gateway.calls.feedback import Responses
from gateway.calls.media import Media
from gateway.calls.proxy import Proxy
from gateway.dialects.base import Dialect
from gateway.dialects.known import dialects
from gateway.durable.recorder import Recorder
from gateway.durable.spool import Spool
from gateway.exchange import Answer, HungUp, Message, Receive, Scope, Send, read_body, replay
from gateway.limits import Limits, check_max_tokens
from gateway.replies import Refusal, internal, unavailable
from gateway.rollouts.admission import Groups
from gateway.rollouts.api import make_api
from gateway.rollouts.demand import make_demand
from gateway.rollouts.gate import Gate
from gateway.routes import Route, find, match, spoken
from gateway.sessions import Sessions
from gateway.upstream.admin import make_admin
from gateway.upstream.fleet import Fleet

if TYPE_CHECKING:
    from gateway.tracing import Tracing

log = logging.getLogger("claw.gateway")

PLACES_PER_CHAIN = 4
"""A trajectory's place is small and forgetting it costs a look-up's certainty: more of them are held than chains."""
_PROBES = {"/healthz": "GET /healthz", "/readyz": "GET /readyz", "/metrics": "GET /metrics"}
_GUARDS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
"""Answers of the gateway itself are read as what they are, and nobody keeps them: some hold keys."""


class Gateway:
    """The ASGI application with what it runs on.  Raises WrongUse off loopback without a secret."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        secrets = Secrets.of(settings.secret)
        check_listening("the gateway", settings.host, secrets)
        self._access = Access(secrets, loopback=is_loopback(settings.host))
        self._limits = Limits(calls=settings.key_calls, rate=settings.key_rate)
        spool = _spool(settings)
        self._recorder = Recorder(settings.kafka, settings.ack_timeout, ack=settings.ack, spool=spool)
        groups = Groups(settings.max_trajectories)
        self._sessions = Sessions(
            settings.kafka,
            settings.run,
            PLACES_PER_CHAIN * settings.max_trajectories,
            settings.ack_timeout,
            self._recorder,
            groups,
        )
        self._gate = Gate(
            settings.kafka,
            self._recorder,
            self._sessions,
            groups,
            refuses=settings.admission == "on",
            deadline=settings.ack_timeout,
        )
        self.fleet = Fleet(settings, self._recorder)
        self._dialects = dialects(strip=settings.strip, merge_system=settings.merge_system)
        self._responses = Responses(settings.max_responses)
        self._blobs = open_blobs(settings.blobs)
        self._media = Media(
            self._blobs,
            max_bytes=settings.media_bytes,
            timeout=settings.media_timeout,
            private=settings.media_private,
        )
        self._tracing = _tracing(self.fleet) if settings.trace else None
        self._proxy = Proxy(
            settings,
            self._recorder,
            self._sessions,
            self.fleet,
            self._blobs,
            self._media,
            self._responses,
            self._gate,
            self._tracing,
        )
        self.api = make_api(
            settings,
            self._recorder,
            self._sessions,
            self.fleet,
            self._limits,
            self._proxy.memory,
            blobs=self._blobs,
            responses=self._responses,
            gate=self._gate,
            others=[make_admin(self.fleet, default_run=settings.run), make_demand(self._gate)],
        )
        self.draining = False

    def ready(self) -> str | None:
        """None when calls are served, else the reason why not."""
        if self.draining:
            return "draining: the process is about to stop"
        # While facts go to the spool, what was read before the outage serves.
        fleet = None if self._recorder.spooling and self.fleet.was_read else self.fleet.reason
        return self._recorder.reason or self._sessions.reason or fleet

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connected in the background from here on; flushed and disconnected at the end."""
        self.fleet.start()
        self._media.start()
        self._recorder.start()
        self._sessions.start()
        self._gate.start()
        try:
            yield
        finally:
            await asyncio.gather(self._gate.stop(), self._sessions.stop())
            await self._recorder.stop()
            await self.fleet.stop()
            await self._media.stop()
            if self._tracing is not None:
                await self._tracing.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._serve(scope, receive, watched)
        except Refusal as refusal:
            await Answer(_guarded(send), self._dialect_of(scope)).refuse(refusal)
        except HungUp:
            return
        except Exception:  # a fault of this program: its caller gets an answer of the usual shape
            log.exception("a request failed", extra={"method": scope["method"], "path": scope["path"][:200]})
            if begun:
                raise  # the server breaks the answer off
            await Answer(_guarded(send), self._dialect_of(scope)).refuse(internal())

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        route = match(scope["method"], path)
        found = self._access.identify(scope["headers"], time.time())
        if route is not None:
            key = self._access.allow(route.entry, found)
            scope.setdefault("state", {})["key"] = key
            scope["headers"] = self._access.strip(scope["headers"])
            await self._call(scope, receive, send, place(route, found), key)
        elif path in _PROBES:
            self._access.allow(_PROBES[path], found)
            answer = health.answer(path, self.ready)
            assert answer is not None
            await health.respond(send, *answer)
        else:
            listed = find(scope["method"], path)
            key = self._access.allow(listed.entry, found)
            check_listed(key, listed)
            scope.setdefault("state", {})["key"] = key
            scope["headers"] = self._access.strip(scope["headers"])
            body = await self._body(scope, receive, key)
            await self.api(scope, replay(body, receive), _guarded(send))

    async def _call(self, scope: Scope, receive: Receive, send: Send, route: Route, key: Key | None) -> None:
        """A hot path whose key was taken."""
        if key is None or route.kind == "models":
            await self._make(scope, receive, send, route)
            return
        self._limits.enter(key.jti, time.monotonic())
        try:
            if self._settings.key_body_bytes or self._settings.key_max_tokens:
                body = await self._body(scope, receive, key)
                if self._settings.key_max_tokens and route.kind != "count_tokens":
                    check_max_tokens(body, self._settings.key_max_tokens)
                receive = replay(body, receive)
            if route.kind != "count_tokens":
                route = await self._in_its_run(route, key)
            await self._make(scope, receive, send, route)
        finally:
            self._limits.leave(key.jti)

    async def _make(self, scope: Scope, receive: Receive, send: Send, route: Route) -> None:
        """Once it is known what the call may do and where it belongs."""
        if route.kind == "models":
            await self._proxy.models(scope, receive, send)
        elif route.kind == "count_tokens":
            await self._proxy.count_tokens(scope, receive, send, self._dialects["messages"])
        else:
            await self._proxy.call(scope, receive, send, self._dialects[route.kind], route)

    async def _in_its_run(self, route: Route, key: Key) -> Route:
        """The route with its prompt. Raises Refusal: 403 if the trajectory is another run's, 404 if no prompt is known."""
        assert route.trajectory_uid is not None
        if not key.binds and route.prompt_uid is not None:
            return route
        try:
            known = await self._sessions.find(route.trajectory_uid)
        except RetryableError as error:
            raise unavailable(f"the trajectory's run could not be read: {error}", code="not_recorded") from error
        if known is not None:
            check_target(key, run_id=known.run_id, prompt_uid=known.prompt_uid if route.prompt_uid is None else None)
        if route.prompt_uid is not None:
            return route
        if known is None:
            raise Refusal(
                404,
                f"neither the key nor this gateway knows the prompt of trajectory {route.trajectory_uid}: use the base URL "
                "http://…/{trajectory_uid}/{prompt_uid}/v1, or a key with a prompt_uid (`claw keys mint --prompt …`)",
                param="prompt_uid",
                code="no_prompt",
            )
        return replace(route, prompt_uid=known.prompt_uid)

    async def _body(self, scope: Scope, receive: Receive, key: Key | None) -> bytes:
        """The whole body, as large as the caller may send it."""
        most = self._settings.max_body_bytes
        if key is None or not 0 < self._settings.key_body_bytes < most:
            return await read_body(scope, receive, most)
        try:
            return await read_body(scope, receive, self._settings.key_body_bytes)
        except Refusal as refusal:
            if refusal.status != 413:
                raise
            raise Refusal(
                413,
                f"the body is larger than {self._settings.key_body_bytes} bytes, the most that may come with a key "
                "(CLAW_GATEWAY_KEY_BODY_BYTES)",
                code="key_body_too_large",
                headers=refusal.extra,
            ) from refusal

    def _dialect_of(self, scope: Scope) -> Dialect:
        return self._dialects[spoken(scope["path"], scope["headers"])]


def _spool(settings: GatewaySettings) -> Spool | None:
    if not settings.spool:
        return None
    return Spool(Path(settings.spool), settings.spool_bytes, timeout=settings.ack_timeout)


def _tracing(fleet: Fleet) -> "Tracing":
    with needing("otel", "CLAW_GATEWAY_TRACE"):
        from gateway.tracing import open_tracing

    def kind_of(url: str) -> str:
        engine = fleet.roster.get(url)
        return "unknown" if engine is None or engine.speaks == "auto" else engine.speaks

    return open_tracing(kind_of)


def _guarded(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *_GUARDS]
        await send(message)

    return guarded
