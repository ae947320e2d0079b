"""Ready groups, recipes and policies arrive from the broker by long poll, the moment they are visible.

Invariants: one consumer tails three one-partition topics, read_committed, from explicit offsets and in no consumer group;
whatever is asked of the broker beside that goes over other connections, for a broker answers a connection's requests in
order and a long poll would hold them back.
"""

import asyncio
import contextlib
import difflib
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from claw_r1 import topics
from claw_r1.bus import end_offsets, failure, learn_leaders, read_range, read_topic, start_consumer, stop_consumer
from claw_r1.codec import decode, decode_body
from claw_r1.errors import InvalidRecord, UserError
from claw_r1.events import Decision, GroupReady, Policy, RecipeActive, Sample
from claw_r1.recipes import Recipe
from trainer_adapter.groups import Shelf
from trainer_adapter.records import Head, Mark, is_sample, read_ready

if TYPE_CHECKING:
    from trainer_adapter.tracing import BatchTracing

log = logging.getLogger("claw.trainer")

_POLL_MS = 500
_LOOK_S = 0.1
_CHUNK = 256
FETCH_BYTES: Final = 2 * 2**20
"""Of the groups at once: it stays in a processor's caches, and costs two thirds of what 8 MiB do. A larger record comes all the
same, since of a partition a broker gives the first batch whole."""
MAX_READY: Final = 65_536
"""Groups above which no more are fetched if a batch can be made of them."""
MOST_READY: Final = 8 * MAX_READY
"""Groups above which no more are fetched, come what may."""
MAX_LATE: Final = 65_536
"""Late decisions, whose fate is to be said, above which no more groups are fetched."""


class Trimmed(UserError):
    """The recipe's topic no longer holds what a batch needs."""


