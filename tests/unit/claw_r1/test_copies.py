"""What brokers say of their copies is counted and told as it is."""

from collections.abc import Sequence
from typing import Any

import pytest

from claw_r1.checks.broker import judge_copies
from claw_r1.checks.copies import Copies, survey

EVENTS = "claw.events.v1"


def a_topic(name: str, *partitions: tuple[int, Sequence[int], Sequence[int]]) -> dict[str, Any]:
    """Each partition as (leader, replicas, in sync)."""
    return {
        "topic": name,
        "partitions": [
            {"partition": number, "leader": leader, "replicas": list(replicas), "isr": list(isr)}
            for number, (leader, replicas, isr) in enumerate(partitions)
        ],
    }


def surveyed(brokers: Sequence[int], *topics: dict[str, Any]) -> Copies:
    return survey(brokers, topics, {topic["topic"]: 2 for topic in topics})


ALL = (1, 2, 3)
WHOLE = surveyed(ALL, a_topic(EVENTS, (1, ALL, ALL), (2, ALL, (2, 3, 1))))
ONE_AWAY = surveyed((1, 3), a_topic(EVENTS, (1, ALL, (1, 3)), (3, ALL, (3, 1))))
TWO_AWAY = surveyed((1,), a_topic(EVENTS, (1, ALL, (1,)), (1, ALL, (1, 2))))
NO_LEADER = surveyed((1,), a_topic(EVENTS, (-1, (2, 3), (2,)), (1, ALL, (1,))))


def test_every_copy_in_sync() -> None:
    assert Copies(answering=[1, 2, 3], partitions=2) == WHOLE
    assert WHOLE.told() == "3 answer; every copy of 2 partitions is in sync"
    assert judge_copies(WHOLE).state == "ok"


def test_a_broker_that_is_away_is_named_and_its_partitions_are_behind() -> None:
    assert (ONE_AWAY.away, ONE_AWAY.behind, ONE_AWAY.below) == ([2], [f"{EVENTS}[0]", f"{EVENTS}[1]"], [])
    assert ONE_AWAY.told() == ("2 answer, 2 away; 2 of 2 partitions lack a copy, 0 take no writes, 0 have no leader")
    finding = judge_copies(ONE_AWAY)
    assert (finding.state, finding.remedy) == ("warn", "start what is down: broker 2")


def test_a_partition_below_its_bound_takes_no_writes() -> None:
    assert TWO_AWAY.below == [f"{EVENTS}[0]"]
    finding = judge_copies(TWO_AWAY)
    assert finding.state == "bad"
    assert "1 partitions have fewer copies than min.insync.replicas asks for" in finding.says
    assert finding.remedy.endswith("broker 2, 3")


def test_a_partition_without_a_leader_is_the_worst() -> None:
    assert NO_LEADER.leaderless == [f"{EVENTS}[0]"]
    finding = judge_copies(NO_LEADER)
    assert (finding.state, "no leader" in finding.says) == ("bad", True)


def test_a_single_broker_lacks_nothing_and_one_copy_of_several_brokers_is_told() -> None:
    alone = survey((1,), [a_topic(EVENTS, (1, (1,), (1,)))], {EVENTS: 1})
    assert judge_copies(alone).state == "ok"
    lonely = survey(ALL, [a_topic(EVENTS, (1, (1,), (1,)))], {EVENTS: 1})
    assert (judge_copies(lonely).state, lonely.told()) == ("warn", "3 answer; every copy of 1 partitions is in sync")


@pytest.mark.parametrize(("name", "counts"), [("__transaction_state", 1), ("claw.batch.x.v1", 1), ("other", 0)])
def test_topics_of_others_are_left_alone(name: str, counts: int) -> None:
    assert surveyed(ALL, a_topic(name, (1, ALL, ALL))).partitions == counts
