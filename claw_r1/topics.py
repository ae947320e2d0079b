"""The topics of the project: names, partitions, keys and configuration. This is the only list.

The number of `claw.events.v1` partitions changes between two groups only, by `claw topics grow`, since it moves keys.
"""

from dataclasses import dataclass, field
from typing import Final

from claw_r1.codec import MAX_RECORD_BYTES

EVENTS: Final = "claw.events.v1"
TRAJECTORIES: Final = "claw.trajectories.v1"
OUTCOMES: Final = "claw.outcomes.v1"
CUTS: Final = "claw.cuts.v1"
TOKEN_STATS: Final = "claw.token-stats.v1"
POLICY: Final = "claw.policy.v1"
ENGINES: Final = "claw.engines.v1"
RUNS: Final = "claw.runs.v1"
RECIPES: Final = "claw.recipes.v1"
TRAJECTORY_INDEX: Final = "claw.trajectory-index.v1"
DEMAND: Final = "claw.demand.v1"
BATCH_PREFIX: Final = "claw.batch."

DEFAULT_EVENTS_PARTITIONS: Final = 4
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True)
class Topic:
    """A topic as it should be on the broker."""

    name: str
    partitions: int
    key: str
    carries: str
    config: dict[str, str] = field(default_factory=dict)


def _config(*, cleanup: str = "delete", retention_days: int | None = None, append_time: bool = False) -> dict[str, str]:
    config = {"cleanup.policy": cleanup, "max.message.bytes": str(MAX_RECORD_BYTES)}
    if "delete" in cleanup:
        config["retention.ms"] = "-1" if retention_days is None else str(retention_days * _DAY_MS)
    if append_time:
        config["message.timestamp.type"] = "LogAppendTime"
    return config


def batch_topic(recipe: str) -> str:
    """The topic of a recipe's ready groups."""
    return f"{BATCH_PREFIX}{recipe}.v1"


def recipe_of(topic: str) -> str | None:
    """The recipe whose ready groups the topic carries; None if it is another topic."""
    if topic.startswith(BATCH_PREFIX) and topic.endswith(".v1") and not topic.endswith(".dlq"):
        return topic[len(BATCH_PREFIX) : -len(".v1")]
    return None


def dlq_topic(topic: str) -> str:
    """Where a topic's undecodable records go, with their original bytes."""
    return f"{topic}.dlq"


def dlq_topic_spec(topic: str) -> Topic:
    """A dead-letter topic; that of the events always exists, others are made with their first dead letter."""
    return Topic(dlq_topic(topic), 1, "original", "original bytes + claw-dlq-* headers", _config(append_time=True))


def batch_topic_spec(recipe: str) -> Topic:
    """One partition, so that ready groups are in one total order and a cursor is one integer."""
    carries = "a ready group: Sample…, GroupReady; what was said since: Decision, RunPurged"
    return Topic(batch_topic(recipe), 1, "run_id/prompt_uid", carries, _config(append_time=True))


def all_topics(events_partitions: int = DEFAULT_EVENTS_PARTITIONS) -> list[Topic]:
    """Every topic that exists without any recipe, with the dead-letter topics."""
    group = "run_id/prompt_uid"
    topics = [
        Topic(EVENTS, events_partitions, group, "every fact", _config(retention_days=7, append_time=True)),
        Topic(TRAJECTORIES, events_partitions, group, "Trajectory", _config(retention_days=7, append_time=True)),
        Topic(
            OUTCOMES, events_partitions, group, "Outcome, GroupCarried", _config(retention_days=30, append_time=True)
        ),
        Topic(CUTS, 1, "recipe", "BatchCut, BatchTrained, Outcome", _config(append_time=True)),
        Topic(TOKEN_STATS, 1, "recipe", "TokenStats", _config(retention_days=7, append_time=True)),
        Topic(POLICY, 1, "run_id[/engine]", "Policy", _config(cleanup="compact", append_time=True)),
        Topic(
            ENGINES,
            1,
            "fleet/engine[/pause]",
            "EngineSet, EnginePause",
            _config(cleanup="compact", append_time=True),
        ),
        Topic(RUNS, 1, "run_id", "RunConfig", _config(cleanup="compact", append_time=True)),
        Topic(RECIPES, 1, "recipe@version/partition", "RecipeActive", _config(cleanup="compact", append_time=True)),
        Topic(TRAJECTORY_INDEX, 1, "trajectory_uid", "TrajectoryIndex", _config(cleanup="compact", append_time=True)),
        # Of the moment: what is older than a day says nothing, also of recipes and groups that never come again.
        Topic(
            DEMAND,
            1,
            "recipe, or run_id/prompt_uid",
            "Demand, GroupAdmitted",
            _config(cleanup="compact,delete", retention_days=1, append_time=True),
        ),
    ]
    return [*topics, dlq_topic_spec(EVENTS)]
