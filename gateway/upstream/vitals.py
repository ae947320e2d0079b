"""An engine is looked at in the background: whether it answers, what it can do, and which weights it says it serves.

Invariants:
- no call waits for a look, but for the one before a paused engine takes calls again;
- an engine that is down stands last and is still tried: a look may be wrong;
- looks have deadlines and are bounded in number at a time; an engine's answers can do no harm.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import msgspec

from claw_r1.metrics import GATEWAY_ENGINE_UP
from gateway.upstream.engines import Engines, told
from gateway.upstream.policies import Policies
from gateway.upstream.probe import Reply, probe, read_weights
from gateway.upstream.roster import Engine

log = logging.getLogger("claw.gateway.engines")

LOOK_TIMEOUT: Final = 5.0
MAX_LOOKS: Final = 16
"""Looks at a time."""
MISSES: Final = 3
"""Looks in a row without an answer after which an engine that still takes connections is down."""
JITTER: Final = 0.2
SHORTEST: Final = 0.2
"""Seconds between two looks that were asked for."""


class Vitals:
    """Looks at every engine of the roster."""

    def __init__(
        self, engines: Engines, policies: Policies, *, health_interval: float, version_interval: float
    ) -> None:
        self._engines = engines
        self._policies = policies
        self._health_interval = health_interval
        self._version_interval = version_interval
        self._bound = asyncio.Semaphore(MAX_LOOKS)
        self._watchers: dict[Engine, asyncio.Task[None]] = {}
        self._resuming: set[asyncio.Task[None]] = set()
        engines.roster.on_new = self._begin
        engines.roster.on_gone = self._end
        engines.roster.on_resume = self._resume

    async def stop(self) -> None:
        tasks = [*self._watchers.values(), *self._resuming]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def settle(self) -> None:
        """Return when the engines that were resumed take calls again."""
        if self._resuming:
            await asyncio.wait(self._resuming, timeout=LOOK_TIMEOUT)

    def _begin(self, engine: Engine) -> None:
        GATEWAY_ENGINE_UP.labels(engine.label).set(0)
        watcher = asyncio.create_task(self._watch(engine), name=f"engine-{engine.id}")
        watcher.add_done_callback(_report)
        self._watchers[engine] = watcher

    def _end(self, engine: Engine) -> None:
        watcher = self._watchers.pop(engine, None)
        if watcher is not None:
            watcher.cancel()
        self._policies.forget(engine.url)

    def _resume(self, engine: Engine, release: Callable[[], None]) -> None:
        """Before it takes calls again, an engine that tells its weights is asked: they are likely new."""
        if engine.capabilities is None or engine.capabilities.weight_path is None:
            release()
            return
        task = asyncio.create_task(self._look_then(engine, release), name=f"resume-{engine.id}")
        self._resuming.add(task)
        task.add_done_callback(self._resuming.discard)

    async def _look_then(self, engine: Engine, release: Callable[[], None]) -> None:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT):
                await self._look_at_weights(engine)
        except TimeoutError:
            log.warning("an engine goes on and did not tell its weights", extra={"engine": engine.url})
        finally:
            release()

    # ---------------------------------------------------------------------------------------------------------- looking

    async def _watch(self, engine: Engine) -> None:
        misses = 0
        health_at = 0.0
        while True:
            engine.wake.clear()
            if time.monotonic() >= health_at:
                misses = await self._look_at_health(engine, misses)
                health_at = time.monotonic() + self._health_interval * random.uniform(1 - JITTER, 1 + JITTER)
            await self._look_at_weights(engine)
            tells = engine.capabilities is not None and engine.capabilities.weight_path is not None
            left = max(SHORTEST, health_at - time.monotonic())
            if await _woken(engine.wake, min(left, self._version_interval) if tells else left):
                await asyncio.sleep(SHORTEST * random.random())
                health_at = 0.0

    async def _look_at_health(self, engine: Engine, misses: int) -> int:
        """Looks in a row without an answer."""
        try:
            reply = await self._get(engine, "/health")
        except aiohttp.ClientConnectorError as error:
            self._set_down(engine, str(error))
            if not engine.lost:  # nobody listens: the process has ended, or was never there
                engine.lost = True
                self._policies.lose(engine.url)
            return MISSES
        except (aiohttp.ClientError, TimeoutError) as error:
            why = str(error) or "it does not answer"
        else:
            if reply.status < 500:  # an engine without such a path answers, too
                engine.down_until = 0.0
                engine.lost = False
                await self._set_up(engine)
                return 0
            why = f"/health answers {reply.status}"
        if misses + 1 >= MISSES:
            self._set_down(engine, why)
        return misses + 1

    async def _set_up(self, engine: Engine) -> None:
        if engine.health == "up":
            return
        if engine.health == "down":
            log.info("an engine is back", extra={"engine": engine.url})
        engine.health = "up"
        GATEWAY_ENGINE_UP.labels(engine.label).set(1)

        async def ask(path: str) -> Reply | None:
            try:
                return await self._get(engine, path)
            except (aiohttp.ClientError, TimeoutError):
                return None

        found = await probe(ask, engine.kind)
        engine.capabilities = found
        about = {"engine": engine.url, "kind": found.kind, "version": found.version}
        log.info("an engine is up", extra=about)
        for warning in found.warnings:
            log.warning("an engine cannot all that capture needs", extra=about | {"why": warning})

    def _set_down(self, engine: Engine, why: str) -> None:
        if engine.health != "down":
            log.warning("an engine is down", extra={"engine": engine.url, "why": why})
        engine.health = "down"
        GATEWAY_ENGINE_UP.labels(engine.label).set(0)

    async def _look_at_weights(self, engine: Engine) -> None:
        path = None if engine.capabilities is None else engine.capabilities.weight_path
        if path is None or engine.health == "down":
            return
        try:
            reply = await self._get(engine, path)
        except (aiohttp.ClientError, TimeoutError) as error:
            # The last answer stands: the health look says whether the engine is gone.
            log.debug("an engine did not tell its weights", extra={"engine": engine.url, "error": told(error)})
            return
        self._policies.tell(engine.url, read_weights(reply))

    async def _get(self, engine: Engine, path: str) -> Reply:
        async with self._bound:
            status, body = await self._engines.ask(engine, path, timeout=LOOK_TIMEOUT)
        return Reply(status, _parse(body))


def _report(watcher: asyncio.Task[None]) -> None:
    if not watcher.cancelled():
        log.error("an engine is not looked at any more", exc_info=watcher.exception())


def _parse(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


async def _woken(event: asyncio.Event, timeout: float) -> bool:
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return False
    return True
