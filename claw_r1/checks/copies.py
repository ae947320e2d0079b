"""What brokers say of a cluster's copies: who is away, which partitions lack copies, and which take no writes; pure."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel

INTERNAL: Final = ("__consumer_offsets", "__transaction_state")
"""Topics of the brokers' own without whose partitions no offset is committed and no decision is written."""


def is_ours(topic: str) -> bool:
    return topic.startswith("claw.") or topic in INTERNAL


class Copies(BaseModel):
    """Brokers by their numbers, partitions as `topic[number]`; internal topics count where they are there."""

    answering: list[int] = []
    away: list[int] = []
    """They hold copies, and are no members now."""
    partitions: int = 0
    leaderless: list[str] = []
    below: list[str] = []
    """Fewer copies in sync than `min.insync.replicas`: nothing is acknowledged there."""
    behind: list[str] = []
    """A copy is not in sync."""
    single: list[str] = []

    def told(self) -> str:
        """For a person, in one line."""
        here = f"{len(self.answering)} answer{'s' * (len(self.answering) == 1)}"
        if self.away:
            here += f", {', '.join(map(str, self.away))} away"
        if not (self.leaderless or self.below or self.behind):
            return f"{here}; every copy of {self.partitions} partitions is in sync"
        lack = f"{len(self.behind)} of {self.partitions} partitions lack a copy"
        return f"{here}; {lack}, {len(self.below)} take no writes, {len(self.leaderless)} have no leader"


def survey(brokers: Iterable[int], described: Iterable[Mapping[str, Any]], least: Mapping[str, int]) -> Copies:
    """`described`: topics as Kafka's metadata has them; `least`: topic → its `min.insync.replicas`, where it is known."""
    found = Copies(answering=sorted(brokers))
    holders: set[int] = set()
    for topic in described:
        if not is_ours(name := str(topic["topic"])):
            continue
        for partition in topic["partitions"]:
            place = f"{name}[{partition['partition']}]"
            replicas, in_sync = partition["replicas"], partition["isr"]
            holders.update(replicas)
            found.partitions += 1
            if partition["leader"] < 0:
                found.leaderless.append(place)
            if len(in_sync) < min(least.get(name, 1), len(replicas)):
                found.below.append(place)
            if len(in_sync) < len(replicas):
                found.behind.append(place)
            if len(replicas) < 2:
                found.single.append(place)
    found.away = sorted(holders - set(found.answering))
    return found
