"""People's decisions in any order say one thing of a group."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from claw_r1.curation import NOTHING, Override, curate, list_in_force
from claw_r1.events import Decision
from tests.unit.streams.partition_log import a_decision, some_decisions


def decide(action: str, number: int = 0, uid: str | None = "t", **over: object) -> Decision:
    return a_decision("p", uid, action, number, **over)


def test_nothing_is_said_of_others() -> None:
    assert curate(list_in_force([decide("veto")]), "another") is NOTHING
    assert curate([], None) is NOTHING


def test_the_latest_of_veto_and_keep_counts() -> None:
    first, second = decide("veto", 1), decide("keep", 2)
    assert curate(list_in_force([second, first]), "t").kept
    assert not curate(list_in_force([second, first]), "t").vetoed
    assert curate(list_in_force([first]), "t").vetoed


def test_an_undo_makes_void_and_is_undone_by_a_new_one() -> None:
    veto = decide("veto", 1)
    undo = decide("undo", 2, undoes=veto.fact_id)
    again = decide("undo", 3, undoes=undo.fact_id)
    assert not curate(list_in_force([undo, veto]), "t").vetoed
    assert curate(list_in_force([undo, again, veto]), "t").vetoed


def test_undos_that_undo_each_other_end() -> None:
    first = decide("undo", 1)
    second = decide("undo", 2, undoes=first.fact_id)
    first = first.model_copy(update={"undoes": second.fact_id})
    assert list_in_force([first, second]) == []


def test_a_trajectorys_own_word_goes_before_its_groups() -> None:
    group = [decide("quality", 5, None, value=0.1), decide("tag", 5, None, value="all"), decide("keep", 5, None)]
    own = [decide("quality", 1, value=0.9), decide("tag", 1, value="one"), decide("veto", 1)]
    said = curate(list_in_force(group + own), "t")
    assert (said.quality, said.tags, said.vetoed, said.kept) == (0.9, ("all", "one"), True, False)
    whole = curate(list_in_force(group + own), None)
    assert (whole.quality, whole.tags, whole.vetoed, whole.kept) == (0.1, ("all",), False, True)
    assert curate(list_in_force(group), "t").kept


def test_a_groups_veto_is_the_groups() -> None:
    assert not curate(list_in_force([decide("veto", 0, None)]), "t").vetoed
    assert curate(list_in_force([decide("veto", 0, None)]), None).vetoed


def test_steps_are_vetoed_and_rewarded_by_themselves() -> None:
    said = curate(list_in_force([decide("veto", step_id="s"), decide("override_reward", step_id="r", value=None)]), "t")
    assert (said.vetoed, said.vetoed_steps, said.step_rewards) == (False, frozenset("s"), {"r": Override(None)})
    assert said.reward is None


def test_a_value_that_an_action_cannot_take_says_nothing() -> None:
    wrong = [decide("override_reward", 1, value="much"), decide("quality", 2, value="best"), decide("tag", 3, value="")]
    assert curate(list_in_force(wrong), "t") == curate(list_in_force([decide("relabel", 1, value=3)]), "t")
    assert curate(list_in_force([decide("override_reward", value=float("nan"))]), "t").reward is None


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_the_order_of_arrival_changes_nothing(seed: int) -> None:
    rng = random.Random(seed)
    said = [*some_decisions(rng, "p", "t", ["s", "r"]), *some_decisions(rng, "p", None), *some_decisions(rng, "p", "u")]
    shuffled = rng.sample(said, len(said))
    for uid in ("t", "u", None):
        assert curate(list_in_force(shuffled), uid) == curate(list_in_force(said), uid)
