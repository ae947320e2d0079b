"""A trainer that waits asks the pool now and then which groups are open, and goes on waiting meanwhile.

Invariants: one question at a time; it is never waited for longer than is said, and an answer that comes later is told the next
time.
"""

import asyncio
import time
from dataclasses import replace
from typing import Final

from claw_r1.errors import ClawError
from claw_r1.recipes import Recipe
from trainer_adapter.pool import Pool
from trainer_adapter.waiting import OpenGroups, Waiting

ASK_S: Final = 5.0
"""Longest that a wait for the pool takes."""
_AGAIN_S: Final = 10.0


class Asking:
    """What the pool knows of a recipe's open groups."""

    def __init__(self, pool: Pool | None) -> None:
        self._pool = pool
        self._question: asyncio.Task[OpenGroups] | None = None
        self._again = 0.0
        self._found: OpenGroups | None = None
        self._why_not: str | None = None

    async def ask(self, recipe: Recipe, *, within: float) -> None:
        """Ask, unless it was asked lately, and wait at most so many seconds for the answer."""
        if self._pool is None:
            return
        if self._question is None:
            if time.monotonic() < self._again:
                return
            asked = asyncio.to_thread(self._pool.open_groups, recipe, time.time())
            self._question = asyncio.create_task(asked, name="trainer-asks-the-pool")
        await asyncio.wait([self._question], timeout=within)
        if not self._question.done():
            self._why_not = "it has not answered yet" if self._found is None else None
            return
        question, self._question = self._question, None
        self._again = time.monotonic() + _AGAIN_S
        try:
            self._found, self._why_not = question.result(), None
        except (ClawError, TimeoutError) as error:
            self._found, self._why_not = None, str(error) or repr(error)

    def tell(self, waiting: Waiting) -> Waiting:
        """The wait, with what was found."""
        return replace(waiting, open=self._found, open_unknown=self._why_not)

    async def close(self) -> None:
        """Leave an open question; its thread ends by the pool's own time-out."""
        question, self._question = self._question, None
        if question is not None:
            question.cancel()
            await asyncio.wait([question])
