"""Open groups that go to another partition, as the events get more of them, meet the fate that they would have met."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from claw_r1.events import Event, GroupFact, Outcome, RecipeActive, RecipeSet
from streams.carry import draft, elsewhere
from streams.readiness import GroupState
from streams.state import Key, PartitionState
from tests.factories import a_recipe
from tests.unit.streams.partition_log import (
    FAR,
    Entry,
    Worker,
    a_log,
    check_one_fate,
    copies_of,
    effects,
    play,
)

PLACES = frozenset({"pos", "begins", "partition"})


@dataclass
class Part:
    """A partition: its log, and who works on it."""

    worker: Worker
    records: list[Entry] = field(default_factory=list)

    def take(self, entry: Entry, rng: random.Random) -> None:
        """One more record, or time that passes; sometimes the worker begins anew before."""
        if rng.random() < 0.03:
            self.worker.crash(self.records)
        self.worker.fold(entry)
        if entry.is_record:
            self.records.append(entry)
        if rng.random() < 0.3:
            self.worker.flush()
        if rng.random() < 0.3:
            self.worker.commit()

    def carry(self, rng: random.Random, time: float) -> None:
        before = len(self.records)
        self.worker.begin_carry(rng)
        self.worker.end_carry(self.records, time)
        for copy in self.records[before:]:
            self.worker.fold(copy)


class Grown:
    """One partition, then more and more; prompts go to any of them with each new one, also back."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.parts = [Part(Worker())]
        self.told: list[Event] = []
        """What growth wrote to ledgers."""

    def number_of(self, key: Key, parts: int) -> int:
        """Where a prompt's facts go if there are so many partitions."""
        return random.Random(f"{self.seed} {key} {parts}").randrange(parts)

    def take(self, entry: Entry, rng: random.Random) -> None:
        key = entry.spoiled
        if isinstance(entry.fact, GroupFact):
            key = (entry.fact.run_id, entry.fact.prompt_uid)
        for part in self.parts if key is None else [self.parts[self.number_of(key, len(self.parts))]]:
            part.take(entry, rng)

    def grow(self, time: float) -> None:
        """While nobody works: what is decided of prompts that go is told there, their open groups are carried there."""
        old, before = list(self.parts), len(self.parts)
        new = Part(Worker(PartitionState(before)))
        self.parts.append(new)
        for part in old:
            part.worker.fold(Entry(time))
            part.worker.flush()
        ends = [len(part.records) for part in self.parts]
        for number, part in enumerate(old):
            for event in list(part.worker.durable):
                if isinstance(event, Outcome):
                    key = (event.run_id, event.prompt_uid)
                    target = self.number_of(key, before + 1)
                    if target != number == self.number_of(key, before):
                        self.tell(target, event.model_copy(update={"partition": target, "pos": ends[target]}))
        facts = [e.fact for e in old[0].records if isinstance(e.fact, RecipeSet)]
        newest = {fact.name: fact for fact in sorted(facts, key=lambda fact: fact.version)}
        new.records += [Entry(time, fact) for fact in newest.values()]
        for number, part in enumerate(old):
            for key, group in part.worker.state.groups.items():
                target = self.number_of(key, before + 1)
                if target != number:
                    self.tell_recipes(number, target)
                    self.move(part, group, target, ends[number], time)
        for part in self.parts:
            part.worker.crash(part.records)

    def move(self, part: Part, group: GroupState, target: int, end: int, time: float) -> None:
        state, there = part.worker.state, self.parts[target].records
        carried = draft(state, group)
        copies = copies_of(part.records, carried, group.first_offset, end, frozenset(group.seen))
        place = {"partition": target, "pos": len(there), "first": len(there), "last": len(there) + len(copies) - 1}
        carried = carried.model_copy(update=place)
        there += [Entry(time, copied=copy._replace(offset=copy.offset - end)) for copy in copies]
        self.tell(target, carried)
        self.tell(state.partition, elsewhere(carried, state))

    def tell_recipes(self, number: int, target: int) -> None:
        """All versions that one partition knows and another does not, as if they had begun there before all else."""
        mine, theirs = (
            [e for e in self.parts[n].worker.durable if isinstance(e, RecipeActive)] for n in (number, target)
        )
        known = {(one.name, one.version) for one in theirs}
        for one in reversed(mine):
            if (one.name, one.version) not in known:
                self.tell(target, one.model_copy(update={"partition": target, "begins": -1}))

    def tell(self, number: int, event: Event) -> None:
        """Write to a partition's ledger."""
        self.parts[number].worker.durable.append(event)
        self.told.append(event)

    @property
    def durable(self) -> list[Event]:
        """What workers wrote."""
        told = set(map(id, self.told))
        return [event for part in self.parts for event in part.worker.durable if id(event) not in told]


def play_grown(log: Sequence[Entry], seed: int) -> Grown:
    rng = random.Random(seed)
    grown = Grown(seed)
    at = Counter(rng.randrange(len(log) + 1) for _ in range(rng.choice((1, 1, 2, 3))))
    for index, entry in enumerate([*log, Entry(FAR)]):
        for _ in range(at[index]):
            grown.grow(log[index - 1].time if index else entry.time)
        grown.take(entry, rng)
        if rng.random() < 0.1:
            rng.choice(grown.parts).carry(rng, entry.time)
    for part in grown.parts:
        part.worker.flush()
    return grown


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_growth_changes_no_fate(seed: int) -> None:
    log = a_log(seed)
    grown = play_grown(log, seed + 1)
    check_one_fate(grown.durable)
    assert fates(grown.durable) == fates(play(log).durable)


def fates(events: Sequence[Event]) -> dict[tuple[str, ...], Event]:
    """What readers see, wherever it stands. A fact that nothing opened and that was sent once more may be called late again:
    a worker that began anew knows from the ledger that it was."""
    late = [e for e in events if isinstance(e, Outcome) and e.outcome == "late"]
    orphans = {e.fact_id for e in late if e.reason == "never_opened"}
    again = {id(e) for e in late if e.fact_id in orphans and e.reason != "never_opened"}
    return effects([e for e in events if id(e) not in again], ignore=PLACES)


def test_of_versions_that_begin_before_all_facts_the_newest_is_in_force() -> None:
    known = [
        RecipeActive(name="test", version=n, recipe=a_recipe(), run_id="default", partition=1, begins=-1)
        for n in (2, 1)
    ]
    state = PartitionState(1)
    state.load_recipes(known, before=0)
    assert [active.version for active in state.recipes] == [2]
