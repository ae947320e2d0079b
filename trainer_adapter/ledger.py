"""Cuts and commits become durable here: one transaction each, by the one trainer that holds the recipe.

Invariants:
- the transactional id names the recipe, so whoever opens it last fences everyone before; a fenced trainer records nothing
  more and is told so (`Superseded`);
- who was away looks who else has come before it makes its producer anew: it fences nobody that opened the recipe after it;
- the broker fences a producer too whose transaction was open for too long: who was away in the middle of one looks as well;
- a transaction whose end is not known is never guessed at: the producer is made anew, which settles it, and the history is
  read again.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import IllegalOperation, KafkaError, ProducerFenced

from claw_r1 import topics
from claw_r1.bus import (
    end_offsets,
    failure,
    read_range,
    start_producer,
    start_reader,
    stop_consumer,
    stop_producer,
    track_topics,
)
from claw_r1.codec import decode, encode
from claw_r1.errors import InvalidRecord, RetryableError, UserError
from claw_r1.events import BatchCut, BatchTrained, Event, Outcome, Policy, TokenStats
from trainer_adapter.cut import History
from trainer_adapter.tenure import find_newer

log = logging.getLogger("claw.trainer")

_CUTS = TopicPartition(topics.CUTS, 0)
TRANSACTION_S: Final = 15.0
"""Longest that a transaction may be open: then the broker ends it, and its producer."""
_SPEAKS_S: Final = 3.0
"""Within so many seconds a trainer that opened the recipe has said so."""


class Superseded(UserError):
    """Another trainer has opened the recipe; this one's writes are refused from now on."""


@dataclass(frozen=True)
class Entry:
    """A record to append, and the topic it goes to."""

    topic: str
    key: str
    event: Event
    traceparent: str | None = None


def cut_entry(cut: BatchCut) -> Entry:
    return Entry(topics.CUTS, cut.recipe, cut)


def trained_entry(trained: BatchTrained, traceparent: str | None = None) -> Entry:
    return Entry(topics.CUTS, trained.recipe, trained, traceparent)


def fate_entry(fate: Outcome) -> Entry:
    """What a trainer says of a decision stands with its cuts: the outcomes topic is the ledger of the stream workers."""
    assert fate.recipe is not None
    return Entry(topics.CUTS, fate.recipe, fate)


def stats_entry(stats: TokenStats) -> Entry:
    return Entry(topics.TOKEN_STATS, stats.recipe, stats)


def policy_entry(policy: Policy) -> Entry:
    return Entry(topics.POLICY, policy.run_id, policy)


