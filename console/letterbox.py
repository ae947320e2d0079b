"""Dead letters are counted here for the page, beside its other questions: twice a minute, and only while somebody looks.

Invariants: nobody waits for a count; one that takes longer than its deadline, or a broker that is away, makes it unknown.
"""

import asyncio
import logging
from typing import Final

from aiokafka.errors import KafkaError

from claw_r1.errors import ClawError
from claw_r1.letters import Waiting, count_waiting

log = logging.getLogger("claw.console")

PERIOD: Final = 30.0
DEADLINE: Final = 15.0


class Letterbox:
    """The number of dead letters that did not go back; `run` counts them."""

    def __init__(self, kafka: str) -> None:
        self._kafka = kafka
        self._known: dict[str, Waiting] = {}
        self._count: int | None = None
        self._wanted = asyncio.Event()

    def count(self) -> int | None:
        """The last count; None: not known."""
        self._wanted.set()
        return self._count

    async def run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._look()
            await asyncio.sleep(PERIOD)

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                self._known = await count_waiting(self._kafka, self._known)
        except (ClawError, KafkaError, OSError, TimeoutError) as error:
            if self._count is not None:
                log.warning("dead letters cannot be counted", extra={"why": str(error) or type(error).__name__})
            self._count = None
        else:
            self._count = sum(waiting.letters for waiting in self._known.values())
