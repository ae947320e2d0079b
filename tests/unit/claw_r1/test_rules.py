"""Conditions are refused by the name of what is wrong, and hold of values as they say."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from claw_r1.rules import COLUMN_TYPES, FIELDS, OPS, Condition, compile_python, compile_sql, find_field


def holds(field: str, op: str, value: Any, **values: Any) -> bool:
    condition = Condition.model_validate({"field": field, "op": op, "value": value})
    return compile_python(condition)(values)


def test_every_field_has_a_kind_with_ops_and_a_column() -> None:
    assert len({field.name for field in FIELDS}) == len(FIELDS)
    for field in FIELDS:
        assert field.doc
        assert OPS[field.kind]
        assert COLUMN_TYPES[field.kind]
        assert find_field(field.name.replace("*", "name")) is field


@pytest.mark.parametrize(
    ("condition", "where", "said"),
    [
        ({"field": "rewards", "op": "gt", "value": 0}, "field", "there is no field 'rewards'; there are reward, "),
        ({"field": "metadata.a..b", "op": "gt", "value": 0}, "field", "no field"),
        ({"field": "tokens", "op": "above", "value": 0}, "op", "'eq', 'ne'"),
        ({"field": "status", "op": "gt", "value": "a"}, "op", "status takes eq, ne, in, not_in, exists"),
        ({"field": "tags", "op": "eq", "value": "a"}, "op", "tags takes has, lacks, exists"),
        ({"field": "tokens", "op": "le", "value": "many"}, "value", "tokens with le takes a number, not 'many'"),
        ({"field": "tokens", "op": "le", "value": True}, "value", "takes a number"),
        ({"field": "tokens", "op": "le", "value": 10**400}, "value", "too large"),
        ({"field": "tokens", "op": "le", "value": math.nan}, "value", "is none"),
        ({"field": "tokens", "op": "in", "value": 3}, "value", "a list of values"),
        ({"field": "tokens", "op": "le", "value": [3]}, "value", "the other ops take one"),
        ({"field": "capture", "op": "eq", "value": 1}, "value", "true or false"),
        ({"field": "tags", "op": "has", "value": 1}, "value", "takes a text"),
        ({"field": "tags", "op": "exists", "value": "a"}, "value", "takes a true or false"),
        ({"field": "metadata.a", "op": "lt", "value": True}, "value", "takes a number or text"),
        ({"field": "task_id", "op": "eq", "value": "\ud800"}, "value", ""),
        ({"field": "tokens", "op": "le", "value": 1, "else": 2}, "else", "Extra inputs"),
    ],
)
def test_a_wrong_condition_is_refused_by_what_is_wrong(condition: dict[str, Any], where: str, said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Condition.model_validate(condition)
    places = {str(error["loc"][0]): error["msg"] for error in refused.value.errors()}
    assert set(places) == {where}
    assert said in places[where]


@pytest.mark.parametrize("op", ["eq", "ne", "lt", "le", "gt", "ge"])
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_no_comparison_holds_of_something_unknown(op: str, value: float | None) -> None:
    assert not holds("reward", op, 0, reward=value)
    assert not holds("reward", op, 0)
    assert holds("reward", "exists", False, reward=value)
    assert not holds("reward", "exists", True, reward=value)


def test_what_conditions_say() -> None:
    assert holds("reward", "ge", 0.5, reward=0.5)
    assert not holds("reward", "gt", 0.5, reward=0.5)
    assert holds("reward", "in", [0, 1], reward=1.0)
    assert holds("reward", "not_in", [0, 1], reward=0.5)
    assert holds("status", "ne", "failed", status="completed")
    assert holds("tags", "has", "good", tags=("bad", "good"))
    assert holds("tags", "lacks", "good", tags=())
    assert holds("tags", "lacks", "good")
    assert holds("tags", "exists", False, tags=())
    assert holds("rewards.a.b", "eq", 1, rewards={"a.b": 1.0})
    assert not holds("rewards.a", "ne", 1, rewards={"a.b": 1.0})
    assert holds("capture", "eq", False, capture=False)


def test_metadata_compare_by_their_own_type() -> None:
    game = {"env": "game", "seed": 3, "hard": True, "a": {"b": 0.5}, "list": [1], "none": None}
    assert holds("metadata.env", "eq", "game", metadata=game)
    assert holds("metadata.env", "ne", 3, metadata=game)
    assert not holds("metadata.env", "gt", 3, metadata=game)
    assert holds("metadata.env", "gt", "gam", metadata=game)
    assert holds("metadata.seed", "le", 3.0, metadata=game)
    assert not holds("metadata.hard", "eq", 1, metadata=game)
    assert holds("metadata.hard", "in", ["yes", True], metadata=game)
    assert holds("metadata.a.b", "lt", 1, metadata=game)
    assert holds("metadata.list", "exists", True, metadata=game)
    assert not holds("metadata.list", "ne", 1, metadata=game)
    assert not holds("metadata.none", "exists", True, metadata=game)
    assert not holds("metadata.env.x", "exists", True, metadata=game)


def test_sql_is_what_a_person_would_read() -> None:
    condition = Condition.model_validate({"field": "task_id", "op": "eq", "value": "it's\\\n"})
    assert compile_sql(condition) == (
        "((`task_id` IS NOT NULL AND 1) AND assumeNotNull(`task_id`) = 'it\\x27s\\x5c\\x0a')"
    )
