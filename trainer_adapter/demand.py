"""A live trainer says what it wants: how many groups make a batch, and how many are there already.

Invariants:
- demand is a help to those who sample: nothing that happens here holds up a batch, a commit, or the end of a trainer for long;
- it is said when it changes and every HEARTBEAT_S, and counts for TTL_S: a trainer that was killed wants nothing any more;
- it goes its own way to the broker, since the trainer's transactions have one order and a batch would wait in it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from claw_r1 import topics
from claw_r1.bus import is_broken, publish, start_producer, stop_producer
from claw_r1.codec import encode
from claw_r1.errors import ClawError
from claw_r1.events import Demand
from claw_r1.recipes import Recipe
from trainer_adapter.tenure import this_process

log = logging.getLogger("claw.trainer")

LOOK_S = 0.25
HEARTBEAT_S = 2.0
TTL_S = 10.0
_LOOK_SHARE = 20
"""Looking takes at most one part in so many of the time, however many groups are ready."""
_PAUSE_S = 1.0
_DEADLINE_S = 5.0
_CLOSE_S = 2.0


@dataclass(frozen=True)
class Stock:
    """What a trainer wants and has."""

    recipe: Recipe
    recipe_version: int
    a_batch: int
    """Groups that make a batch; with `batch.tokens` about as many."""
    ready: int
    cut: int
    ended: bool
    """The recipe, or this trainer's hold on it."""


class Demander:
    """Says a recipe's demand for as long as its trainer has the recipe."""

    def __init__(self, look: Callable[[], Stock | None], *, kafka: str, holder: str) -> None:
        """`look` says what there is; None while the recipe itself is not read yet."""
        self._look = look
        self._kafka = kafka
        self._holder = holder
        self._since = 0.0
        self._said: Stock | None = None
        self._producer: AIOKafkaProducer | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, since: float) -> None:
        """Say it from now on, in the background; the trainer has had the recipe `since` then, seconds since the epoch."""
        self._since = since
        self._task = asyncio.create_task(self._run(), name="trainer-demand")
        self._task.add_done_callback(_report)

    async def close(self) -> None:
        """Say that nothing is wanted any more, if the broker is there to hear it."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None
        if self._producer is not None:
            with contextlib.suppress(ClawError, KafkaError, TimeoutError):  # else it ends by itself after TTL_S
                if self._said is not None and not self._said.ended:
                    await self._say(self._said, closed=True, deadline=_CLOSE_S)
            await stop_producer(self._producer, deadline=_CLOSE_S)
            self._producer = None

    async def _run(self) -> None:
        told = False
        while True:
            try:
                await self._follow()
            except (ClawError, KafkaError, OSError, TimeoutError) as error:
                if not told:
                    log.warning("what this trainer wants cannot be said", extra={"error": str(error) or repr(error)})
                told = True
            await asyncio.sleep(_PAUSE_S)

    async def _follow(self) -> None:
        if self._producer is not None and is_broken(self._producer):
            broken, self._producer = self._producer, None
            await stop_producer(broken, deadline=_CLOSE_S)
        if self._producer is None:
            self._producer = await start_producer(self._kafka, client_id="claw-trainer-demand")
        again = 0.0
        while True:
            began = time.monotonic()
            stock = self._look()
            took = time.monotonic() - began
            if stock is not None and (stock != self._said or began >= again):
                if not stock.ended:
                    await self._say(stock, closed=False, deadline=_DEADLINE_S)
                elif self._said is not None and not self._said.ended:
                    await self._say(stock, closed=True, deadline=_DEADLINE_S)
                self._said = stock
                again = began + HEARTBEAT_S
            await asyncio.sleep(max(LOOK_S, _LOOK_SHARE * took))

    async def _say(self, stock: Stock, *, closed: bool, deadline: float) -> None:
        assert self._producer is not None
        recipe = stock.recipe
        demand = Demand(
            recipe=recipe.name,
            recipe_version=stock.recipe_version,
            run_id=recipe.run_id,
            channel=recipe.channel,
            batch_groups=stock.a_batch,
            group_size=recipe.group.size,
            max_versions=recipe.staleness.max_versions,
            max_age=recipe.group.max_age,
            ready=stock.ready,
            cut=stock.cut,
            closed=closed,
            ttl=TTL_S,
            holder=self._holder,
            process=this_process(),
            since=self._since,
            at=time.time(),
        )
        record = encode(demand, source=f"trainer/{self._holder}", key=recipe.name.encode())
        await publish(self._producer, topics.DEMAND, record, partition=0, deadline=deadline)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        log.error("what this trainer wants is not said any more: start it again", exc_info=task.exception())
