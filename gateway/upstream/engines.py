"""A call is handed to an engine: the same one for all calls of a trajectory, another only before its first byte.

Invariants:
- rendezvous hashing on the trajectory with bounded load, so that prefix caches stay warm, a lost engine moves only its own
  trajectories, and none works far above its share;
- a POST is repeated only if no engine began to answer it: a refused connection, a kept connection that was stale, or a 503;
- no engine gets a key that opens the gateway: with a key of its own it gets that one, and keys of ours are taken off before;
- a call counts as in flight from its first try until its connection is given back or closed;
- while all engines that may take a call are paused, it waits, up to a bound; every wait has a deadline.
"""

import asyncio
import functools
import logging
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

import aiohttp

from claw_r1.metrics import GATEWAY_ENGINE_CALLS, GATEWAY_HELD, GATEWAY_PASSED_OVER
from gateway.replies import UNAVAILABLE, UPSTREAM, Refusal, unavailable
from gateway.upstream.balance import Share, choose
from gateway.upstream.roster import Engine as Engine
from gateway.upstream.roster import Roster
from gateway.upstream.wire import Headers, Pool, Reply

log = logging.getLogger("claw.gateway.engines")

COOL_DOWN: Final = 2.0
"""Seconds for which an engine that refused a connection stands last."""
KEEP_ALIVE: Final = 4.0
"""Seconds; below vLLM's 5, so that a kept connection is rarely one that the engine is closing."""
MAX_ANSWER: Final = 4 * 2**20
"""Most that is read of what an engine says of itself, bytes."""
PAUSED_RETRY_AFTER: Final = 5.0
PASSED_ON: Final = frozenset(
    {b"accept", b"authorization", b"content-type", b"traceparent", b"tracestate", b"user-agent", b"x-request-id"}
)
"""Request headers that an engine gets; others reach engine internals or are the connection's own."""


class Engines:
    """The engines and the connections to them."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        connect_timeout: float,
        read_timeout: float,
        key: str = "",
        load_factor: float = 1.25,
        pause_hold: float = 30.0,
    ) -> None:
        self.roster = Roster(urls, key=key)
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._load_factor = load_factor
        self._pause_hold = pause_hold
        self._session: aiohttp.ClientSession | None = None
        self._pools: weakref.WeakKeyDictionary[Engine, Pool] = weakref.WeakKeyDictionary()

    def start(self) -> None:
        """Must run in the event loop that makes the calls."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout, sock_read=self._read_timeout),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("user-agent", "accept", "content-type"),
        )
        self.roster.start()

    async def stop(self) -> None:
        for pool in self._pools.values():
            pool.close()
        if self._session is not None:
            await self._session.close()

    async def send(
        self,
        method: str,
        path: str,
        *,
        key: str,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes | None = None,
        among: Collection[str] | None = None,
        chosen: Callable[[Engine], None] | None = None,
    ) -> tuple[Engine, Reply]:
        """The engine that answered and its response, of which only the head was read.

        `among`: ids of the engines that may take the call; None: any. While all of them are paused, a POST waits.
        `chosen` is told each engine right before it is asked.
        Raises Refusal(429, 502, 503 or 504).
        """
        passed = _pass_on(headers)
        able = await self._await_turn(among, holds=method != "GET")
        errors: list[str] = []
        order = self._order(key, able)
        for number, engine in enumerate(order, 1):
            if chosen is not None:
                chosen(engine)
            response = await self._try(engine, method, path, passed, body, errors)
            if response is None:
                continue
            if response.status != 503 or number == len(order):
                return engine, response
            GATEWAY_ENGINE_CALLS.labels(engine.label, "busy").inc()
            errors.append(f"{engine.url} answered 503")
            response.close()
        raise unavailable(
            f"no engine answers: {'; '.join(dict.fromkeys(errors))}. Start the engine, or correct CLAW_GATEWAY_UPSTREAM.",
            code="engine_unavailable",
        )

    async def ask(self, engine: Engine, path: str, *, timeout: float) -> tuple[int, bytes]:
        """GET what an engine says of itself, status and body. Raises aiohttp.ClientError or TimeoutError."""
        assert self._session is not None, "start() comes first"
        headers = [(name.decode(), value.decode("latin-1")) for name, value in _with_key(_pass_on(()), engine)]
        body = bytearray()
        async with (
            asyncio.timeout(timeout),
            self._session.get(engine.url + path, headers=headers, allow_redirects=False) as response,
        ):
            async for data in response.content.iter_any():
                body += data
                if len(body) > MAX_ANSWER:
                    raise aiohttp.ClientPayloadError(f"{path} answers more than {MAX_ANSWER} bytes")
            return response.status, bytes(body)

    async def _try(
        self, engine: Engine, method: str, path: str, headers: Headers, body: bytes | None, errors: list[str]
    ) -> Reply | None:
        """The head of an answer; None: another engine may be tried. Raises Refusal(502 or 504)."""
        pool = self._pool(engine)
        head = pool.head(method, path, _with_key(headers, engine), None if body is None else len(body))
        for _ in range(2):
            self.roster.enter(engine)
            try:
                reply = await pool.ask(head, body or b"", functools.partial(self.roster.exit, engine))
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                self._refused(engine, error)
                errors.append(f"{engine.url} ({error})")
                return None
            except aiohttp.ServerDisconnectedError as error:
                engine.failures += 1
                errors.append(f"{engine.url} closed the connection without an answer ({error})")
            except (TimeoutError, aiohttp.ClientError) as error:
                raise broken(engine, error) from error
            else:
                if engine.down_until or engine.health == "down":
                    engine.down_until = 0.0
                    engine.wake.set()
                engine.answered.inc()
                if reply.status != 200 and not 400 <= reply.status < 600:
                    reply.close()
                    raise _no_status(engine, reply.status)
                return reply
        GATEWAY_ENGINE_CALLS.labels(engine.label, "closed").inc()
        return None

    def _pool(self, engine: Engine) -> Pool:
        pool = self._pools.get(engine)
        if pool is None:
            pool = self._pools[engine] = Pool(
                engine.url,
                connect_timeout=self._connect_timeout,
                silence=self._read_timeout,
                keep_alive=KEEP_ALIVE,
            )
        return pool

    def _refused(self, engine: Engine, error: Exception) -> None:
        engine.failures += 1
        GATEWAY_ENGINE_CALLS.labels(engine.label, "refused").inc()
        if engine.down_until == 0.0:
            log.warning("an engine refuses connections", extra={"engine": engine.url, "error": str(error)})
        engine.down_until = time.monotonic() + COOL_DOWN
        engine.wake.set()

    def _order(self, key: str, able: list[Engine]) -> list[Engine]:
        if len(able) == 1:
            return able
        now = time.monotonic()
        shares = [
            Share(engine.id, engine.weight, engine.in_flight, engine.health == "down" or engine.down_until > now)
            for engine in able
        ]
        choice = choose(key, shares, factor=self._load_factor)
        if choice.passed_over is not None:
            GATEWAY_PASSED_OVER.labels(choice.passed_over).inc()
        by_id = {engine.id: engine for engine in able}
        return [by_id[name] for name in choice.order]

    async def _await_turn(self, among: Collection[str] | None, *, holds: bool) -> list[Engine]:
        """The engines that may take a call now; waits while all of them are paused. Raises Refusal(429 or 503)."""
        until = time.monotonic() + self._pause_hold
        while True:
            able = [
                engine for engine in self.roster.here if not engine.draining and (among is None or engine.id in among)
            ]
            if not able:
                raise self._no_engine(among)
            free = [engine for engine in able if engine.paused is None] if holds else able
            if free:
                return free
            left = until - time.monotonic()
            if left <= 0 or all(engine.paused == "refuse" for engine in able):
                raise self._paused()
            with GATEWAY_HELD.track_inprogress():
                try:
                    async with asyncio.timeout(left):
                        await self.roster.changed.wait()
                except TimeoutError:
                    raise self._paused() from None

    def _paused(self) -> Refusal:
        return Refusal(
            429,
            "the engines are paused, as they are while their weights change: send the call again",
            kind=UNAVAILABLE,
            code="engines_paused",
            retry_after=PAUSED_RETRY_AFTER,
        )

    def _no_engine(self, among: Collection[str] | None) -> Refusal:
        if among is not None and self.roster.here:
            message = f"the model's engines ({', '.join(sorted(among)[:8]) or 'none'}) are not here or are draining"
            return unavailable(f"{message}: see GET /engines", code="no_engine")
        if self.roster.here:
            return unavailable("every engine is draining: see GET /engines", code="no_engine")
        return unavailable(
            "no engine is configured: set CLAW_GATEWAY_UPSTREAM=http://host:port, or `claw up --upstream URL`, or add one by "
            "POST /engines",
            code="no_engine",
        )


