"""A log full of what goes wrong, faults that strike workers and broker while it is written, and what must be so afterwards.

Everything is drawn from one seed: the log, and at which of its records which fault strikes.
"""

import asyncio
import random
import signal
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from claw_r1 import bus, registry, topics
from claw_r1.codec import Record, decode, encode, header
from claw_r1.events import Event, GroupFact, GroupReady, Outcome, Sample, TrajectoryEnd
from claw_r1.ids import event_key
from claw_r1.local.stack import RunningStack
from tests.conftest import wait_until
from tests.factories import RUN, a_group, a_recipe, a_reward
from tests.log import Emitted
from tests.workers import Worker

GROUPS_OPEN = 40
"""Groups that are written side by side."""
RECIPES = {"whole": 4, "half": 2}
"""Name → trajectories that make a group of it."""
WORKERS = ("w0", "w1")
IN_FLIGHT = 500


@dataclass(frozen=True)
class Shape:
    """How much is written, how fast, and how often what strikes."""

    groups: int
    facts_per_s: float
    kills: int
    pauses: int
    broker_kills: int
    wait: float
    """Longest wait for the last group, seconds."""


@dataclass
class Item:
    """A record to be written."""

    group: str
    record: Record


@dataclass
class Log:
    """What is written, and which groups have no reason not to be emitted."""

    items: list[Item]
    plain: set[str] = field(default_factory=set)
    """Groups of which every fact comes before its trajectory's end, and none that cannot be read."""


# ------------------------------------------------------------------------------------------------------------- the log


def a_log(seed: int, groups: int) -> Log:
    rng = random.Random(seed)
    log = Log([])
    waiting: list[tuple[int, Item]] = []
    many: list[deque[Item]] = []
    names = deque(f"g{number}" for number in range(groups))
    while names or many or waiting:
        while names and len(many) < GROUPS_OPEN:
            many.append(deque(_some_group(rng, names.popleft(), log, waiting)))
        due = [entry for entry in waiting if entry[0] <= len(log.items) or not many]
        for entry in due:
            waiting.remove(entry)
            log.items.append(entry[1])
        if not many:
            continue
        one = rng.choice(many)
        item = one.popleft()
        log.items.append(item)
        if rng.random() < 0.05:
            waiting.append((len(log.items) + rng.randint(1, 60), item))  # a copy
        if not one:
            many.remove(one)
    return log


def _some_group(rng: random.Random, name: str, log: Log, waiting: list[tuple[int, Item]]) -> list[Item]:
    """A group's records in the order in which they are written; some of it comes behind everything, and is put by."""
    odd = rng.random() < 0.1
    threads: list[list[GroupFact]] = []
    facts = a_group((1.0, 0.0, 1.0, 0.5), steps=5, prompt_uid=name)
    for uid in dict.fromkeys(getattr(fact, "trajectory_uid", None) for fact in facts):
        mine = [fact for fact in facts if getattr(fact, "trajectory_uid", None) == uid]
        if rng.random() < 0.2:
            mine.insert(-1, a_reward(0.25, prompt_uid=name, trajectory_uid=uid, revision=1))
        ends = [] if odd else [fact for fact in mine if isinstance(fact, TrajectoryEnd)]
        rest = [fact for fact in mine if fact not in ends]
        threads.append([*_shuffled(rng, rest, 6 if rng.random() < 0.5 else 1), *ends])
        if rng.random() < 0.05:
            late = a_reward(0.75, prompt_uid=name, trajectory_uid=uid, revision=2)
            waiting.append((len(log.items) + rng.randint(1_500, 4_000), _item(late)))
    items: list[Item] = []
    while threads := [thread for thread in threads if thread]:
        items.append(_item(rng.choice(threads).pop(0)))
    if rng.random() < 0.04:
        headers = [("ce_type", rng.choice((b"claw.step.v1", b"claw.step.v99")))]
        bad = Record(event_key(RUN, name), f"\xc1 {name}".encode("latin-1"), headers)
        items.insert(rng.randrange(len(items)), Item(name, bad))
    elif not odd:
        log.plain.add(name)
    return items


def _item(fact: GroupFact) -> Item:
    return Item(fact.prompt_uid, encode(fact, source="chaos"))


def _shuffled(rng: random.Random, facts: Sequence[GroupFact], reach: int) -> list[GroupFact]:
    """Each fact at most about `reach` places from its own."""
    places = sorted((place + rng.random() * reach, place) for place in range(len(facts)))
    return [facts[place] for _, place in places]


