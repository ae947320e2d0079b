"""A moment hides what came later in every table of the pool, and a selection says what it asks."""

import pytest
from pydantic import ValidationError

from claw_r1.datasets.moment import OTHER_TABLES, TOPIC_OF, Moment
from claw_r1.datasets.selection import Member, Selection, paged
from claw_r1.rules import Condition
from claw_r1.topics import EVENTS
from sinks.rows import TABLES

MOMENT = Moment(1_700_000_000_123, {EVENTS: {0: 5, 1: 0}})


def test_every_table_of_the_log_is_under_a_moment() -> None:
    # A lookup says nothing that changes; a purge counts whenever it came.
    assert {*TOPIC_OF, *OTHER_TABLES} == TABLES.keys() - {"trajectory_lookup", "purges"}


def test_a_moment_is_kept_and_comes_back() -> None:
    assert Moment.read(MOMENT.document()) == MOMENT
    said = MOMENT.settings()["additional_table_filters"]
    assert "partition = 0, 5, partition = 1, 0" in said
    assert said.count("1700000000123") == len(TOPIC_OF) + len(OTHER_TABLES)


def test_a_selection_is_one_way_and_comes_back() -> None:
    condition = Condition(field="reward", op="ge", value=1.0)
    selection = Selection(run_id="r", where=(condition,))
    assert Selection.model_validate(selection.document()) == selection
    assert Selection.model_validate(Selection(sql="SELECT 1").document()).sql == "SELECT 1"
    for wrong in (
        {},
        {"run_id": "r", "recipe": "a", "sql": "b"},
        {"run_id": "r", "where": (condition,), "recipe": "a"},
    ):
        with pytest.raises(ValidationError):
            Selection.model_validate(wrong)


def test_pages_go_on_behind_a_key() -> None:
    page = paged("SELECT 1", Member("r", "p'", "g", "t"), 7, ("digest",))
    assert "> ('r', 'p\\x27', 'g', 't')" in page
    assert page.endswith("LIMIT 7")
    assert "digest" in page