class Ledger:
    """The recipe's history on `claw.cuts.v1`, and the one way to add to it."""

    def __init__(self, recipe: str, *, kafka: str, holder: str, deadline: float = 30.0) -> None:
        self.history = History()
        self.since = 0.0
        """When this trainer opened the recipe, seconds since the epoch."""
        self._recipe = recipe
        self._kafka = kafka
        self._holder = holder
        self._deadline = deadline
        self._producer: AIOKafkaProducer | None = None
        self._next = 0
        """Next offset of the cuts topic that the history has not seen."""
        self._lost: Superseded | None = None
        self._closed = False
        self._lock = asyncio.Lock()

    @property
    def client_id(self) -> str:
        return f"claw-trainer-{self._recipe}"

    @property
    def lost(self) -> bool:
        """Another trainer has the recipe, as far as is known."""
        return self._lost is not None

    async def open(self) -> None:
        """Take the recipe and read its history. Raises UserError if the cuts topic is missing or may not be written."""
        self._closed = False
        self._producer = await self._start()
        self.since = time.time()
        self.history, self._next = await self._read(0, History())
        if self.history.holder not in (None, self._holder):
            log.info(
                "the recipe had another holder", extra={"recipe": self._recipe, "last_holder": self.history.holder}
            )

    async def look(self) -> None:
        """Read the history without taking the recipe: nothing can be appended. Errors as `open`."""
        self.history, self._next = await self._read(0, History())

    async def mend(self) -> bool:
        """Settle a transaction whose end is not known; says whether the history was read again.

        Raises Superseded if another trainer took the recipe, UserError after `close`, RetryableError while the broker is away.
        """
        async with self._lock:
            return await self._mend()

    async def _mend(self) -> bool:
        if self._lost is not None:
            raise self._lost
        self._check_open()
        if self._producer is not None:
            return False
        await self.check_alone()
        self._producer = await self._start()
        try:
            self._check_open()  # it may have been closed meanwhile
            _, end = await self._read(self._next, self.history, foreign=self._holder)
        except BaseException:
            await self._drop_producer()
            raise
        self._next = end
        return True

    async def append(self, entries: Sequence[Entry]) -> None:
        """Write all entries or none, visible together; returns when they are durable.

        Raises Superseded; UserError after `close`, or if this process may not write there; RetryableError when a topic is not
        there, or when it is not known whether they are written: `mend`, then look.
        """
        async with self._lock:
            await self._mend()
            producer = self._producer
            assert producer is not None
            began = time.monotonic()
            try:
                async with asyncio.timeout(self._deadline):
                    wanted = {entry.topic for entry in entries}
                    await track_topics(producer, *wanted)
                    if missing := wanted - producer.client.cluster.topics():
                        raise RetryableError(
                            f"the broker has no topic {min(missing)}, or no leader for it now: `claw topics apply` creates it"
                        )
                    await producer.begin_transaction()
                    written = [await self._send(producer, entry) for entry in entries]
                    offsets = [sent.offset for sent in await asyncio.gather(*written)]
                    await producer.commit_transaction()
            except ProducerFenced as error:
                await self._drop_producer()
                if (took := time.monotonic() - began) > TRANSACTION_S:
                    await asyncio.sleep(_SPEAKS_S)
                    raise RetryableError(
                        f"the broker ended a transaction of {self.client_id} that was open for {took:.0f} s, or another "
                        "trainer did"
                    ) from error  # who it was is looked at before the producer is made anew
                self._lost = self._superseded(await self._newest_holder())
                raise self._lost from error
            except (KafkaError, TimeoutError) as error:
                await self._drop_producer()
                raise failure(f"the broker did not confirm a transaction of {self.client_id}", error) from error
            except BaseException:
                await self._drop_producer()
                raise
            for entry, offset in zip(entries, offsets, strict=True):
                if entry.topic == topics.CUTS:
                    self.history.put(offset, entry.event)
                    self._next = offset + 1

    async def _send(self, producer: AIOKafkaProducer, entry: Entry) -> asyncio.Future[Any]:
        source = f"trainer/{self._holder}"
        record = encode(entry.event, source=source, key=entry.key.encode(), traceparent=entry.traceparent)
        try:
            future: asyncio.Future[Any] = await producer.send(
                entry.topic, record.value, key=record.key, headers=record.headers, partition=0
            )
        except (
            IllegalOperation
        ):  # what ended the transaction between two sends, such as being fenced, is the thing to say
            await producer._txn_manager.wait_for_transaction_end()
            raise
        return future

    async def read_cut(self, sequence: int) -> BatchCut:
        """The cut of a sequence that the history knows."""
        offset = self.history.cuts[sequence]
        async for _, event in self._records(offset, offset + 1):
            if isinstance(event, BatchCut):
                return event
        raise UserError(f"the cut of batch {sequence} of recipe {self._recipe} is no longer on {topics.CUTS}")

    async def close(self) -> None:
        """Let go of the recipe: nothing is appended any more, and nobody is fenced."""
        self._closed = True
        await self._drop_producer()

    def _check_open(self) -> None:
        if self._closed:
            raise UserError(
                f"the stream of recipe {self._recipe} is closed: nothing is handed out or recorded any more. Open a new one; "
                "batches that were not committed come again."
            )

    async def _start(self) -> AIOKafkaProducer:
        try:
            async with asyncio.timeout(self._deadline):
                return await start_producer(
                    self._kafka,
                    client_id=self.client_id,
                    transactional_id=self.client_id,
                    transaction_timeout=TRANSACTION_S,
                )
        except (KafkaError, TimeoutError) as error:
            raise failure(f"{self.client_id} cannot be opened on the broker", error) from error

    async def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop_producer(producer)

    async def check_alone(self) -> None:
        """Raise Superseded if another trainer has the recipe: it wrote since this one did, or opened it later and says so.

        Fences nobody. Other errors as `open`.
        """
        history, _ = await self._read(self._next, History())
        holder = history.holder
        if holder in (None, self._holder):
            newer = await find_newer(self._kafka, self._recipe, self.since)
            if newer is None:
                return
            holder = newer.holder
        self._lost = self._superseded(holder)
        raise self._lost

    async def _newest_holder(self) -> str | None:
        with contextlib.suppress(KafkaError, RetryableError, UserError):  # the name is a help, not a need
            history, _ = await self._read(self._next, History())
            return history.holder
        return None

    def _superseded(self, holder: str | None) -> Superseded:
        who = f"{holder}, opened" if holder not in (None, self._holder) else "opened"
        return Superseded(
            f"another trainer, {who} recipe {self._recipe} after this one ({self._holder}). A recipe has one trainer and the "
            "newest wins: nothing more is recorded here. Stop one of the two, or give each a recipe of its own."
        )

    async def _read(self, start: int, history: History, *, foreign: str | None = None) -> tuple[History, int]:
        end = start
        async for offset, event in self._records(start, None):
            holder = event.holder if isinstance(event, BatchCut | BatchTrained) else None
            if foreign is not None and holder not in (None, foreign):
                self._lost = self._superseded(holder)
                raise self._lost
            history.put(offset, event)
            end = offset + 1
        return history, end

    async def _records(self, start: int, end: int | None) -> AsyncIterator[tuple[int, Event]]:
        """The recipe's records from `start` on."""
        key = self._recipe.encode()
        consumer = await start_reader(self._kafka, client_id=self.client_id)
        try:
            if topics.CUTS not in await consumer.topics():
                raise UserError(f"the broker has no topic {topics.CUTS}: create it with `claw topics apply`")
            consumer.assign([_CUTS])
            first = (await consumer.beginning_offsets([_CUTS]))[_CUTS]
            last = (await end_offsets(consumer, [_CUTS]))[_CUTS] if end is None else end
            async for records in read_range(consumer, _CUTS, max(start, first), last):
                for record in records:
                    if record.key == key and (event := _read(record)) is not None:
                        yield record.offset, event
        except KafkaError as error:
            raise failure(f"{topics.CUTS} cannot be read", error) from error
        finally:
            await stop_consumer(consumer)


def _read(record: ConsumerRecord) -> Event | None:
    """The event of a record; None for a type of a later version. Raises InvalidRecord that names the record."""
    where = f"{topics.CUTS} offset {record.offset}"
    try:
        return decode(record.headers, record.value)
    except InvalidRecord as error:
        if error.reason == "unknown_type":
            log.warning("a record was passed over", extra={"where": where, "reason": error.reason})
            return None
        raise InvalidRecord(error.reason, f"the record at {where} cannot be read: {error}") from error