# ------------------------------------------------------------------------------------------------------------ the faults


class Chaos:
    """Two workers on a broker, and what strikes them."""

    def __init__(self, stack: RunningStack, folder: Path, seed: int, shape: Shape, **settings: object) -> None:
        self.stack = stack
        self.shape = shape
        self.log = a_log(seed, shape.groups)
        self.struck: Counter[str] = Counter()
        shared = {"kafka": stack.kafka, "streams_port": 0, "streams_session_timeout": "6s"} | settings
        self.workers = [Worker("streams", folder / f"{name}.log", streams_worker=name, **shared) for name in WORKERS]
        self._one_at_a_time = asyncio.Lock()
        rng = random.Random(seed + 1)
        faults = ["kill"] * shape.kills + ["pause"] * shape.pauses + ["broker"] * shape.broker_kills
        rng.shuffle(faults)
        end = len(self.log.items)
        self._faults = {
            end * (place + 1) // (len(faults) + 1) + rng.randint(-end // 40, end // 40): (
                fault,
                rng.choice(self.workers),
            )
            for place, fault in enumerate(faults)
        }

    async def play(self) -> None:
        """Write the log, strike, and wait until every group is closed. The workers were started."""
        kafka = self.stack.kafka
        for name, size in RECIPES.items():
            await registry.apply_recipe(kafka, a_recipe(name=name, group={"size": size, "idle": "30m"}), deadline=90)
        watching = asyncio.create_task(self._keep_alive())
        try:
            await self._write()
            await self._wait_until_closed()
        finally:
            watching.cancel()
        for worker in self.workers:
            assert worker.end() == 0, worker.logged()[-3_000:]

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        producer = await bus.start_producer(self.stack.kafka, client_id="chaos")
        await bus.track_topics(producer, topics.EVENTS)
        begun = loop.time()
        waiting: deque[asyncio.Future[object]] = deque()
        striking: list[asyncio.Task[None]] = []
        try:
            for number, item in enumerate(self.log.items):
                if (fault := self._faults.get(number)) is not None:
                    striking.append(asyncio.create_task(self._strike(*fault)))
                await asyncio.sleep(max(0.0, begun + number / self.shape.facts_per_s - loop.time()))
                key, value, headers = item.record
                waiting.append(await producer.send(topics.EVENTS, value, key=key, headers=headers))
                while len(waiting) > IN_FLIGHT:
                    await waiting.popleft()
            await asyncio.gather(*waiting, *striking)
        finally:
            await bus.stop_producer(producer)

    async def _strike(self, fault: str, worker: Worker) -> None:
        self.struck[fault] += 1
        if fault == "kill":
            worker.signal(signal.SIGKILL)  # started again by who watches
            return
        async with self._one_at_a_time:  # a group in which nobody moves says nothing of a paused worker
            if fault == "broker":
                await asyncio.to_thread(self.stack.wait_restarted, "kafka", self.stack.kill("kafka"), 150)
            else:
                await asyncio.to_thread(self._pause, worker)

    def _pause(self, worker: Worker) -> None:
        """Stop it where it stands until its partitions have moved, and let it go on."""
        (other,) = (one for one in self.workers if one is not worker)
        assigned = other.logged().count('"assigned"')
        worker.signal(signal.SIGSTOP)
        try:
            moved = partial(_moved, worker, other, assigned)
            wait_until(moved, what="the paused worker's partitions moved", timeout=150)
        finally:
            worker.signal(signal.SIGCONT)

    async def _keep_alive(self) -> None:
        """What a supervisor does: a worker that ended is started again."""
        while True:
            for worker in self.workers:
                if not worker.alive:
                    worker.start()
            await asyncio.sleep(0.1)

    async def _wait_until_closed(self) -> None:
        names = {item.group for item in self.log.items}
        closed: set[str] = set()
        consumer = await bus.start_consumer(self.stack.kafka, topics.OUTCOMES, client_id="chaos")
        try:
            async with asyncio.timeout(self.shape.wait):
                while closed != names:
                    event = decode((record := await consumer.getone()).headers, record.value)
                    if isinstance(event, Outcome) and event.outcome == "closed":
                        closed.add(event.prompt_uid)
        except TimeoutError:
            raise AssertionError(
                f"after {self.shape.wait:.0f} s these are open: {sorted(names - closed)[:20]}"
            ) from None
        finally:
            await bus.stop_consumer(consumer)


