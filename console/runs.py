"""Who has an analyst's key looks at the run of the key: the same screens over a console that reads that run's rows alone.

Invariants: a console of a run is made when it is first asked for, and at most MOST are open; the one that was asked longest
ago is closed, and its viewers' streams begin anew.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Final

from console.screens import Console

MOST: Final = 8


class Runs:
    """Consoles by run; `opened` opens one."""

    def __init__(self, opened: Callable[[str], AbstractAsyncContextManager[Console]]) -> None:
        self._opened = opened
        self._open: OrderedDict[str, tuple[Console, AsyncExitStack]] = OrderedDict()
        self._lock = asyncio.Lock()

    async def of(self, run: str) -> Console:
        """The console of a run."""
        async with self._lock:
            known = self._open.get(run)
            if known is None:
                async with AsyncExitStack() as stack:
                    known = await stack.enter_async_context(self._opened(run)), stack.pop_all()
                self._open[run] = known
            self._open.move_to_end(run)
            while len(self._open) > MOST:
                await self._close(next(iter(self._open)))
            return known[0]

    async def close(self) -> None:
        """Close all of them."""
        async with self._lock:
            for run in list(self._open):
                await self._close(run)

    async def _close(self, run: str) -> None:
        console, stack = self._open.pop(run)
        await console.feed.close()
        await stack.aclose()
