"""A recipe that comes later says of the groups before it what it would have said in its time, and says it once."""

import random
from collections.abc import Iterable
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from claw_r1.events import Event, GroupReady, Outcome, Sample
from tests.unit.streams.backfilled import a_log_of, backfill, events_of, mine, some_recipe
from tests.unit.streams.partition_log import FAR, START, a_log, check_one_fate, play


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_recipe_with_the_rules_of_another_says_what_it_would_have_said_live(seed: int) -> None:
    """Whatever the log: also prompts that are used again, stragglers, reviews, records that cannot be read."""
    first = some_recipe(random.Random(seed), "first")
    second = first.model_copy(update={"name": "second"})
    both, alone = a_log_of(seed, [first, second]), a_log_of(seed, [first])
    live = play(both).durable
    folded = backfill(alone, play(alone).durable, second)
    assert mine(events_of(folded), "second") == mine(live, "second")


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_recipe_with_other_rules_says_what_it_would_have_said_live(seed: int) -> None:
    """Of prompts whose groups are the same with it and without it; it may wait longer, and see what is late for the other."""
    rng = random.Random(seed)
    first, second = some_recipe(rng, "first"), some_recipe(rng, "second")
    both, alone = a_log_of(seed, [first, second]), a_log_of(seed, [first])
    live, before = play(both).durable, play(alone).durable
    folded = events_of(backfill(alone, before, second))
    closes, closed = closings_of(live), closings_of(before)
    same = {
        prompt
        for prompt, its in closed.items()
        if [one[:2] for one in its] == [one[:2] for one in closes.get(prompt, [])]
        and all(one.at <= other.at for one, other in zip(its, closes[prompt], strict=True))
    }
    ours, theirs = ({k: e for k, e in mine(some, "second").items() if prompt_of(e) in same} for some in (folded, live))
    assert fates(ours) == fates(theirs)


def fates(events: dict[tuple[str, ...], Event]) -> dict[tuple[str, ...], Event]:
    """Without receipts of decisions: whether one came before the close depends on when the others closed the group."""
    return {k: e for k, e in events.items() if not (isinstance(e, Outcome) and e.outcome == "late")}


class Close(NamedTuple):
    """Of a round, with its trajectories."""

    round: int
    trajectories: tuple[str, ...]
    at: float


def closings_of(events: Iterable[Event]) -> dict[str, list[Close]]:
    found: dict[str, list[Close]] = {}
    for one in events:
        if isinstance(one, Outcome) and one.outcome == "closed":
            found.setdefault(one.prompt_uid, []).append(Close(one.round, one.trajectories, one.at))
    return found


def prompt_of(event: Event) -> str:
    assert isinstance(event, Sample | GroupReady | Outcome)
    return event.prompt_uid


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_group_has_one_fate_however_often_it_is_backfilled(seed: int) -> None:
    """Also of a log with several recipes and versions, and in pieces: some groups still wait at first."""
    rng = random.Random(seed)
    log = a_log(seed)
    ledger: list[Event] = list(play(log).durable)
    recipe = some_recipe(rng, "late")
    once = mine(events_of(backfill(log, ledger, recipe)), "late")
    times = sorted(rng.uniform(START, START + 1500) for _ in range(rng.randint(0, 3)))
    for now in [*times, FAR, FAR]:
        folded = backfill(log, ledger, recipe, now=now)
        ledger += events_of(folded)
    assert all(one.outputs == [] for one in folded)
    assert {one.left for one in folded} <= {"decided", "other_channel"}
    check_one_fate(ledger)
    assert mine(ledger, "late") == once