def _moved(paused: Worker, other: Worker, assigned: int) -> bool:
    return not paused.alive or other.logged().count('"assigned"') > assigned


# ----------------------------------------------------------------------------------------------------- what must be so


@dataclass(frozen=True)
class Seen:
    """A record of the events topic."""

    partition: int
    offset: int
    fact_id: str | None
    """None: it cannot be read."""


async def check(kafka: str, log: Log) -> None:
    """Every group of every recipe has one fate, and the ledger explains every record."""
    by_group: dict[str, list[Seen]] = {}
    for record in await bus.read_topic(kafka, topics.EVENTS, client_id="check"):
        run, _, group = (record.key or b"").decode().partition("/")
        if run == RUN and group and header(record.headers, "claw-carried") is None:
            fact_id = header(record.headers, "ce_id")
            seen = Seen(record.partition, record.offset, None if fact_id is None else fact_id.decode())
            by_group.setdefault(group, []).append(seen)
    written = Counter(item.group for item in log.items)
    assert {group: len(seen) for group, seen in by_group.items()} == written
    outcomes = [e for e in await _read(kafka, topics.OUTCOMES) if isinstance(e, Outcome)]
    for recipe in RECIPES:
        await _check_recipe(kafka, recipe, log, outcomes)
    closed = {o.prompt_uid: o for o in outcomes if o.outcome == "closed"}
    assert Counter(o.prompt_uid for o in outcomes if o.outcome == "closed") == dict.fromkeys(written, 1)
    assert {o.round for o in outcomes} == {1}
    late: dict[str, set[str | None]] = {}
    for o in outcomes:
        if o.outcome == "late":
            late.setdefault(o.prompt_uid, set()).add(o.fact_id)
    for group, facts in by_group.items():
        _check_explained(group, facts, closed[group].pos or 0, late.get(group, set()))
    await _check_dead_letters(kafka, log, by_group)


async def _check_recipe(kafka: str, recipe: str, log: Log, outcomes: Sequence[Outcome]) -> None:
    events = await _read(kafka, topics.batch_topic(recipe))
    mine = [o for o in outcomes if o.recipe == recipe]
    ready = [e for e in events if isinstance(e, GroupReady)]
    emitted = Emitted(ready, [e for e in events if isinstance(e, Sample)], mine)
    emitted.check_once()
    groups = {item.group for item in log.items}
    whole = [o for o in mine if o.trajectory_uid is None]
    assert Counter(o.group_id for o in whole) == dict.fromkeys(groups, 1)
    fates = Counter((o.group_id, o.trajectory_uid) for o in mine if o.trajectory_uid is not None)
    assert fates == dict.fromkeys([(group, f"{group}-t{n}") for group in groups for n in range(4)], 1)
    said = {o.group_id for o in whole if o.outcome == "emitted"}
    assert {r.group_id for r in ready} == said
    assert log.plain <= said, f"not emitted: {sorted(log.plain - said)[:20]}"


def _check_explained(group: str, facts: Sequence[Seen], pos: int, late: set[str | None]) -> None:
    """Below the closing position a fact was taken in; one that first comes at or above it is late, and nothing else is."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for seen in facts:
        if seen.fact_id is not None:
            first.setdefault(seen.fact_id, seen.offset)
            last[seen.fact_id] = seen.offset
    missing = {fact_id for fact_id, offset in first.items() if offset >= pos} - late
    assert not missing, f"{group}: neither taken in nor late: {missing}"
    false = late - {fact_id for fact_id, offset in last.items() if offset >= pos}
    assert not false, f"{group}: late, and were there before the group closed: {false}"


async def _check_dead_letters(kafka: str, log: Log, by_group: dict[str, list[Seen]]) -> None:
    bad = {(s.partition, s.offset) for facts in by_group.values() for s in facts if s.fact_id is None}
    values = {item.record.value for item in log.items if header(item.record.headers, "ce_id") is None}
    letters = await bus.read_topic(kafka, topics.dlq_topic(topics.EVENTS), client_id="check")
    named = [
        {name: value.decode() for name, value in letter.headers if name.startswith("claw-dlq")} for letter in letters
    ]
    assert {(int(n["claw-dlq-partition"]), int(n["claw-dlq-offset"])) for n in named} == bad
    assert {letter.value for letter in letters} == values


async def _read(kafka: str, topic: str) -> list[Event]:
    return [decode(r.headers, r.value) for r in await bus.read_topic(kafka, topic, client_id="check")]
