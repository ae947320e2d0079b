"""A backfill from its first question to its last transaction: the shell around the rounds of every prompt.

Exactly once: the transactional id, one per recipe, admits one backfill (the newest fences the others); only then it is found
out how far the logs go, and waited until the pool has all of that, the outcomes of every earlier backfill included; what these
say is not said again. A group's samples, marker and outcomes are in one transaction.
"""

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, ProducerFenced

from claw_r1 import bus, registry
from claw_r1.clickhouse import ClickHouse
from claw_r1.errors import RetryableError, UserError
from claw_r1.events import Outcome, RecipeActive, Sample
from claw_r1.ids import event_key
from claw_r1.letters import DeadLetterTopic
from claw_r1.recipes import Recipe
from claw_r1.topics import EVENTS, OUTCOMES
from streams import outbox
from streams.backfill.pool import FactPool, Known
from streams.backfill.rounds import Folded, Logged, Round, fold, is_over, split
from streams.ledger import Key
from streams.state import Output
from streams.verdicts import ActiveRecipe

TRANSACTION_TIMEOUT: Final = 15.0
"""Seconds for which the transaction of a backfill that was killed holds back readers, unless another one begins."""
QUERY_TIMEOUT: Final = 300.0
LOOK_EVERY: Final = 0.3
_SOURCE: Final = "claw/backfill"


class Places(NamedTuple):
    """Where everything is."""

    kafka: str
    clickhouse: str
    database: str
    sinks_group: str
    """Consumer group of the sinks: what they committed is in the pool."""


@dataclass
class Report:
    """What a backfill said, or would say."""

    recipe: str
    version: int
    run_id: str
    channel: str
    dry_run: bool
    groups: int = 0
    """Groups that began before the recipe."""
    samples: int = 0
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Groups and trajectories by (about, outcome, reason)."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Groups of which nothing was said, by reason."""

    def take(self, folded: Folded) -> None:
        self.groups += 1
        if folded.left is not None:
            self.left_out[folded.left] += 1
        for output in folded.outputs:
            match output.event:
                case Sample():
                    self.samples += 1
                case Outcome(outcome=outcome, reason=reason, trajectory_uid=uid) if outcome != "late":
                    self.counts["group" if uid is None else "trajectory", outcome, reason] += 1

    def document(self) -> dict[str, Any]:
        """As JSON; counts with the most frequent first."""
        return {
            "recipe": self.recipe,
            "version": self.version,
            "run_id": self.run_id,
            "channel": self.channel,
            "dry_run": self.dry_run,
            "groups": self.groups,
            "samples": self.samples,
            "counts": [
                {"about": about, "outcome": outcome, "reason": reason, "number": number}
                for (about, outcome, reason), number in self.counts.most_common()
            ],
            "left_out": [{"reason": reason, "number": number} for reason, number in self.left_out.most_common()],
        }


Told = Callable[[int, int], None]
"""Is told how many prompts are done, and of how many."""


async def run_backfill(places: Places, name: str, *, wait: float, dry_run: bool = False, told: Told) -> Report:
    """Judge the groups that began before the recipe's newest version; with `dry_run`, write nothing.

    Waits up to `wait` seconds for the pool. Raises UserError if there is no such recipe, if it is not in force on every
    partition, if the pool stays behind, or if another backfill of the recipe takes over; RetryableError if the broker or the
    pool goes away: what is written by then stays, and another backfill goes on from there.
    """
    actives = await _active(places.kafka, name)
    async with contextlib.AsyncExitStack() as closing:
        producer: AIOKafkaProducer | None = None
        if not dry_run:
            producer = await bus.start_producer(
                places.kafka,
                client_id="claw-backfill",
                transactional_id=f"claw-backfill-{name}",
                transaction_timeout=TRANSACTION_TIMEOUT,
            )
            closing.push_async_callback(bus.stop_producer, producer)
        now = time.time()
        ends = await await_pool(places, (EVENTS, OUTCOMES), sorted(actives), wait)
        letters = await _read_letters(places.kafka, _recipe(actives).run_id)
        clickhouse = await closing.enter_async_context(
            await ClickHouse.connect(places.clickhouse, places.database, timeout=QUERY_TIMEOUT)
        )
        await clickhouse.check_schema()
        work = _Work(FactPool(clickhouse, _recipe(actives).run_id), actives, ends[EVENTS], letters, now)
        return await work.run(producer, told)