def _pass_on(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    passed = [header for header in headers if header[0] in PASSED_ON]
    passed.append((b"accept-encoding", b"identity"))
    return passed


def _with_key(headers: Headers, engine: Engine) -> Headers:
    """With the engine's own key in place of the caller's; without one, the caller's goes on, as far as it was left."""
    if engine.api_key is None:
        return headers
    others = [header for header in headers if header[0] != b"authorization"]
    return [*others, (b"authorization", f"Bearer {engine.api_key}".encode())]


def _no_status(engine: Engine, status: int) -> Refusal:
    """The answer for a status that is neither a result nor an error: a redirection, or what no HTTP server can send on."""
    GATEWAY_ENGINE_CALLS.labels(engine.label, "broke_off").inc()
    return Refusal(
        502,
        f"engine {engine.url} answered with status {status}, which is no answer to a model call: check that the upstream URL "
        "is an engine's base URL",
        kind=UPSTREAM,
        code="unparsable_reply",
    )


def broken(engine: Engine, error: BaseException) -> Refusal:
    """The answer for an engine that began and did not end."""
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        GATEWAY_ENGINE_CALLS.labels(engine.label, "timeout").inc()
        return Refusal(
            504,
            f"engine {engine.url} sent nothing for too long: look at its log, or raise CLAW_GATEWAY_READ_TIMEOUT",
            kind=UPSTREAM,
            code="engine_timeout",
            retry_after=1.0,
        )
    GATEWAY_ENGINE_CALLS.labels(engine.label, "broke_off").inc()
    return Refusal(
        502,
        f"engine {engine.url} broke off its answer ({told(error)}): look at its log, then send the call again",
        kind=UNAVAILABLE,
        code="engine_broke_off",
        retry_after=1.0,
    )


def told(error: BaseException) -> str:
    """What an error of aiohttp's says. Its repr may hold the request's headers, and so the engine's key."""
    said = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
    return f"{type(error).__name__}: {' '.join(said.split())[:200]}"
