"""Whatever order of promises, inserts, crashes and new owners: no record is lost, and none is in the pool twice."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.codec import Record
from claw_r1.errors import InvalidRecord
from sinks.dlq import InvalidBudget, TooManyInvalid
from sinks.plan import Commit, Dead, Limits, LostRecords, Partition
from sinks.rows import ROWS_VERSION

LIMITS = Limits(rows=3, bytes=10**6, age=1.0)
STEPS = ("promise", "insert steps", "insert rewards", "stored")


@dataclass
class World:
    """A log partition with gaps, the group's committed offset, and tables that drop an insert whose token they have seen."""

    offsets: list[int]
    committed: Commit | None = None
    pool: dict[str, list[int]] = field(default_factory=lambda: {"steps": [], "rewards": []})
    tokens: dict[str, list[int]] = field(default_factory=dict)
    lives: int = 0

    @property
    def end(self) -> int:
        return self.offsets[-1] + 1 if self.offsets else 0

    def resume(self) -> Partition:
        self.lives += 1
        return Partition.resume("t/0", self.committed, 0, self.end, fresh=f"life{self.lives}")

    def insert(self, table: str, partition: Partition) -> None:
        rows = [row[0] for row in partition.range.rows.get(table, [])]
        token = partition.token(table)
        if token in self.tokens:
            assert self.tokens[token] == rows, "another insert under the same token"
        elif rows:
            self.tokens[token] = rows
            self.pool[table] += rows


def feed(world: World, partition: Partition, most: int) -> int:
    """Hand over the next records as a poll does; returns the consumer's position."""
    reached = partition.next
    for offset in [o for o in world.offsets if o >= partition.next][:most]:
        reached = offset + 1
        if partition.wants(offset):
            table = "steps" if offset % 3 else "rewards"
            partition.take(offset, 100, 0.0, [(table, (offset,))])
    return reached


@given(data=st.data(), offsets=st.lists(st.integers(0, 60), unique=True, max_size=40).map(sorted))
def test_crashes_lose_nothing_and_double_nothing(data: st.DataObject, offsets: list[int]) -> None:
    world = World(offsets)
    for _life in range(data.draw(st.integers(0, 12))):
        crash = data.draw(st.sampled_from([*STEPS, "never"]))
        rounds, beside, stops = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 4)), data.draw(st.booleans())
        live(world, crash, data.draw(st.integers(1, 7)), rounds, beside, stops=stops)
    live(world, "never", 5, rounds=200)
    assert sorted(world.pool["steps"] + world.pool["rewards"]) == offsets
    assert (world.committed.offset if world.committed else 0) == world.end


def live(world: World, crash: str, most: int, rounds: int, beside: int = 0, *, stops: bool = False) -> None:
    """One owner of the partition, which dies before the named step of a flush and reads `beside` records after each step.

    `stops`: after so many rounds it is told to end, and stores what it has, as the sink does.
    """
    partition = world.resume()
    for _round in range(rounds):
        reached = feed(world, partition, most)
        if not partition.due(10.0, LIMITS, reached):
            if reached == world.end:
                break
            continue
        if not flush(world, partition, crash, beside):
            return
    if stops and partition.range.count and not partition.inherited:
        flush(world, partition, crash, 0)


def flush(world: World, partition: Partition, crash: str, beside: int) -> bool:
    """Whether it came to its end."""
    for step in STEPS:
        if step == crash:
            return False
        if step == "promise":
            world.committed = partition.promise()
        elif step == "stored":
            world.committed = partition.stored()
        else:
            world.insert(step.removeprefix("insert "), partition)
        if partition.following is not None:
            feed(world, partition, beside)
    return True


def test_a_stop_while_an_inherited_promise_is_read_again_stores_nothing_of_it() -> None:
    world = World(list(range(6)))
    owner = world.resume()
    feed(world, owner, 6)
    world.committed = owner.promise()
    live(world, "never", 2, rounds=1, stops=True)
    assert world.pool == {"steps": [], "rewards": []}
    live(world, "never", 2, rounds=20)
    assert sorted(world.pool["steps"] + world.pool["rewards"]) == world.offsets


@given(data=st.data(), offsets=st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=20).map(sorted))
def test_a_paused_owner_that_wakes_after_its_successor_doubles_nothing(data: st.DataObject, offsets: list[int]) -> None:
    world = World(offsets)
    zombie = world.resume()
    feed(world, zombie, data.draw(st.integers(1, 7)))
    world.committed = zombie.promise()  # acknowledged, then the process is stopped; the group fences its later commits
    live(world, "never", 4, rounds=100)
    for table in world.pool:
        world.insert(table, zombie)
    assert sorted(world.pool["steps"] + world.pool["rewards"]) == offsets


