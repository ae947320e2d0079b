"""A moment of the pool: every question sees the records that were there then, and no later one.

Pure. Of rows with one key the lowest offset counts, so that rows that were merged away since were later ones: what a moment
shows never changes, until a run is purged. ClickHouse applies the filters wherever a table stands, also inside views.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from claw_r1.rules import sql_literal
from claw_r1.topics import EVENTS, OUTCOMES, TRAJECTORIES

FACT_TABLES: Final = (
    "annotations", "calls", "decisions", "group_events", "recipes", "rewards", "step_tokens", "steps",
    "trajectory_events",
)  # fmt: skip
"""Filled from the events. Not `purges`: a run that is to be forgotten is so at every moment."""
OTHER_TABLES: Final = ("cut_members", "cuts", "groups", "policies", "samples", "token_stats", "trained")
"""Filled from topics of which a moment keeps no ends: for them the time alone counts."""
TOPIC_OF: Final = {
    **dict.fromkeys(FACT_TABLES, EVENTS),
    "trajectories": TRAJECTORIES,
    "outcomes": OUTCOMES,
}


@dataclass(frozen=True)
class Moment:
    """A place on the logs, and a time before which a record must have been appended."""

    as_of: int
    """Milliseconds since the epoch, by the broker; a record of that millisecond counts."""
    ends: Mapping[str, Mapping[int, int]]
    """By topic and partition, the next offset: what lies there or later does not count."""

    def settings(self) -> dict[str, str]:
        """What a query is sent with to be asked of this moment."""
        filters = {table: self._filter(table) for table in (*TOPIC_OF, *OTHER_TABLES)}
        pairs = ", ".join(f"{sql_literal(table)}: {sql_literal(condition)}" for table, condition in filters.items())
        return {"additional_table_filters": f"{{{pairs}}}"}

    def _filter(self, table: str) -> str:
        in_time = f"append_time <= fromUnixTimestamp64Milli({self.as_of})"
        topic = TOPIC_OF.get(table)
        if topic is None:
            return in_time
        ends = self.ends.get(topic, {})
        cases = "".join(f"partition = {partition}, {end}, " for partition, end in sorted(ends.items()))
        # Outcomes come from trainers too, on a topic of their own.
        mine = f"topic != {sql_literal(topic)} OR " if table == "outcomes" else ""
        return f"{in_time} AND ({mine}offset < multiIf({cases}0))" if cases else f"{in_time} AND 0"

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "as_of": self.as_of,
            "ends": {topic: {str(p): e for p, e in of.items()} for topic, of in self.ends.items()},
        }

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Moment":
        """The inverse of `document`."""
        return cls(document["as_of"], {t: {int(p): e for p, e in of.items()} for t, of in document["ends"].items()})
