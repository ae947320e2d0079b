"""A recipe judges what began before it, from the real pool to the real topics: as it would have live, and once."""

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from claw_r1.clickhouse import ClickHouse
from claw_r1.events import Annotation, Decision, Event, GroupFact, Outcome, Step
from claw_r1.topics import EVENTS, OUTCOMES
from sinks import migrations
from sinks.rows import TABLES, Place, list_rows
from sinks.writer import build_stream
from streams.backfill.pool import BATCH_PROMPTS, FactPool
from streams.backfill.rounds import Logged
from tests.conftest import Stack
from tests.factories import RUN, a_child, a_step, an_open
from tests.golden.examples import EXAMPLES
from tests.unit.streams.backfilled import a_log_of, events_of, judge_all, known_of, logged, mine, some_recipe
from tests.unit.streams.partition_log import Entry, play

pytestmark = pytest.mark.stack

DATABASE = "backfill_rows"


class FilledPool:
    """The pool's tables, filled as the sink fills them."""

    def __init__(self, url: str) -> None:
        self.runner = asyncio.Runner()
        self.runner.run(migrations.apply(url, DATABASE))
        self.client = self.runner.run(ClickHouse.connect(url, DATABASE))
        self.numbers = itertools.count()

    def insert(self, events: list[tuple[Event, Place]]) -> None:
        rows: dict[str, list[Any]] = {}
        for event, place in events:
            for name, row in list_rows(event, place):
                rows.setdefault(name, []).append(row)
        for name, some in rows.items():
            stream = build_stream(TABLES[name], some)
            token = str(next(self.numbers))
            self.runner.run(self.client.insert_arrow(name, TABLES[name].names, stream, token=token))

    def facts(self, run_id: str, prompts: list[str]) -> dict[str, list[Logged] | None]:
        return self.runner.run(FactPool(self.client, run_id).facts(prompts))


@pytest.fixture(scope="module")
def pool(stack: Stack) -> Iterator[FilledPool]:
    pool = FilledPool(stack.clickhouse)
    yield pool
    pool.runner.run(pool.client.close())
    pool.runner.close()


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose clock shows another time than UTC."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_east")
def test_every_fact_comes_back_from_the_pool_as_it_was(pool: FilledPool) -> None:
    facts = [fact.model_copy(update={"run_id": "whole"}) for fact in EXAMPLES if isinstance(fact, GroupFact)]
    numbered = [fact.model_copy(update={"prompt_uid": f"p{n}"}) for n, fact in enumerate(facts)]
    pool.insert([(fact, Place(EVENTS, 0, 10 + n, 1_700_000_000_123)) for n, fact in enumerate(numbered)])
    found = pool.facts("whole", [fact.prompt_uid for fact in numbered])
    for n, fact in enumerate(numbered):
        if isinstance(fact, Step):  # the pool has text, and nothing tells which it was
            fact = fact.model_copy(update={"stop_reason": str(fact.stop_reason)})
        assert found[fact.prompt_uid] == [Logged(10 + n, 1_700_000_000.123, fact)]


def test_what_is_not_known_of_a_fact_comes_back_as_unknown(pool: FilledPool) -> None:
    step = a_step(run_id="bare", new_messages=None, reply=None, rollout_log_probs=None, finish_reason=None)
    step = step.model_copy(update={"policy_version": None, "model": None})
    child = a_child(step, (1, 2, 3), (6,), (7,))
    about = {"run_id": "bare", "prompt_uid": step.prompt_uid, "trajectory_uid": step.trajectory_uid, "at": 1.0}
    withdrawn = Annotation(fact_id="a", step_id=step.step_id, name="values", source="critic", values=b"", **about)
    rewardless = Decision(fact_id="d", action="override_reward", author="ada", **about)
    facts = [step, child, withdrawn, rewardless]
    pool.insert([(fact, Place(EVENTS, 0, n, 1000)) for n, fact in enumerate(facts)])
    found = pool.facts("bare", [step.prompt_uid])[step.prompt_uid]
    assert found is not None
    assert [one.fact for one in sorted(found, key=lambda one: one.offset)] == facts