def test_a_promise_does_not_grow() -> None:
    partition = Partition.resume("t/0", None, 0, 10, fresh="g")
    partition.take(0, 1, 0.0, [])
    partition.take(4, 1, 0.0, [])
    first = partition.promise()
    partition.take(5, 1, 7.0, [("steps", (5,))])
    assert partition.promise() == first
    assert partition.token("steps") == f"t/0/g/0-4/steps/r{ROWS_VERSION}"
    assert partition.range.count == 2
    assert partition.stored().offset == 5
    assert (partition.range.rows, partition.range.since, partition.next) == ({"steps": [(5,)]}, 7.0, 6)
    partition.promise()
    assert partition.token("steps") == f"t/0/g/5-5/steps/r{ROWS_VERSION}"


def test_limits() -> None:
    partition = Partition.resume("t/0", None, 0, 10, fresh="g")
    assert not partition.due(100.0, LIMITS, 0)
    partition.take(0, 10, 5.0, [])
    assert not partition.due(5.9, LIMITS, 1)
    assert partition.due(6.0, LIMITS, 1)
    partition.take(1, 10**6, 5.0, [])
    assert partition.due(5.0, LIMITS, 2)


def test_it_is_behind_while_the_log_holds_as_much_again() -> None:
    partition = Partition.resume("t/0", None, 0, 10, fresh="g")
    assert not partition.is_behind(None, 2)
    assert (partition.is_behind(2, 2), partition.is_behind(3, 2)) == (False, True)
    for offset in range(5):
        partition.take(offset, 1, 0.0, [])
    assert (partition.is_behind(10, 2), partition.is_behind(11, 2)) == (False, True)


def test_the_promise_of_an_owner_binds_the_next() -> None:
    partition = Partition.resume("t/0", None, 0, 10, fresh="one")
    partition.take(0, 1, 0.0, [])
    committed = partition.promise()
    heir = Partition.resume("t/0", committed, 0, 10, fresh="two")
    assert (heir.inherited, heir.wants(0), heir.wants(1)) == (True, True, False)
    assert not partition.inherited
    assert heir.token("steps") == partition.token("steps")
    assert not heir.due(99.0, LIMITS, 0)
    assert heir.due(0.0, LIMITS, 1)


@pytest.mark.parametrize(
    "metadata", ["", "someone else's", "{}", "[1]", '{"v":1}', '{"v":1,"generation":"g","last":"x"}']
)
def test_an_offset_of_another_program_begins_a_new_generation(metadata: str) -> None:
    partition = Partition.resume("t/0", Commit(5, metadata), 0, 10, fresh="new")
    assert (partition.first, partition.generation, partition.promised) == (5, "new", False)


@pytest.mark.parametrize(("log_start", "log_end", "says"), [(6, 10, "retention"), (0, 4, "another topic")])
def test_lost_records_stop_the_sink_unless_told_to_go_on(log_start: int, log_end: int, says: str) -> None:
    committed = Commit(5, '{"v":1,"generation":"old"}')
    with pytest.raises(LostRecords, match=says):
        Partition.resume("t/0", committed, log_start, log_end, fresh="new")
    partition = Partition.resume("t/0", committed, log_start, log_end, fresh="new", skip_lost=True)
    assert (partition.first, partition.generation) == (log_start, "new")


def test_dead_letters_go_with_their_range() -> None:
    partition = Partition.resume("t/0", None, 0, 10, fresh="g")
    dead = Dead(Record(None, b"", []), InvalidRecord("undecodable", "bad"))
    partition.take(0, 1, 0.0, [], dead)
    assert partition.due(1.0, LIMITS, 1)
    partition.promise()
    assert partition.range.dead == [dead]
    partition.stored()
    assert partition.range.dead == []


def test_invalid_records_are_borne_until_there_are_too_many() -> None:
    error = InvalidRecord("undecodable", "bad")
    budget = InvalidBudget(3)
    for _ in range(5):
        budget.invalid("a", error)
        budget.invalid("a", error)
        budget.invalid("b", error)
        budget.valid("a")
        budget.valid("b")
    budget.invalid("a", error)
    budget.invalid("a", error)
    with pytest.raises(TooManyInvalid, match="CLAW_SINKS_MAX_INVALID"):
        budget.invalid("a", error)
    spread = InvalidBudget(3)
    for _ in range(499):
        spread.invalid("a", error)
        spread.valid("a")
    with pytest.raises(TooManyInvalid, match="50%"):
        spread.invalid("a", error)