async def _active(kafka: str, name: str) -> dict[int, RecipeActive]:
    """The recipe's newest version by partition. Raises UserError if it is not in force on each."""
    known = [one for one in await registry.known_recipes(kafka) if one.name == name]
    newest = max((one.version for one in known), default=0)
    actives = {one.partition: one for one in known if one.version == newest}
    if not any(one.recipe is not None for one in actives.values()):
        raise UserError(f"there is no recipe {name}: `claw recipes list` shows those there are")
    consumer = await bus.start_consumer(kafka, client_id="claw-backfill")
    try:
        missing = await bus.partitions_of(consumer, EVENTS) - actives.keys()
    finally:
        await bus.stop_consumer(consumer)
    if missing:
        raise UserError(
            f"recipe {name} version {newest} is not known yet where it begins on partitions {sorted(missing)}: no stream "
            "worker took it in there. Is one running? `claw status` tells."
        )
    return actives


def _recipe(actives: Mapping[int, RecipeActive]) -> Recipe:
    recipe = next(iter(actives.values())).recipe
    assert recipe is not None, "a recipe that ended was refused"
    return recipe


# ----------------------------------------------------------------------------------------------------------------- pool


async def await_pool(
    places: Places, topics: Sequence[str], partitions: Sequence[int], wait: float
) -> dict[str, dict[int, int]]:
    """Wait until the pool has all that the topics hold now; their ends by topic and partition.

    The ends are those of the log, not of what is committed: behind another's open transaction an earlier backfill's outcomes
    may lie unseen.
    """
    wanted = [TopicPartition(topic, number) for topic in topics for number in partitions]
    async with contextlib.AsyncExitStack() as closing:
        every = await bus.start_consumer(places.kafka, client_id="claw-backfill", committed_only=False)
        closing.push_async_callback(bus.stop_consumer, every)
        committed = await bus.start_reader(places.kafka, client_id="claw-backfill")
        closing.push_async_callback(bus.stop_consumer, committed)
        ends = await bus.end_offsets(every, wanted)
        starts = await every.beginning_offsets(wanted)
        deadline = time.monotonic() + wait
        while True:
            stored = await bus.committed_offsets(places.kafka, places.sinks_group, wanted)
            lacking = {tp: max(stored[tp] or 0, starts[tp]) for tp in wanted}
            behind = {tp: ends[tp] - at for tp, at in lacking.items() if await _holds(committed, tp, at, ends[tp])}
            if not behind:
                return {topic: {tp.partition: end for tp, end in ends.items() if tp.topic == topic} for topic in topics}
            if time.monotonic() > deadline:
                furthest = max(behind, key=lambda tp: behind[tp])
                raise UserError(
                    f"the pool is behind the log on {len(behind)} partitions, on {furthest.topic}[{furthest.partition}] by "
                    f"{behind[furthest]} offsets after {wait:g} s, and all of it is needed. Is a sink of the group "
                    f"{places.sinks_group} running? `claw status` tells. Then try again, or wait longer with --wait."
                )
            await asyncio.sleep(LOOK_EVERY)


async def _holds(consumer: AIOKafkaConsumer, place: TopicPartition, start: int, end: int) -> bool:
    """Whether there is a record in [start, end): the ends of transactions take offsets and are none."""
    if start >= end:
        return False
    consumer.assign([place])
    async for _ in bus.read_range(consumer, place, start, end):
        return True
    return False


async def _read_letters(kafka: str, run_id: str) -> dict[tuple[int, bytes], dict[int, Logged]]:
    """The run's records that could not be read or stored, by partition and key, then by offset."""
    found: dict[tuple[int, bytes], dict[int, Logged]] = defaultdict(dict)
    topic = await DeadLetterTopic.opened(kafka, EVENTS)
    try:
        async for letter in topic.letters():
            _, partition, offset = letter.origin
            if letter.key is not None and letter.key.startswith(event_key(run_id, "")):
                logged = Logged(offset, letter.timestamp / 1000, None, letter.reason)
                found[partition, letter.key].setdefault(offset, logged)
    finally:
        await topic.close()
    return found


