"""Facts become lines of JSON and are the same facts again."""

import json
import math

import pytest

from claw_r1.codec import pack_floats
from claw_r1.datasets.lines import read_line, write_line
from claw_r1.errors import InvalidRecord
from claw_r1.events import GroupFact
from tests.factories import a_group, a_reward, a_step
from tests.golden.examples import EXAMPLES

FACTS = [event for event in EXAMPLES if isinstance(event, GroupFact)]


@pytest.mark.parametrize("fact", [*FACTS, *a_group()], ids=lambda fact: f"{fact.TYPE}-{fact.fact_id[:6]}")
def test_a_fact_comes_back_as_it_was(fact: GroupFact) -> None:
    line = write_line(fact)
    assert line.count(b"\n") == 1
    document = json.loads(line)
    assert (document["specversion"], document["id"]) == ("1.0", fact.fact_id)
    assert read_line(document) == fact
    assert write_line(read_line(document)) == line


def test_what_json_cannot_say_comes_back_too() -> None:
    strange = pack_floats([math.nan, math.inf])
    step = a_step(response=(1, 2), rollout_log_probs=strange, metadata={"a": [1.5, None], "b": {"c": "ü"}})
    assert read_line(json.loads(write_line(step))) == step
    for value in (math.inf, -math.inf):
        assert read_line(json.loads(write_line(a_reward(value)))) == a_reward(value)
    found = read_line(json.loads(write_line(a_reward(math.nan))))
    assert math.isnan(getattr(found, "value", 0.0))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "claw.nothing.v1"}, "unknown_type"),
        ({"type": "claw.batch-cut.v1"}, "unknown_type"),
        ({"data": "text"}, "undecodable"),
        ({"data": {}}, "undecodable"),
        ({"data": {"response_ids": "§"}}, "undecodable"),
        ({"data": {"reply": 1}}, "undecodable"),
    ],
)
def test_what_is_no_fact_is_refused_with_a_reason(change: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidRecord) as refused:
        read_line(json.loads(write_line(a_step())) | change)
    assert refused.value.reason == reason
