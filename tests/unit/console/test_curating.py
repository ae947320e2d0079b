"""What a decision will change, and what it did, in words."""

import pytest

from claw_r1.errors import UserError
from console.curating import Wanted, Word, foretell, preview, read_value, subjects, tell_effects

DECISION = {"id": "d", "action": "veto", "undoes": None, "at": 1.0}


def rows(**states: int) -> list[dict[str, object]]:
    return [{"state": state, "n": n} for state, n in states.items()]


def test_what_is_before_the_cut_counts_and_what_is_behind_comes_too_late() -> None:
    batches = [{"recipe": "grpo", "sequence": 42, "trained": True, "n": 2}]
    told = foretell("veto", {"states": rows(ready=3, trained=2, discarded=1), "batches": batches})
    assert told["count"] == 6
    assert told["words"][0] == "3: vetoed before the cut: not trained"
    assert told["words"][1] == "2: too late: trained in batch 42 of grpo"
    assert told["words"][2].startswith("1: left out already")
    assert foretell("note", {"states": rows(trained=2), "batches": []})["words"] == [
        "2: written down; a note changes no training"
    ]


@pytest.mark.parametrize(
    ("action", "value", "read"),
    [("veto", None, None), ("quality", "0.5", 0.5), ("override_reward", "", None), ("tag", "7", "7")],
)
def test_a_value_is_read_as_the_action_takes_it(action: str, value: str | None, read: object) -> None:
    assert read_value(Word(action=action, value=value, author="ada")) == read


@pytest.mark.parametrize(
    ("action", "value", "why"),
    [
        ("ban", None, "is not one of"),
        ("undo", None, "is not one of"),
        ("veto", "1", "takes no value"),
        ("quality", "much", "takes a number"),
        ("tag", None, "needs a text"),
    ],
)
def test_a_value_that_says_nothing_is_refused(action: str, value: str | None, why: str) -> None:
    with pytest.raises(UserError, match=why):
        read_value(Word(action=action, value=value, author="ada"))


def test_named_ids_are_parameters_and_never_text_of_a_statement() -> None:
    hostile = "t'); DROP TABLE steps --"
    wanted = Wanted(q="reward<1", ids=(hostile,))
    for sql, parameters in (subjects(wanted), *preview(wanted).values()):
        assert hostile not in sql
        assert parameters == {"ids": [hostile]}


@pytest.mark.parametrize(
    ("outcomes", "applied", "state", "effect"),
    [
        ([], {}, "ready", "vetoed before the cut: not trained"),
        ([], {"d": 7}, "batched", "vetoed before the cut of batch 7: not trained"),
        ([{"fact_id": "d", "reason": "in_batch", "batch": 42}], {}, "trained", "too late: in batch 42"),
        (
            [{"fact_id": None, "reason": "vetoed", "batch": None}],
            {},
            "discarded",
            "vetoed before its group was judged: not trained",
        ),
        ([], {}, "trained", None),
    ],
)
def test_a_decision_is_told_with_its_effect(
    outcomes: list[dict[str, object]], applied: dict[str, int], state: str, effect: str | None
) -> None:
    (told,) = tell_effects([dict(DECISION)], outcomes, applied, state)
    assert told["effect"] == effect


def test_an_undo_makes_void_what_it_names_and_an_undone_undo_does_not() -> None:
    undo = {"id": "u", "action": "undo", "undoes": "d", "at": 2.0}
    again = {"id": "v", "action": "undo", "undoes": "u", "at": 3.0}
    assert [one["void"] for one in tell_effects([dict(DECISION), dict(undo)], [], {}, "ready")] == [True, False]
    assert [one["void"] for one in tell_effects([dict(DECISION), undo, again], [], {}, "ready")] == [False, True, False]
