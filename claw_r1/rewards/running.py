"""A rollout is given to a reward function and comes back as a score: in time, after retries, or as a counted reason.

Invariants: no more than `calls` of a function run at once, a thread that is late counts as running until it is free; every call
has a deadline; what a function raises ends this call alone; when all its threads hang, nothing of it can go on, and that is
the process's end.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from claw_r1 import metrics
from claw_r1.errors import ClawError
from claw_r1.rewards.children import Child
from claw_r1.rewards.function import Missing, RewardFunction, Score
from claw_r1.rewards.rollout import Rollout

BACKOFF: Final = 0.5
LONGEST_BACKOFF: Final = 30.0
T = TypeVar("T")


class Hung(ClawError):
    """Every thread of a function is late: only the end of the process frees them."""


async def retrying(source: str, attempts: int, work: Callable[[], Awaitable[T]]) -> T:
    """What `work` gives, tried up to `attempts` times while it says that this may help. Raises the last Missing.

    Waits a random part of 0.5 s, 1 s, 2 s, … up to 30 s in between, so that many callers do not come back at once.
    """
    for attempt in range(attempts):
        started = time.monotonic()
        try:
            return await work()
        except Missing as error:
            if not error.retry or attempt + 1 >= attempts:
                raise
            metrics.WORKERS_RETRIES.labels(source, metrics.bounded(error.reason)).inc()
        finally:
            metrics.WORKERS_SECONDS.labels(source).observe(time.monotonic() - started)
        await asyncio.sleep(random.uniform(0, min(LONGEST_BACKOFF, BACKOFF * 2**attempt)))
    raise AssertionError("at least one attempt")


class Runner:
    """One reward function at work."""

    def __init__(self, function: RewardFunction, *, timeout: float, attempts: int, calls: int) -> None:
        self.function = function
        self.timeout = function.timeout or timeout
        self._attempts = attempts
        self._calls = function.calls or calls
        self._free = asyncio.Semaphore(self._calls)
        self._late = 0
        """Threads that still work for calls that were given up."""
        self._threads = ThreadPoolExecutor(self._calls, thread_name_prefix=f"reward-{function.name}")
        self._children = [Child(function.reference) for _ in range(self._calls)]

    async def score(self, rollout: Rollout) -> Score:
        """Raises Missing with the reason of the last attempt, Hung."""
        return await retrying(self.function.name, self._attempts, lambda: self._attempt(rollout))

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.gather(*(child.close() for child in self._children))
        if self.function.close is not None:
            await self.function.close()

    async def _attempt(self, rollout: Rollout) -> Score:
        await self._enter()
        match self.function.place:
            case "thread":
                return self.function.score(await self._in_thread(rollout))
            case "process":
                child = self._children.pop()
                try:
                    found: Score = await child.call(rollout, self.timeout)
                finally:
                    self._children.append(child)
                    self._free.release()
                return found
            case "loop":
                try:
                    return self.function.score(await self._in_loop(rollout))
                finally:
                    self._free.release()

    async def _enter(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self.timeout):
                    await self._free.acquire()
                return
            except TimeoutError as error:
                if self._late >= self._calls:
                    raise Hung(
                        f"all {self._calls} threads of the reward function {self.function.name} hang: a function that may "
                        "do so belongs into a process of its own, @reward(…, process=True)"
                    ) from error

    async def _in_loop(self, rollout: Rollout) -> Any:
        try:
            async with asyncio.timeout(self.timeout):
                return await self._awaited(rollout)
        except TimeoutError as error:
            raise self._gave_nothing(retry=True) from error

    async def _awaited(self, rollout: Rollout) -> Any:
        try:
            return await self.function(rollout)
        except Missing:
            raise
        except (Exception, SystemExit) as error:  # whatever a plug-in raises is its own
            raise _failed(error) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise _failed(error) from error  # nobody cancelled this call but the plug-in itself

    async def _in_thread(self, rollout: Rollout) -> Any:
        loop = asyncio.get_running_loop()
        future: Future[Any] = self._threads.submit(self._called, rollout)
        given_up = False

        def leave() -> None:
            self._late -= given_up
            self._free.release()

        future.add_done_callback(lambda done: None if loop.is_closed() else loop.call_soon_threadsafe(leave))
        try:
            async with asyncio.timeout(self.timeout):
                return await asyncio.shield(asyncio.wrap_future(future))
        except TimeoutError as error:
            # Not tried again: another thread would hang where this one does.
            raise self._gave_nothing(retry=False) from error
        finally:
            given_up = not future.done()
            self._late += given_up

    def _called(self, rollout: Rollout) -> Any:
        try:
            return self.function(rollout)
        except Missing:
            raise
        except (Exception, SystemExit, asyncio.CancelledError) as error:  # whatever a plug-in raises is its own
            raise _failed(error) from error

    def _gave_nothing(self, *, retry: bool) -> Missing:
        return Missing("late", f"the function gave nothing for {self.timeout:g} s", retry=retry)


def _failed(error: BaseException) -> Missing:
    return Missing("failed", f"{type(error).__name__}: {str(error)[:500]}", retry=True)