# ----------------------------------------------------------------------------------------------------------------- work


class _Work:
    """One backfill, from the first partition to the last."""

    def __init__(
        self,
        pool: FactPool,
        actives: Mapping[int, RecipeActive],
        ends: Mapping[int, int],
        letters: Mapping[tuple[int, bytes], Mapping[int, Logged]],
        now: float,
    ) -> None:
        self._pool = pool
        self._actives = actives
        self._ends = ends
        self._letters = letters
        self._now = now
        """Every fact that was appended before this time is in the pool."""
        self._recipe = _recipe(actives)

    async def run(self, producer: AIOKafkaProducer | None, told: Told) -> Report:
        recipe, version = self._recipe, next(iter(self._actives.values())).version
        report = Report(recipe.name, version, recipe.run_id, recipe.channel, dry_run=producer is None)
        total = sum([await self._pool.count(number, one.begins) for number, one in self._actives.items()])
        done = 0
        told(done, total)
        for partition, active in sorted(self._actives.items()):
            purged = await self._pool.purged_below(partition)
            async for batch in self._pool.batches(partition, active.begins):
                outputs: list[Output] = []
                async for folded in self._judge(active, [one.prompt_uid for one in batch], purged):
                    report.take(folded)
                    outputs += folded.outputs
                if producer is not None:
                    await _write(producer, outputs, recipe.name)
                done += len(batch)
                told(done, total)
        return report

    async def _judge(self, active: RecipeActive, prompts: Sequence[str], purged: int) -> AsyncIterator[Folded]:
        """What the recipe says of the groups of these prompts that began before it."""
        recipe = ActiveRecipe(active.begins, active.name, active.version, active.recipe)
        known = await self._pool.known(prompts, active.name)
        for one in known.values():  # what closed behind the end of what is surely in the pool is open still
            one.closings = [closing for closing in one.closings if closing.pos <= self._ends[active.partition]]
        facts = await self._pool.facts([prompt for prompt in prompts if not _is_over(known[prompt], recipe)])
        for prompt in prompts:
            if prompt not in facts:
                yield Folded([], "decided")
                continue
            key = (self._recipe.run_id, prompt)
            rounds = self._rounds(active.partition, key, facts[prompt], known[prompt])
            if rounds is None:
                yield Folded([], "not_in_pool")
                continue
            for round_ in rounds:
                if round_.begins < active.begins:
                    yield self._fold(key, round_, recipe, known[prompt], active.partition, purged)

    def _rounds(self, partition: int, key: Key, facts: list[Logged] | None, known: Known) -> list[Round] | None:
        """The prompt's groups; None if the pool lacks some of its facts."""
        letters = self._letters.get((partition, event_key(*key)), {})
        if facts is None or any(letter.spoiled == "unstorable" for letter in letters.values()):
            return None
        return split([*filter(known.opened, facts), *letters.values()], known.closings)

    def _fold(self, key: Key, round_: Round, recipe: ActiveRecipe, known: Known, partition: int, purged: int) -> Folded:
        if round_.begins < purged:
            return Folded([], "run_purged")
        if round_.closing is None:
            return Folded([], "open")
        if round_.begins >= round_.closing.pos:
            return Folded([], "not_in_pool")
        said = known.said.get(round_.number, [])
        return fold(key, round_, recipe, said, partition=partition, now=self._now)


def _is_over(known: Known, recipe: ActiveRecipe) -> bool:
    """Whether the prompt made one group, of which the ledger tells that nothing more is said."""
    return [closing.round for closing in known.closings] == [1] and is_over(known.said.get(1, ()), recipe)


async def _write(producer: AIOKafkaProducer, outputs: Sequence[Output], recipe: str) -> None:
    """What was decided, in order, in transactions of whole groups."""
    try:
        for records in outbox.cut(outbox.address(output, source=_SOURCE) for output in outputs):
            await outbox.write(producer, records, timeout=TRANSACTION_TIMEOUT)
    except ProducerFenced as error:
        raise UserError(
            f"another backfill of recipe {recipe} began and goes on from here: nothing is lost, and nothing said twice"
        ) from error
    except (KafkaError, RetryableError) as error:
        raise RetryableError(
            f"the broker did not confirm what was decided ({error!r}): run the backfill again, it goes on from here"
        ) from error
