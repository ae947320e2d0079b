"""What a recipe would do to the pool is what the streams do to the same facts, by reason."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from claw_r1.clickhouse import ClickHouse
from claw_r1.dry_run import dry_run_sql, list_untold, matching_sql
from claw_r1.events import Decision, Event, GroupCancel, GroupFact, Outcome, Sample, Trajectory, TrajectoryEnd
from claw_r1.ids import derived_id
from claw_r1.recipes import Recipe
from claw_r1.topics import EVENTS
from sinks import migrations
from sinks.rows import TABLES, Place, list_rows
from sinks.writer import build_stream
from tests.conftest import Stack
from tests.factories import RUN, a_group, a_recipe, a_reward, an_end, an_open
from tests.unit.streams.partition_log import (
    Entry,
    a_decision,
    play,
    set_recipe,
    some_decisions,
    some_rules,
    some_trajectory,
)

pytestmark = pytest.mark.stack

DATABASE = "dry_run"
Counts = Counter[tuple[str, str, str]]
FILTERS: list[dict[str, Any]] = [
    {"field": "tokens", "op": "le", "value": 9},
    {"field": "response_tokens", "op": "ge", "value": 4},
    {"field": "policy_lag", "op": "eq", "value": 0},
    {"field": "capture", "op": "eq", "value": True},
    {"field": "self_reported", "op": "eq", "value": False},
    {"field": "task_id", "op": "exists", "value": False},
    {"field": "metadata.env", "op": "in", "value": ["game", 3]},
    {"field": "rewards.style", "op": "exists", "value": True},
    {"field": "status", "op": "ne", "value": "failed"},
    {"field": "reward_mean", "op": "gt", "value": 0.5},
    {"field": "reward_max", "op": "lt", "value": 3},
    {"field": "n_rewarded", "op": "ge", "value": 2},
    {"field": "group_tokens", "op": "gt", "value": 6},
    {"field": "group_policy_lag", "op": "le", "value": 0},
]


class Pool:
    """The pool's tables, filled as the sink fills them."""

    def __init__(self, url: str, database: str = DATABASE) -> None:
        self.runner = asyncio.Runner()
        self.runner.run(migrations.apply(url, database))
        self.client = self.runner.run(ClickHouse.connect(url, database))
        self.offsets = itertools.count()

    def insert(self, events: Iterable[Event]) -> None:
        rows: dict[str, list[Any]] = {}
        for event in events:
            for name, row in list_rows(event, Place(EVENTS, 0, next(self.offsets), 1_700_000_000_000)):
                rows.setdefault(name, []).append(row)
        for name, some in rows.items():
            table = TABLES[name]
            stream = build_stream(table, some)
            self.runner.run(self.client.insert_arrow(name, table.names, stream, token=f"{next(self.offsets)}"))

    def ask(self, recipe: Recipe) -> Counts:
        found = self.runner.run(self.client.query(dry_run_sql(recipe)))
        return Counter({(about, outcome, reason): int(number) for about, outcome, reason, number, *_ in found.rows})


@pytest.fixture(scope="module")
def pool(stack: Stack) -> Iterator[Pool]:
    pool = Pool(stack.clickhouse)
    yield pool
    pool.runner.run(pool.client.close())
    pool.runner.close()


def some_facts(rng: random.Random) -> list[GroupFact]:
    """Of a few groups whose trajectories all end; ends come last, then what cancels a group, so that the pool has all of it."""
    facts: list[GroupFact] = []
    for number in range(rng.randint(1, 4)):
        prompt = f"p{number}"
        for n in range(rng.randint(1, 4)):
            uid = f"{prompt}-t{n}"
            facts += some_trajectory(rng, prompt, uid)
            facts.append(an_end(prompt_uid=prompt, trajectory_uid=uid, status=rng.choice(("completed", "failed"))))
            if rng.random() < 0.5:
                over = {"metadata": rng.choice(({"env": "game"}, {"env": 3.0}, {}))}
                facts.append(an_open(fact_id=f"more-{uid}", prompt_uid=prompt, trajectory_uid=uid, **over))
        if rng.random() < 0.5:
            facts += some_decisions(rng, prompt, None)
        if rng.random() < 0.3:
            value = rng.choice((1.0, None))
            facts.append(a_reward(value, prompt_uid=prompt, trajectory_uid=None, source="style", self_reported=True))
        if rng.random() < 0.1:
            facts.append(GroupCancel(fact_id=derived_id("cancel", prompt), run_id=RUN, at=1.0, prompt_uid=prompt))
    rng.shuffle(facts)
    masking = [f.fact_id for f in facts if isinstance(f, Decision) and f.action == "veto" and f.step_id is not None]
    unique = {fact.fact_id: fact for fact in facts if fact.fact_id not in masking}.values()
    return sorted(unique, key=lambda fact: isinstance(fact, TrajectoryEnd) + 2 * isinstance(fact, GroupCancel))


def some_recipe(rng: random.Random) -> Recipe:
    rules = some_rules(rng, 4)
    if "review" in rules:
        rules["review_deadline"] = "1d"
    rules["filters"] = [*rules.get("filters", ()), *rng.sample(FILTERS, rng.choice((0, 0, 1)))]
    return a_recipe(
        channel=rng.choice(("train", "train", "val")),
        group={
            "size": 99,
            "min_size": 2 if rules.get("algorithm") == "dpo" else rng.choice((1, 2)),
            "idle": "1h",
            "max_age": "2h",
        },
        rewards={
            "required": rng.choice((("reward",), (), ("reward", "style"))),
            "weights": rng.choice(({}, {"reward": 2.0, "style": -1.0})),
            "on_missing": rng.choice(("discard", "zero", "mask")),
        },
        **rules,
    )


