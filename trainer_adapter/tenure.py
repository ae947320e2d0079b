"""Who has a recipe now, by what its trainers say of demand: a second one by mistake is told before it changes anything.

Invariants:
- this is a courtesy, and the ledger's fencing is the safety: whatever is concluded here, one trainer writes;
- only who is heard of again is alive; who is silent while one listens is waited for no longer than its word counts, and not at
  all if its process was on this machine and is gone. No clock of another machine is asked.
"""

import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from claw_r1 import topics
from claw_r1.bus import end_offsets, failure, read_range, start_consumer, stop_consumer
from claw_r1.codec import decode
from claw_r1.errors import UserError
from claw_r1.events import Demand

log = logging.getLogger("claw.trainer")

MAX_TTL_S: Final = 60.0
"""Longest that a silent trainer is waited for."""
_LOOK_BACK_S: Final = 120.0
_DEMAND: Final = TopicPartition(topics.DEMAND, 0)


class RecipeHeld(UserError):
    """Another trainer has the recipe and is alive; nothing was changed."""


@dataclass(slots=True)
class Tenure:
    """What the trainers of a recipe said, folded in log order."""

    recipe: str
    holder: str | None
    """Who wants the recipe: the same name is the same trainer, started anew. None: it has no name, and is known by its
    process."""
    said: Demand | None = None
    """By the trainer that opened the recipe last."""
    said_at: float = 0.0
    """When the broker had it, seconds since the epoch."""
    words: int = 0
    """How often that trainer, or one before, was heard of."""

    def take(self, demand: Demand, appended: float) -> None:
        if demand.recipe == self.recipe and (self.said is None or demand.since >= self.said.since):
            self.said, self.said_at = demand, appended
            self.words += 1

    def other(self) -> Demand | None:
        """What another trainer said that has not ended, as far as can be told, however long ago it was."""
        said = self.said
        if said is None or said.closed or self._is_mine(said):
            return None
        return None if said.process is not None and is_gone(said.process) else said

    def _is_mine(self, said: Demand) -> bool:
        return said.process == this_process() if self.holder is None else said.holder == self.holder


def this_process() -> str:
    """HOST/BOOT/NAMESPACE/PID of this process, by which others on the machine can tell whether it is gone."""
    return f"{_here()}/{os.getpid()}"


def is_gone(process: str) -> bool:
    """Whether a process was on this machine and is there no more; False where that cannot be told."""
    here, _, pid = process.rpartition("/")
    if os.name != "posix" or here != _here() or here.endswith("//") or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _here() -> str:
    """Where a process's number means this process: two machines may have one name, a container has numbers of its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = namespace = ""
    return f"{socket.gethostname()}/{boot}/{namespace}"


async def await_free(kafka: str, recipe: str, holder: str | None) -> None:
    """Return when no other trainer that is alive has the recipe; `holder` as of Tenure.

    Raises RecipeHeld as soon as another one is heard of again; one that stays silent from now on is waited for as long as its
    word counts, MAX_TTL_S at most. Raises UserError if the topic may not be read, RetryableError or DependencyUnreachable if
    the broker is away.
    """
    tenure = Tenure(recipe, holder)
    async with _listening(kafka, tenure, time.time() - _LOOK_BACK_S) as consumer:
        began = time.monotonic()
        told = False
        while (other := tenure.other()) is not None:
            left = began + min(other.ttl, MAX_TTL_S) - time.monotonic()
            if left <= 0:
                return
            if not told:
                waited = {"recipe": recipe, "holder": other.holder, "seconds": round(left, 1)}
                log.info("waiting whether the trainer that has the recipe is alive", extra=waited)
                told = True
            taken = await consumer.getmany(_DEMAND, timeout_ms=max(1, int(min(left, 0.2) * 1000)))
            heard = tenure.words
            _listen(tenure, taken.get(_DEMAND, []))
            if (again := tenure.other()) is not None and tenure.words > heard:
                raise _held(recipe, again)


async def find_holder(kafka: str, recipe: str) -> Demand | None:
    """What the trainer that has the recipe said last, if its word still counts by this machine's clock. Errors as
    `await_free`."""
    tenure = Tenure(recipe, "")
    async with _listening(kafka, tenure, time.time() - _LOOK_BACK_S):
        other = tenure.other()
        return other if other is not None and time.time() < tenure.said_at + min(other.ttl, MAX_TTL_S) else None


async def find_newer(kafka: str, recipe: str, since: float) -> Demand | None:
    """What a trainer said last that opened the recipe after `since`, seconds since the epoch, and has not closed it. Errors as
    `await_free`."""
    tenure = Tenure(recipe, "")
    async with _listening(kafka, tenure, since - _LOOK_BACK_S):
        said = tenure.said
        return said if said is not None and said.since > since and not said.closed else None


@contextlib.asynccontextmanager
async def _listening(kafka: str, tenure: Tenure, since: float) -> AsyncIterator[AIOKafkaConsumer]:
    """What was said from `since` on, seconds since the epoch, is in the tenure; what is said now comes from the consumer."""
    consumer = await start_consumer(kafka, client_id=f"claw-trainer-{tenure.recipe}-tenure")
    try:
        if topics.DEMAND in await consumer.topics():
            consumer.assign([_DEMAND])
            found = (await consumer.offsets_for_times({_DEMAND: max(0, int(since * 1000))}))[_DEMAND]
            if found is not None:
                end = (await end_offsets(consumer, [_DEMAND]))[_DEMAND]
                async for records in read_range(consumer, _DEMAND, found.offset, end):
                    _listen(tenure, records)
        yield consumer
    except KafkaError as error:
        raise failure(f"{topics.DEMAND} cannot be read", error) from error
    finally:
        await stop_consumer(consumer)


def _listen(tenure: Tenure, records: Iterable[ConsumerRecord]) -> None:
    for record in records:
        if record.value is not None and record.key == tenure.recipe.encode():
            event = decode(record.headers, record.value)
            if isinstance(event, Demand):
                tenure.take(event, record.timestamp / 1000)


def _held(recipe: str, other: Demand) -> RecipeHeld:
    opened = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(other.since))
    return RecipeHeld(
        f"recipe {recipe} is held by {other.holder}, which opened it at {opened} UTC and is alive. A recipe has one trainer: "
        "stop that one, give this one a recipe of its own, or take the recipe over with take_over=True."
    )
