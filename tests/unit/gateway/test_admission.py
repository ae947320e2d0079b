"""Groups are admitted as far as trainers want them, stay admitted, and are forgotten when they are over."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.events import Outcome
from gateway.places import Session
from gateway.rollouts import admission
from gateway.rollouts.admission import MAX_RETRY_AFTER, UNSEEN, Admissions, Groups
from tests.factories import RUN, a_demand

TRAIN = (RUN, "train")


def an_outcome(prompt_uid: str, outcome: str = "emitted", recipe: str | None = "test", **over: Any) -> Outcome:
    fields: dict[str, Any] = {
        "outcome_id": "o",
        "recipe": recipe,
        "run_id": RUN,
        "prompt_uid": prompt_uid,
        "group_id": prompt_uid,
        "outcome": outcome,
        "reason": "size",
        "partition": 0,
        "pos": 1,
        "at": 0.0,
    }
    return Outcome.model_validate(fields | over)


def a_session(
    prompt_uid: str, trajectory_uid: str = "t", channel: str | None = None, *, provisional: bool = False
) -> Session:
    return Session(RUN, prompt_uid, trajectory_uid, channel, provisional)


class House:
    """Admissions with their groups, at a time."""

    def __init__(self, limit: int = 1000) -> None:
        self.groups = Groups(limit)
        self.admissions = Admissions(self.groups)
        self.now = 1000.0

    def want(self, **over: Any) -> None:
        self.admissions.take(a_demand(**over), self.now, self.now)

    def ask(self, prompt_uid: str, channel: str | None = None, run_id: str = RUN) -> float | None:
        """As a gateway does: None if the group is in, else when to come back."""
        later = self.admissions.refuse(run_id, prompt_uid, channel, self.now)
        if later is None:
            self.groups.admit(run_id, prompt_uid, channel, self.now)
        return later

    def end(self, prompt_uid: str, outcome: str = "emitted", recipe: str | None = "test") -> None:
        self.admissions.end(an_outcome(prompt_uid, outcome, recipe), self.now)

    @property
    def wanted(self) -> int | None:
        standing = self.admissions.stand("test", self.now)
        assert standing is not None
        return standing.wanted


def test_without_a_trainer_every_group_may_begin() -> None:
    house = House()
    assert [house.ask(f"p{number}") for number in range(100)] == [None] * 100
    assert house.admissions.stand("test", house.now) is None


def test_as_many_groups_begin_as_the_recipe_has_room_for() -> None:
    house = House()
    house.want(batch_groups=2, max_versions=1, ready=1)
    assert house.wanted == 3
    assert [house.ask(name) for name in "abcd"] == [None, None, None, 1.0]
    house.want(batch_groups=2, max_versions=1, ready=0, cut=1)
    assert house.ask("d") is not None, "what is cut and not trained counts as what is ready"
    house.want(batch_groups=2, max_versions=1)
    assert house.ask("d") is None


def test_a_recipe_that_trains_groups_of_any_age_wants_any_number() -> None:
    house = House()
    house.want(max_versions=None, ready=10_000)
    assert house.wanted is None
    assert [house.ask(f"p{number}") for number in range(50)] == [None] * 50


def test_a_group_that_was_admitted_stays_so() -> None:
    house = House()
    house.want(batch_groups=1)
    assert house.ask("a") is None
    house.want(batch_groups=1, ready=5)
    assert house.ask("b") is not None
    assert house.ask("a") is None
    house.groups.enter(a_session("c"), None, house.now)
    assert house.ask("c") is None, "another gateway admitted it"


def test_another_channel_and_another_run_are_not_concerned() -> None:
    house = House()
    house.want(ready=2)
    assert house.ask("a") is not None
    assert house.ask("a", channel="val") is None
    assert house.ask("a", run_id="other") is None


def test_a_group_is_in_if_any_recipe_wants_it() -> None:
    house = House()
    house.want(recipe="full", ready=2)
    house.want(recipe="hungry", batch_groups=1)
    assert house.ask("a") is None
    assert house.ask("b") is not None


def test_demand_ends_with_its_time_and_with_its_trainer() -> None:
    house = House()
    house.want(ready=2, ttl=10.0)
    assert house.ask("a") is not None
    house.now += 10.0
    assert house.ask("a") is None
    standing = house.admissions.stand("test", house.now)
    assert standing is not None
    assert (standing.live, standing.wanted) == (False, None)
    house.want(ready=2, since=1.0)
    assert house.ask("b") is not None
    house.want(ready=2, since=1.0, closed=True)
    assert house.ask("b") is None
    assert house.admissions.all(house.now) == []


def test_a_trainer_that_lost_the_recipe_is_not_heard() -> None:
    house = House()
    house.want(since=5.0, ready=2)
    house.want(since=4.0, ready=0)
    house.want(since=4.0, closed=True)
    assert house.wanted == 0
    house.now += 11.0
    house.want(since=4.0, ready=0)
    assert house.wanted == 2, "the newer one is gone"


@pytest.mark.parametrize("outcome", ["discarded", "held", "emitted"])
def test_a_group_makes_room_when_its_fate_is_known(outcome: str) -> None:
    house = House()
    house.want(batch_groups=1)
    assert house.ask("a") is None
    assert house.ask("b") is not None
    house.end("a", "late")
    assert house.wanted == 0
    house.now += 1.0
    house.end("a", outcome)
    if outcome == "emitted":
        assert house.wanted == 0, "the trainer has not counted it yet"
        house.want(batch_groups=1, ready=1)
        assert house.wanted == 0
        house.now += 1.0
        house.want(batch_groups=1)
    assert house.wanted == 1
    house.end("a", outcome)
    assert house.wanted == 1, "said twice"


def test_fates_of_trajectories_and_facts_are_not_the_groups() -> None:
    house = House()
    house.want(batch_groups=1)
    house.ask("a")
    for over in ({"trajectory_uid": "t"}, {"fact_id": "f"}):
        house.admissions.end(an_outcome("a", "discarded", **over), house.now)
    assert house.wanted == 0


def test_a_prompt_that_is_used_again_is_a_new_group() -> None:
    house = House()
    house.want(batch_groups=1)
    assert house.ask("a") is None
    house.end("a", "discarded")
    house.end("a", "closed", recipe=None)
    assert len(house.groups) == 0
    house.want(batch_groups=1, ready=1)
    assert house.ask("a") is not None


def test_a_group_is_open_for_one_recipe_and_over_for_another() -> None:
    house = House()
    house.want(recipe="quick", batch_groups=1)
    house.want(recipe="slow", batch_groups=1)
    assert house.ask("a") is None
    house.end("a", "discarded", recipe="quick")
    assert house.ask("a") is None
    standings = {standing.want.demand.recipe: standing.open for standing in house.admissions.all(house.now)}
    assert standings == {"quick": 0, "slow": 1}


def test_a_group_of_which_nothing_comes_gives_its_room_back() -> None:
    house = House()
    house.want(batch_groups=2)
    house.ask("gone")
    house.ask("seen")
    house.groups.enter(a_session("seen"), None, house.now)
    house.now += UNSEEN + 1
    house.want(batch_groups=2)
    assert house.wanted == 1


def test_a_group_that_never_ends_counts_until_the_recipe_would_have_closed_it() -> None:
    house = House()
    house.want(batch_groups=1, max_age=60.0)
    house.groups.enter(a_session("a"), None, house.now)
    assert house.wanted == 0
    house.now += 61.0
    house.want(batch_groups=1, max_age=60.0)
    assert house.wanted == 1


def test_a_channel_that_is_named_later_counts() -> None:
    house = House()
    house.want(batch_groups=2)
    house.groups.enter(a_session("a"), None, house.now)
    assert house.wanted == 1
    house.groups.enter(a_session("a", channel="val"), a_session("a"), house.now)
    assert house.wanted == 2


def test_a_trajectory_that_moves_takes_its_group_along_unless_that_was_opened() -> None:
    house = House()
    house.want(batch_groups=2)
    house.groups.enter(a_session("first"), None, house.now)
    house.groups.enter(a_session("own"), a_session("first"), house.now)
    assert house.wanted == 1
    house.groups.announce(RUN, "own", None, house.now)
    house.groups.enter(a_session("third"), a_session("own"), house.now)
    assert house.wanted == 0


def test_a_prompt_that_may_be_replaced_begins_no_group_and_may_be_of_any_that_has_room() -> None:
    house = House()
    house.want(batch_groups=1, group_size=2)
    made = a_session("made", provisional=True)
    house.groups.enter(made, None, house.now)
    assert house.wanted == 1
    assert house.ask("own") is None
    house.groups.enter(a_session("own"), made, house.now)
    assert house.wanted == 0
    assert house.admissions.refuse(RUN, None, None, house.now) is None, "the group lacks a trajectory"
    assert house.admissions.refuse(RUN, None, "val", house.now) is None, "nobody limits that channel"
    house.groups.enter(a_session("own", "t2"), None, house.now)
    assert house.admissions.refuse(RUN, None, None, house.now) == 1.0
    house.groups.announce(RUN, "own", None, house.now, size=3)
    assert house.admissions.refuse(RUN, None, None, house.now) is None, "it was announced with more"
    house.end("own", "discarded")
    house.want(batch_groups=1, ready=1)
    assert house.admissions.refuse(RUN, None, None, house.now) is not None


def test_who_is_refused_waits_as_long_again_as_demand_was_full() -> None:
    house = House()
    house.want(ready=2, ttl=1e9)
    waits = []
    for _ in range(8):
        later = house.ask("a")
        assert later is not None
        waits.append(later)
        house.now += later
    assert waits == [1.0, 1.0, 2.0, 4.0, 8.0, 16.0, MAX_RETRY_AFTER, MAX_RETRY_AFTER]
    house.want(ready=0, ttl=1e9)
    assert house.ask("a") is None
    house.want(ready=2, ttl=1e9)
    assert house.ask("b") == 1.0, "it was wanted in between"


def test_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_RECIPES", 3)
    house = House(limit=10)
    for number in range(50):
        house.want(recipe=f"r{number}", max_versions=None)
        house.ask(f"p{number}")
    assert len(house.groups) == 10
    assert [standing.want.demand.recipe for standing in house.admissions.all(house.now)] == ["r47", "r48", "r49"]
    house.groups.forget(house.now + 1)
    assert len(house.groups) == 0


PROMPTS = st.sampled_from("abcde")
CHANNELS = st.sampled_from([None, "train", "val"])
RECIPES = st.sampled_from(["test", "other"])
DEEDS = st.one_of(
    st.tuples(st.just("admit"), PROMPTS, CHANNELS),
    st.tuples(st.just("enter"), PROMPTS, CHANNELS),
    st.tuples(st.just("move"), PROMPTS, PROMPTS),
    st.tuples(st.just("announce"), PROMPTS, CHANNELS),
    st.tuples(st.just("end"), PROMPTS, RECIPES),
    st.tuples(st.just("closed"), PROMPTS, RECIPES),
    st.tuples(st.just("sweep"), st.integers(0, 40), CHANNELS),
)


@given(st.lists(DEEDS, max_size=40))
def test_groups_are_counted_as_a_look_at_each_would(deeds: list[tuple[str, Any, Any]]) -> None:
    groups, now = Groups(4), 0.0
    for deed, first, second in deeds:
        now += 1.0
        if deed == "admit":
            groups.admit(RUN, first, second, now)
        elif deed == "enter":
            groups.enter(a_session(first, channel=second), None, now)
        elif deed == "move":
            groups.enter(a_session(second), a_session(first), now)
        elif deed == "announce":
            groups.announce(RUN, first, second, now)
        elif deed == "sweep":
            groups.sweep((RUN, second or "train"), now, first)
        else:
            groups.end(an_outcome(first, "emitted" if deed == "end" else "closed", second))
        held = [group for prompt in "abcde" if (group := groups.get(RUN, prompt)) is not None]
        assert len(held) == len(groups) <= 4
        for place in (TRAIN, (RUN, "val")):
            for recipe in ("test", "other"):
                open_ = [group for group in held if group.place == place and recipe not in group.over]
                assert groups.count(place, recipe) == len(open_)