def live(facts: list[GroupFact], recipe: Recipe) -> tuple[list[Event], Counts]:
    """(the trajectories that the streams announced, their outcomes by reason)."""
    log = [Entry(1100.0 if isinstance(fact, GroupCancel) else 1000.0, fact) for fact in facts]
    worker = play([Entry(1000.0, set_recipe(recipe)), *log], until=1100.0)
    worker.fold(Entry(1000.0 + 3700))
    worker.flush()
    trajectories: list[Event] = [e for e in worker.durable if isinstance(e, Trajectory)]
    counts: Counts = Counter()
    for one in worker.durable:
        if not isinstance(one, Outcome) or one.recipe is None or one.outcome == "late":
            continue
        about = "group" if one.trajectory_uid is None else "trajectory"
        reason = one.reason.removesuffix("_at_idle").replace("context_lost", "incomplete")
        counts[about, one.outcome, "complete" if (about, one.outcome) == ("group", "emitted") else reason] += 1
    return trajectories, counts


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32))
def test_the_dry_run_says_what_the_streams_do(pool: Pool, seed: int) -> None:
    rng = random.Random(seed)
    facts, recipe = some_facts(rng), some_recipe(rng)
    run = f"run-{next(pool.offsets)}"
    trajectories, counts = live(facts, recipe)
    named = [event.model_copy(update={"run_id": run}) for event in (*facts, *trajectories)]
    pool.insert(named)
    said = pool.ask(recipe.model_copy(update={"run_id": run}))
    held = {key: number for key, number in counts.items() if key[1] == "held"}
    if held:  # at the same moment the streams have said of what is not held all, of what is held only that
        said = Counter({key: number for key, number in said.items() if key[0] == "group"})
        counts = Counter({key: number for key, number in counts.items() if key[0] == "group"})
    assert said == counts


def test_the_tokens_of_a_dry_run_are_those_of_the_samples(pool: Pool) -> None:
    """Where no context was rewritten; what is left out has its own."""
    run = f"run-{next(pool.offsets)}"
    facts = [
        *a_group((1.0, 0.0, 0.5), steps=2),
        *a_group((1.0,), steps=1, prompt_uid="small"),
        *a_group((1.0, 0.0), steps=3, prompt_uid="whole"),
    ]
    recipe = a_recipe(group={"size": 99, "min_size": 2, "idle": "1h", "max_age": "2h"})
    worker = play([Entry(1000.0, set_recipe(recipe)), *(Entry(1000.0, fact) for fact in facts)], until=1100.0)
    worker.fold(Entry(1000.0 + 3700))
    worker.flush()
    samples = [one for one in worker.durable if isinstance(one, Sample)]
    trajectories = [one for one in worker.durable if isinstance(one, Trajectory)]
    pool.insert([event.model_copy(update={"run_id": run}) for event in (*facts, *trajectories)])
    found = pool.runner.run(pool.client.query(dry_run_sql(recipe.model_copy(update={"run_id": run})))).dicts()
    by_fate = {(row["about"], row["outcome"], row["reason"]): row for row in found}
    emitted = by_fate["trajectory", "emitted", "complete"]
    assert len(samples) == emitted["number"] == 5
    assert emitted["tokens"] == sum(len(sample.token_ids) // 4 for sample in samples)
    assert emitted["sampled"] == sum(sum(sample.loss_mask) for sample in samples)
    small = by_fate["trajectory", "discarded", "too_small"]
    assert 0 < small["sampled"] < small["tokens"] < emitted["tokens"]
    assert {row["tokens"] for row in found if row["about"] == "group"} == {0}


def test_what_the_pool_does_not_know_is_said() -> None:
    recipe = a_recipe(filters=[{"field": "chains", "op": "eq", "value": 1}, {"field": "turns", "op": "le", "value": 3}])
    assert list_untold(recipe) == ["chains"]


def test_trajectories_are_found_by_conditions(pool: Pool) -> None:
    run = f"run-{next(pool.offsets)}"
    facts = [
        *a_group((1.0, 0.0, 0.5), run_id=run),
        a_decision("prompt-1", "prompt-1-t1", "tag", value="odd", run_id=run),
    ]
    trajectories, _ = live([f.model_copy(update={"run_id": RUN}) for f in facts], a_recipe())
    pool.insert([*facts, *(t.model_copy(update={"run_id": run}) for t in trajectories)])

    def find(*conditions: dict[str, Any]) -> list[str]:
        recipe = a_recipe(run_id=run, filters=conditions)
        found = pool.runner.run(pool.client.query(matching_sql(recipe)))
        return [uid for _prompt, uid in found.rows]

    assert find({"field": "reward", "op": "lt", "value": 0.75}) == ["prompt-1-t1", "prompt-1-t2"]
    low, odd = {"field": "reward", "op": "lt", "value": 0.75}, {"field": "tags", "op": "has", "value": "odd"}
    assert find(low, odd) == ["prompt-1-t1"]
    assert find() == ["prompt-1-t0", "prompt-1-t1", "prompt-1-t2"]