def test_a_step_of_which_the_pool_has_a_part_takes_its_prompt_out(pool: FilledPool) -> None:
    (whole,) = [fact for fact in EXAMPLES if isinstance(fact, Step)]
    steps = [whole.model_copy(update={"run_id": "part", "prompt_uid": name}) for name in ("old", "new", "torn")]
    pool.insert([(step, Place(EVENTS, 0, n, 1000)) for n, step in enumerate(steps)])
    for change in (
        "steps UPDATE routed_experts_bytes = NULL WHERE run_id = 'part' AND prompt_uid = 'old'",
        "step_tokens DELETE WHERE run_id = 'part' AND prompt_uid = 'torn'",
    ):
        table, rest = change.split(" ", 1)
        pool.runner.run(pool.client.command(f"ALTER TABLE {table} {rest}", settings={"mutations_sync": 2}))
    found = pool.facts("part", ["old", "new", "torn"])
    assert (found["old"], found["torn"]) == (None, None)
    assert found["new"] is not None


def test_a_prompt_whose_facts_moved_meanwhile_is_taken_out(pool: FilledPool) -> None:
    facts = [an_open(fact_id=f"open-{n}", run_id="grown", prompt_uid=f"p{n // 2}") for n in range(4)]
    places = [
        Place(EVENTS, 0, 7, 1000),
        Place(EVENTS, 4, 2, 2000),
        Place(EVENTS, 0, 8, 1000),
        Place(EVENTS, 0, 9, 2000),
    ]
    pool.insert(list(zip(facts, places, strict=True)))
    found = pool.facts("grown", ["p0", "p1"])
    assert found["p0"] is None
    assert [one.offset for one in found["p1"] or ()] == [8, 9]


def test_many_prompts_with_long_names_are_read_in_the_order_of_the_log(pool: FilledPool) -> None:
    names = [f"{n:03}-{'x' * 120}" for n in random.Random(1).sample(range(600), 600)]
    facts = [an_open(fact_id=f"open-{name}", run_id="many", prompt_uid=name) for name in names]
    pool.insert([(fact, Place(EVENTS, n % 2, n, 1000)) for n, fact in enumerate(facts)])
    reader = FactPool(pool.client, "many")

    async def read() -> list[str]:
        found = []
        async for batch in reader.batches(1, 599):
            prompts = [one.prompt_uid for one in batch]
            assert len(prompts) <= BATCH_PROMPTS
            assert [len(some or ()) for some in (await reader.facts(prompts)).values()] == [1] * len(prompts)
            assert list((await reader.known(prompts, "any")).keys()) == prompts
            found += prompts
        return found

    assert pool.runner.run(read()) == names[1:599:2]
    assert pool.runner.run(reader.count(1, 599)) == 299


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32))
def test_the_pool_gives_the_groups_that_the_log_gave(pool: FilledPool, seed: int) -> None:
    rng = random.Random(seed)
    first, late = some_recipe(rng, "first"), some_recipe(rng, "late")
    log = [entry for entry in a_log_of(seed, [first]) if entry.spoiled is None]
    ledger = play(log).durable
    run = f"run-{next(pool.numbers)}"
    pool.insert([*_placed(log, run), *_outcomes(ledger, run)])
    facts = {key: some for key, some in logged(log).items() if key[0] == RUN}
    prompts = [prompt for _, prompt in facts]
    reader = FactPool(pool.client, run)
    read = pool.runner.run(reader.facts(prompts))
    known = pool.runner.run(reader.known(prompts, "late"))

    def of_run(some: list[Logged] | None) -> list[Logged]:
        assert some is not None
        return [one._replace(fact=one.fact and one.fact.model_copy(update={"run_id": RUN})) for one in some]

    from_pool = judge_all({key: of_run(read[key[1]]) for key in facts}, {key: known[key[1]] for key in facts}, late)
    from_log = judge_all(facts, {key: known_of(key, ledger, "late") for key in facts}, late)
    assert [one.left for one in from_pool] == [one.left for one in from_log]
    assert mine(events_of(from_pool), "late") == mine(events_of(from_log), "late")


def _placed(log: list[Entry], run: str) -> list[tuple[Event, Place]]:
    """The log's facts where they stand; copies of a fact are there as often as on the log."""
    return [
        (entry.fact.model_copy(update={"run_id": run}), Place(EVENTS, 0, offset, round(entry.time * 1000)))
        for offset, entry in enumerate(entry for entry in log if entry.is_record)
        if entry.fact is not None
    ]


def _outcomes(ledger: list[Event], run: str) -> list[tuple[Event, Place]]:
    said = [event for event in ledger if isinstance(event, Outcome)]
    return [(one.model_copy(update={"run_id": run}), Place(OUTCOMES, 0, n, 1000)) for n, one in enumerate(said)]