class Source:
    """What a trainer reads: the shelf of ready groups, the recipe's versions, the newest policy of every run."""

    def __init__(self, recipe: str, *, kafka: str, enough: Callable[[], bool], deadline: float = 30.0) -> None:
        """`enough` says whether a batch can be made of the groups on the shelf."""
        self.shelf: Shelf | None = None
        self.recipes: dict[int, Recipe] = {}
        """Version → recipe."""
        self.newest_version = 0
        """0 while none is known."""
        self.ended = False
        """The newest version ends the recipe."""
        self.policies: dict[str, Policy] = {}
        """run_id → its newest trained policy."""
        self.counts: Counter[str] = Counter()
        self.last_ready_at: float | None = None
        self.tracing: BatchTracing | None = None
        """Is told of the markers that are read."""
        self._name = recipe
        self._kafka = kafka
        self._deadline = deadline
        self._enough = enough
        self._room = MAX_READY
        self._known: set[str] = set()
        self._batches = TopicPartition(topics.batch_topic(recipe), 0)
        self._facts = [TopicPartition(topics.RECIPES, 0), TopicPartition(topics.POLICY, 0)]
        self._tail: AIOKafkaConsumer | None = None
        self._probe: AIOKafkaConsumer | None = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._moved = asyncio.Event()

    @property
    def client_id(self) -> str:
        return f"claw-trainer-{self._name}-source"

    @property
    def recipe(self) -> Recipe:
        """The newest version's settings (of an ended recipe, the last ones)."""
        return self.recipes[max(self.recipes)]

    @property
    def recipe_version(self) -> int:
        return max(self.recipes)

    def recipe_of(self, version: int) -> Recipe:
        """The recipe of a version; the newest if that one is not known."""
        return self.recipes.get(version, self.recipe)

    def trained_version(self, run_id: str) -> int | None:
        """The newest version that a trainer of the run has announced."""
        policy = self.policies.get(run_id)
        return None if policy is None else policy.version

    # ------------------------------------------------------------------------------------------------------- life

    async def open(self, shelf: Shelf, *, start: int | None, cursor: int | None, appear: float) -> int:
        """Tail the recipe's groups from offset `start` on (None: only what comes from now on) onto `shelf`.

        Returns, when everything that is there was read, the offset it began at. Waits up to `appear` seconds for the
        recipe and its topic. Raises UserError if one of them does not appear, or if the topic does not reach from
        `cursor`, where the last cut ends, on.
        """
        self._probe = await start_consumer(self._kafka, client_id=f"{self.client_id}-probe")
        self._tail = await start_consumer(self._kafka, client_id=self.client_id, max_partition_fetch_bytes=FETCH_BYTES)
        deadline = time.monotonic() + appear
        await self._await_topics(deadline)
        names = {partition.topic for partition in (*self._facts, self._batches)}
        await learn_leaders(self._probe, names)
        await learn_leaders(self._tail, names)
        begin, end = await self._bounds()
        firsts = await self._probe.beginning_offsets(self._facts)
        if cursor is not None and not begin <= cursor <= end:
            raise UserError(
                f"{self._batches.topic} holds offsets {begin} to {end}, but the last cut ends at {cursor}: the topic was "
                "trimmed too far or made anew, and groups are lost. Start a new recipe name to go on without them."
            )
        self.shelf = shelf
        first_offset = end if start is None else max(start, begin)
        # All at once: else it begins with a long poll of those whose offsets it has, and the others wait for that.
        self._tail.assign([*self._facts, self._batches])
        for partition, first in (firsts | {self._batches: first_offset}).items():
            self._tail.seek(partition, first)
        self._task = asyncio.create_task(self._follow(), name="trainer-source")
        await self.catch_up()
        await self._await_recipe(deadline)
        return first_offset

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for consumer in (self._tail, self._probe):
            if consumer is not None:
                await stop_consumer(consumer)

    async def _await_topics(self, deadline: float) -> None:
        assert self._probe is not None
        wanted = {partition.topic for partition in (*self._facts, self._batches)}
        while missing := wanted - await self._probe.topics():
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(_LOOK_S)  # topics are not announced, so they are looked for
        if not missing:
            return
        if topics.RECIPES not in missing:
            for record in await read_topic(self._kafka, topics.RECIPES, client_id=self.client_id):
                if record.value is not None:
                    self._take_fact(self._facts[0], record)
            if not self.recipes:
                raise self._unknown_recipe()
        raise UserError(f"the broker has no topic {min(missing)}: create it with `claw topics apply`")

    async def _await_recipe(self, deadline: float) -> None:
        while not self.recipes:
            try:
                await self.changed(deadline)
            except TimeoutError:
                raise self._unknown_recipe() from None

    def _unknown_recipe(self) -> UserError:
        near = difflib.get_close_matches(self._name, self._known, n=1)
        known = ", ".join(sorted(self._known)[:20]) or "none at all"
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return UserError(f"no recipe is named {self._name!r}; known: {known}.{hint} Apply it first.")

    # ------------------------------------------------------------------------------------------------------- reading

    async def _follow(self) -> None:
        """Take records in as they come, for ever; whatever goes wrong is raised by the next `changed` or `catch_up`."""
        assert self._tail is not None
        try:
            while True:
                taken = await self._tail.getmany(timeout_ms=_POLL_MS, max_records=_CHUNK)
                for partition, records in taken.items():
                    take = self._take_ready if partition == self._batches else self._take_fact
                    for record in records:
                        if record.value is not None:  # else a tombstone of a compacted topic
                            take(partition, record)
                self.bound_shelf()
                self._moved.set()
                if taken:
                    self._changed.set()
                    await asyncio.sleep(0)  # with records at hand `getmany` never lets others run
        except KafkaError as error:
            if isinstance(said := failure(f"{self._batches.topic} cannot be read", error), UserError):
                raise said from error
            raise
        finally:
            self._changed.set()
            self._moved.set()

    def _take_ready(self, partition: TopicPartition, record: ConsumerRecord) -> None:
        try:
            event = read_ready(record.headers, record.value)
        except InvalidRecord as error:
            self._pass_over(partition, record, error)
            return
        assert self.shelf is not None
        at = record.timestamp / 1000
        self.shelf.put(record.offset, event, at, record.value)
        if isinstance(event, Mark):
            self.last_ready_at = at
            if self.tracing is not None:
                self.tracing.note(record.offset, record.headers)

    def _take_fact(self, partition: TopicPartition, record: ConsumerRecord) -> None:
        try:
            event = decode(record.headers, record.value)
        except InvalidRecord as error:
            self._pass_over(partition, record, error)
            return
        if isinstance(event, RecipeActive):
            self._take_recipe(event)
        elif isinstance(event, Policy) and event.engine is None:
            known = self.policies.get(event.run_id)
            if known is None or event.version >= known.version:
                self.policies[event.run_id] = event

    def _pass_over(self, partition: TopicPartition, record: ConsumerRecord, error: InvalidRecord) -> None:
        """Of a later version, or about another recipe or run: neither may stop this trainer. Any other is an error."""
        where = f"{partition.topic}[{partition.partition}] offset {record.offset}"
        if error.reason != "unknown_type" and self._concerns(partition, record.key):
            raise InvalidRecord(error.reason, f"the record at {where} cannot be read: {error}") from error
        self.counts[error.reason] += 1
        log.warning("a record was passed over", extra={"where": where, "reason": error.reason})

    def _concerns(self, partition: TopicPartition, key: bytes | None) -> bool:
        """Whether a record that cannot be read may be about this recipe or its run."""
        if partition.topic == topics.RECIPES:
            return key is None or key.startswith(f"{self._name}@".encode())
        if partition.topic == topics.POLICY:
            return key is None or not self.recipes or key == self.recipe.run_id.encode()
        return True

    def _take_recipe(self, active: RecipeActive) -> None:
        self._known.add(active.name)
        if active.name != self._name:
            return
        if active.recipe is not None:
            self.recipes[active.version] = active.recipe
        if active.version >= self.newest_version:
            self.newest_version = active.version
            self.ended = active.recipe is None

    def bound_shelf(self) -> None:
        """Stop fetching groups while very many wait, or very many late decisions; the cut lets it go on.

        As long as no batch can be made of those that wait (all are stale, or of one share of a mix), what is missing lies
        behind them: then up to MOST_READY are taken.
        """
        assert self._tail is not None
        if self.shelf is None or not self.recipes:
            return
        if self.shelf.n_ready < MAX_READY:
            self._room = MAX_READY
        while MOST_READY > self._room <= self.shelf.n_ready and not self._enough():
            self._room *= 2
        is_full = self.shelf.n_ready >= self._room or self.late_is_full
        paused = self._batches in self._tail.paused()
        if is_full and not paused:
            self._tail.pause(self._batches)
        elif paused and not is_full:
            self._tail.resume(self._batches)

    @property
    def full(self) -> bool:
        """So many groups wait that no more are read, whatever they are."""
        return self.shelf is not None and self.shelf.n_ready >= MOST_READY

    @property
    def late_is_full(self) -> bool:
        """So many decisions came too late that no more groups are read until it was said of them."""
        return self.shelf is not None and len(self.shelf.too_late) >= MAX_LATE

    def wake(self) -> None:
        """Let whoever waits for `changed` look again."""
        self._changed.set()

    async def changed(self, deadline: float | None) -> None:
        """Return when something new was read. Raises TimeoutError at `deadline` (monotonic seconds), or what ended the
        reading: UserError if the stream was closed."""
        self._check_task()
        try:
            async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
                await self._changed.wait()
        finally:
            self._check_task()
        self._changed.clear()

    def _check_task(self) -> None:
        if self._task is None or not self._task.done():
            return
        if self._task.cancelled():
            raise UserError("the stream was closed while something waited for a batch")
        self._task.result()

    async def broker_is_away(self, within: float) -> bool:
        """Whether the broker leaves a question open for so many seconds."""
        assert self._probe is not None
        try:
            async with asyncio.timeout(within):
                await end_offsets(self._probe, [self._batches])
        except (KafkaError, TimeoutError):
            return True
        return False

    async def catch_up(self) -> None:
        """Return when everything that is stable on the broker now was read, or as much of it as is held at once. Raises
        RetryableError if nothing comes for too long, UserError if the broker forbids it or the stream was closed."""
        assert self._tail is not None
        assert self._probe is not None
        self.bound_shelf()
        tail = self._tail
        partitions = tail.assignment() - tail.paused()
        try:
            async with asyncio.timeout(self._deadline) as limit:
                ends = await end_offsets(self._probe, partitions)
                for partition, end in ends.items():
                    before = -1
                    while partition not in tail.paused() and (reached := await tail.position(partition)) < end:
                        if reached > before:
                            before = reached
                            limit.reschedule(asyncio.get_running_loop().time() + self._deadline)
                        self._check_task()
                        self._moved.clear()
                        with contextlib.suppress(TimeoutError):  # a fetch of transaction markers alone moves silently
                            await asyncio.wait_for(self._moved.wait(), 0.01)
                self._check_task()  # a record that cannot be read may be the last one, or stand before what is at hand
        except (KafkaError, TimeoutError) as error:
            raise failure(f"the end of {self._batches.topic} was not reached", error) from error

    async def _bounds(self) -> tuple[int, int]:
        assert self._probe is not None
        try:
            first = (await self._probe.beginning_offsets([self._batches]))[self._batches]
            return first, (await end_offsets(self._probe, [self._batches]))[self._batches]
        except KafkaError as error:
            raise failure(f"{self._batches.topic} does not tell its offsets", error) from error

    async def load(
        self, start: int, end: int, *, samples: Collection[str], offsets: Collection[int] = ()
    ) -> tuple[dict[str, Sample], dict[int, GroupReady | Decision]]:
        """Samples by id, markers and decisions by offset, read again from [start, end) of the topic; the first of an id counts.

        Of what is not named a sample's head is looked at, and nothing of the rest. Raises Trimmed if the topic no longer holds
        one of them, InvalidRecord for one that cannot be read.
        """
        found: dict[str, Sample] = {}
        found_others: dict[int, GroupReady | Decision] = {}

        def keep(record: ConsumerRecord) -> None:
            if record.value is None or not (record.offset in offsets or is_sample(record.headers)):
                return
            try:
                event = read_ready(record.headers, record.value)
                if isinstance(event, Head) and event.sample_id in samples and event.sample_id not in found:
                    found[event.sample_id] = decode_body(Sample, record.value)
            except InvalidRecord as error:
                where = f"{self._batches.topic}[0] offset {record.offset}"
                raise InvalidRecord(error.reason, f"the record at {where} cannot be read: {error}") from error
            if isinstance(event, Mark | Decision) and record.offset in offsets:
                found_others[record.offset] = event.marker if isinstance(event, Mark) else event
                if self.tracing is not None and isinstance(event, Mark):
                    self.tracing.note(record.offset, record.headers)

        await self._read_again(start, end, keep)
        if missing := (set(samples) - found.keys()) or (set(offsets) - found_others.keys()):
            raise Trimmed(
                f"{self._batches.topic} no longer holds what the batch needs between offsets {start} and {end} (for "
                f"instance {next(iter(missing))}): the topic was trimmed. Seek to a later batch, or say where the pool is "
                "with pool=URL."
            )
        return found, found_others

    async def _read_again(self, start: int, end: int, keep: Callable[[ConsumerRecord], None]) -> None:
        reader = await start_consumer(
            self._kafka, client_id=f"claw-trainer-{self._name}-reader", max_partition_fetch_bytes=FETCH_BYTES
        )
        try:
            reader.assign([self._batches])
            begin = (await reader.beginning_offsets([self._batches]))[self._batches]
            async for records in read_range(reader, self._batches, max(start, begin), end):
                for record in records:
                    keep(record)
        except KafkaError as error:
            raise failure(f"{self._batches.topic} cannot be read", error) from error
        finally:
            await stop_consumer(reader)
