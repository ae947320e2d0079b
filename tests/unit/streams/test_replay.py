"""A worker that dies and begins anew writes what an undisturbed one writes: nothing lost, twice, or falsely late."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from claw_r1.events import Outcome
from tests.factories import PROMPT, RUN, a_group, a_recipe, a_started, a_step, a_trajectory, an_end
from tests.unit.streams.partition_log import (
    START,
    Entry,
    Worker,
    a_log,
    check_one_fate,
    effects,
    play,
    play_with_crashes,
    set_recipe,
)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), crashes=st.integers(1, 4))
def test_crashes_change_no_output(seed: int, crashes: int) -> None:
    log = a_log(seed)
    undisturbed = play(log)
    crashed = play_with_crashes(log, random.Random(seed + 1), crashes)
    check_one_fate(undisturbed.durable)
    check_one_fate(crashed.durable)
    assert effects(crashed.durable) == effects(undisturbed.durable)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), crashes=st.integers(0, 4))
def test_carried_groups_change_no_output(seed: int, crashes: int) -> None:
    """Wherever groups are carried and workers begin anew, also behind the groups' first facts."""
    log = a_log(seed)
    carried = play_with_crashes(log, random.Random(seed + 1), crashes, carries=True)
    check_one_fate(carried.durable)
    places = frozenset({"pos", "begins"})  # copies on the log move what follows them
    assert effects(carried.durable, ignore=places) == effects(play(log).durable, ignore=places)


def test_a_straggler_after_a_restart_is_late_and_opens_nothing() -> None:
    """Everything is committed, so that nothing is replayed: the ledger alone knows the group."""
    straggler = f"{PROMPT}-t2"
    recipe = set_recipe(a_recipe(group={"size": 2}))
    records = [Entry(START, fact) for fact in (recipe, a_step(trajectory_uid=straggler), *a_group())]
    worker = Worker()
    for record in records:
        worker.fold(record)
    worker.flush()
    worker.commit()
    assert worker.committed == len(records)
    worker.crash(records)
    for fact in a_trajectory(straggler):
        worker.fold(Entry(START + 1, fact))
    worker.flush()
    check_one_fate(worker.durable)
    assert worker.state.groups == {}
    late = [e.fact_id for e in worker.durable if isinstance(e, Outcome) and e.outcome == "late"]
    assert late == [fact.fact_id for fact in a_trajectory(straggler)]


def test_a_decision_on_the_ledger_does_not_close_its_group_before_its_time() -> None:
    """One recipe had decided, and the group stayed open for another trajectory's grace: the replay must not close it."""
    recipe = set_recipe(a_recipe(group={"size": 1, "end_grace": 5}))
    slow = f"{PROMPT}-t1"
    waiting = [a_started(a_step(trajectory_uid=slow)), an_end(trajectory_uid=slow)]
    records = [Entry(START, fact) for fact in (recipe, *waiting, *a_trajectory(f"{PROMPT}-t0"))]
    worker = Worker()
    for record in records:
        worker.fold(record)
    worker.flush()
    worker.crash(records)
    assert list(worker.state.groups) == [(RUN, PROMPT)]
    worker.fold(Entry(START + 4, a_step(trajectory_uid=slow)))
    worker.flush()
    check_one_fate(worker.durable)
    assert [e for e in worker.durable if isinstance(e, Outcome) and e.outcome == "late"] == []
