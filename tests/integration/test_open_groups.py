"""What the open groups of a recipe are short of is what the pool says of their facts."""

from collections.abc import Iterator
from typing import Any

import pytest

from claw_r1.dry_run import open_members_sql
from claw_r1.events import Event, GroupOpen, Outcome
from claw_r1.recipes import Recipe
from tests.conftest import Stack
from tests.factories import RUN, a_recipe, a_reward, a_step, an_annotation, an_end
from tests.integration import test_dry_run as dry_run
from tests.unit.streams.partition_log import Entry, play, set_recipe
from trainer_adapter.pool import Pool
from trainer_adapter.waiting import OpenGroups

pytestmark = pytest.mark.stack

BEGAN = 1_700_000_000.0
RECIPE = a_recipe(
    group={"size": 2, "idle": "1h", "max_age": "2h"},
    rewards={"required": ["answer", "style"], "timeout": "1h"},
    annotations={"required": ["values"], "timeout": "1h"},
)


@pytest.fixture(scope="module")
def filled(stack: Stack) -> Iterator[dry_run.Pool]:
    pool = dry_run.Pool(stack.clickhouse, "open_groups")
    yield pool
    pool.runner.run(pool.client.close())
    pool.runner.close()


def a_trajectory(
    prompt: str, number: int, *, ended: bool = True, sources: tuple[str, ...] = (), values: bool = True
) -> Any:
    place: dict[str, Any] = {"prompt_uid": prompt, "trajectory_uid": f"{prompt}-t{number}"}
    step = a_step((1, number), (4, 5), **place)
    facts: list[Event] = [step, *(a_reward(1.0, source=source, **place) for source in sources)]
    facts += [an_annotation(step, "values", bytes(8))] if values else []
    return [*facts, an_end(**place)] if ended else facts


def judged(recipe: Recipe, facts: list[Any]) -> list[Event]:
    """The facts and what the streams say of them so far."""
    log = [set_recipe(recipe), *facts]
    worker = play([Entry(1000.0, fact) for fact in log], until=1001.0)
    return [*log, *worker.durable]


def test_open_groups_by_what_they_lack(stack: Stack, filled: dry_run.Pool) -> None:
    both = ("answer", "style")
    facts = [
        *a_trajectory("done", 0, sources=both),
        *a_trajectory("done", 1, sources=both),
        *a_trajectory("running", 0, sources=both),
        *a_trajectory("running", 1, ended=False, sources=both),
        *a_trajectory("few", 0, sources=both),
        *a_trajectory("unscored", 0, sources=("answer",)),
        *a_trajectory("unscored", 1),
        *a_trajectory("plain", 0, sources=both, values=False),
        *a_trajectory("plain", 1, sources=both),
        GroupOpen(fact_id="announced", run_id=RUN, at=1.0, prompt_uid="announced", size=2),
    ]
    events = judged(RECIPE, facts)
    fates = {
        (e.group_id, e.outcome) for e in events if isinstance(e, Outcome) and e.trajectory_uid is None and e.recipe
    }
    assert fates == {("done", "emitted")}
    filled.insert(events)
    asked = Pool(stack.clickhouse, "open_groups")
    found = asked.open_groups(RECIPE, BEGAN + 60)
    assert found == OpenGroups(5, 3, {"answer": 1, "style": 1, "annotation values": 1}, held=0, oldest_at=BEGAN), (
        "unscored lacks both, in one trajectory or the other"
    )
    listed = {row["group_id"]: row for row in asked.ask(open_members_sql(RECIPE, BEGAN + 60, 10))}
    assert {name for name, row in listed.items() if row["unfinished"]} == {"running", "few", "announced"}
    assert {name: sorted(row["lacks"]) for name, row in listed.items() if row["lacks"]} == {
        "unscored": ["answer", "style"],
        "plain": ["annotation values"],
    }
    assert len(list(asked.ask(open_members_sql(RECIPE, BEGAN + 60, 2)))) == 2
    assert asked.open_groups(RECIPE, BEGAN + 10 * 86_400) == OpenGroups(0, 0)
    assert asked.open_groups(a_recipe(name="none"), BEGAN + 60) == OpenGroups(0, 0)


def test_held_groups_are_open(stack: Stack, filled: dry_run.Pool) -> None:
    recipe = a_recipe(name="reviewed", channel="reviewed", review="required")
    facts = [
        fact.model_copy(update={"channel": "reviewed"}) if hasattr(fact, "channel") else fact
        for number in range(2)
        for fact in a_trajectory("held", number, sources=("reward",))
    ]
    filled.insert(judged(recipe, facts))
    found = Pool(stack.clickhouse, "open_groups").open_groups(recipe, BEGAN + 60)
    assert (found.groups, found.unfinished, found.held, found.short_of) == (1, 0, 1, {})
