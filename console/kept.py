"""What changes with the schema alone is kept for all viewers, and made anew when the schema has changed.

Invariants: within LOOK seconds nobody asks; then one question tells whether it has changed, however many viewers wait; what has
no mark is not kept.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

LOOK: Final = 60.0


class Kept:
    """`make` makes the value, `mark` tells whether it would be another now; None: it cannot be told."""

    def __init__(self, make: Callable[[], Awaitable[Any]], mark: Callable[[], Awaitable[Any]]) -> None:
        self._make = make
        self._mark = mark
        self._lock = asyncio.Lock()
        self._value: Any = None
        self._known: Any = None
        self._due = 0.0

    async def get(self) -> Any:
        """The value. Raises what `make` and `mark` raise."""
        async with self._lock:
            now = time.monotonic()
            if self._known is not None and now < self._due:
                return self._value
            mark = await self._mark()
            if mark is None or mark != self._known:
                self._known = None
                self._value = await self._make()
            self._known, self._due = mark, now + LOOK
            return self._value
