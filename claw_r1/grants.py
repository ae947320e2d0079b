"""What each process may do on the brokers, by topic, group and transactional id: the only list.

Kafka's access control lists, Strimzi's KafkaUser resources and `claw grants` are made of it. Operations are Kafka's.
A dead-letter topic cannot be told from other topics of the prefix `claw.batch.` by a pattern, so a sink may write to these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from claw_r1 import topics

Kind = Literal["topic", "group", "transactional-id", "cluster"]
READ: Final = ("Read", "Describe")
WRITE: Final = ("Write", "Describe")
BOTH: Final = ("Read", "Write", "Describe")
ADMIN: Final = ("Read", "Write", "Create", "Delete", "Alter", "Describe", "DescribeConfigs", "AlterConfigs")
CLUSTER: Final = "kafka-cluster"


@dataclass(frozen=True)
class Grant:
    """One resource, or all whose names begin with `name`, and what may be done with it."""

    kind: Kind
    name: str
    operations: tuple[str, ...]
    prefix: bool = False


def _topics(operations: tuple[str, ...], *names: str) -> list[Grant]:
    return [Grant("topic", name, operations) for name in names]


def _batches(*operations: str) -> Grant:
    return Grant("topic", topics.BATCH_PREFIX, operations, prefix=True)


def _group(name: str) -> Grant:
    return Grant("group", name, READ)


_DEAD: Final = topics.dlq_topic
STORED: Final = tuple(topic.name for topic in topics.all_topics() if not topic.name.endswith(topics.dlq_topic("")))
"""What a sink reads, beside the batches."""

GRANTS: Final[dict[str, Sequence[Grant]]] = {
    "gateway": [
        *_topics(BOTH, topics.TRAJECTORY_INDEX, topics.ENGINES, topics.POLICY, topics.RUNS, topics.DEMAND),
        *_topics(WRITE, topics.EVENTS),
        *_topics(READ, topics.OUTCOMES),
    ],
    "streams": [
        *_topics(BOTH, topics.EVENTS, topics.OUTCOMES, topics.RECIPES, topics.TRAJECTORIES),
        *_topics(WRITE, _DEAD(topics.EVENTS)),
        _batches(*BOTH),
        _group("claw-streams"),
        Grant("transactional-id", "claw-streams-", WRITE, prefix=True),
    ],
    "workers": [
        *_topics(READ, topics.TRAJECTORIES),
        *_topics(WRITE, topics.EVENTS),
        *_topics((*WRITE, "Create"), _DEAD(topics.TRAJECTORIES)),
        _group("claw-workers"),
    ],
    "sinks": [
        *_topics(READ, *STORED),
        *_topics((*WRITE, "Create"), *map(topics.dlq_topic, STORED)),
        _batches(*BOTH, "Create"),
        _group("claw-sinks"),
    ],
    "console": [
        *_topics(READ, *map(topics.dlq_topic, STORED)),
        *_topics(WRITE, topics.EVENTS),
        *_topics(BOTH, topics.RECIPES),
        _batches("Read", "Create", "Describe", "DescribeConfigs"),
        Grant("group", "claw-recipes-", READ, prefix=True),
        Grant("transactional-id", "claw-recipes-", WRITE, prefix=True),
    ],
    "trainer": [
        *_topics(READ, topics.RECIPES),
        *_topics(BOTH, topics.CUTS, topics.POLICY, topics.DEMAND),
        *_topics(WRITE, topics.TOKEN_STATS),
        _batches(*READ),
        Grant("transactional-id", "claw-trainer-", WRITE, prefix=True),
    ],
    "admin": [
        Grant("topic", "claw.", ADMIN, prefix=True),
        Grant("group", "claw-", (*READ, "Delete"), prefix=True),
        Grant("transactional-id", "claw-", WRITE, prefix=True),
        Grant("cluster", CLUSTER, ("Create", "Describe", "DescribeConfigs")),
    ],
}
"""By process; `console` decides and publishes recipes, `trainer` is a trainer's process, `admin` who runs `claw`: topics,
recipes, decisions, dead letters."""
