"""Which fault strikes whom at which second: drawn from a seed alone, pure.

Invariants: the same seed and length give the same faults; every kind comes before any comes again; of one target no two
overlap, with time between them to get up; all have ended by the length given.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["kill", "pause", "cut", "slow", "spool", "skew"]

SESSION: Final = 6.0
"""Seconds for which a member of a consumer group may be silent; who is paused sleeps longer."""
BEGIN: Final = 4.0
"""Seconds of undisturbed work before the first fault."""
GET_UP: Final = 8.0
"""Seconds that a target has between the end of a fault and its next one."""
GAP: Final = (1.5, 4.5)
"""Seconds between the beginnings of faults."""

STAGES: Final = ("gateway", "streams", "b-streams", "sinks", "b-sinks", "workers", "trainer")
"""Processes that are killed and paused."""
KILLED: Final = (*STAGES, "clickhouse", "kafka")
LASTS: Final[dict[Kind, tuple[float, float]]] = {
    "kill": (0.0, 0.0),
    "pause": (SESSION + 2, SESSION + 4),
    "cut": (0.5, 3.0),
    "slow": (3.0, 6.0),
    "spool": (5.0, 8.0),
    "skew": (6.0, 10.0),
}


@dataclass(frozen=True)
class Fault:
    """`at`: seconds after the load began; `lasts`: seconds until it is taken back."""

    at: float
    kind: Kind
    target: str
    lasts: float

    @property
    def ends(self) -> float:
        return self.at + self.lasts

    def __str__(self) -> str:
        lasts = f" for {self.lasts:.1f} s" if self.lasts else ""
        return f"{self.kind} {self.target}{lasts}"


def deck() -> list[tuple[Kind, str]]:
    """Every kind of fault of every target.

    cut: every connection to the broker is closed, and none is let in; slow: it passes bytes on late; spool: it stands still
    while agents call on, until the gateway's spool is full; skew: rewards come in the wrong order, and behind the ends.
    """
    return [
        *(("kill", target) for target in KILLED),
        *(("pause", target) for target in (*STAGES, "clickhouse")),
        ("cut", "network"),
        ("slow", "network"),
        ("spool", "kafka"),
        ("skew", "rewards"),
    ]


def draw(seed: int, seconds: float) -> list[Fault]:
    """The faults of a run, by their beginning."""
    rng = random.Random(seed)
    faults: list[Fault] = []
    free: dict[str, float] = {}
    waiting: list[tuple[Kind, str]] = []
    for at in _beginnings(rng, seconds):
        if not waiting:
            waiting = deck()
            rng.shuffle(waiting)
        for place, (kind, target) in enumerate(waiting):
            lasts = round(rng.uniform(*LASTS[kind]), 1)
            if free.get(target, 0.0) <= at and at + lasts <= seconds:
                del waiting[place]
                faults.append(Fault(at, kind, target, lasts))
                free[target] = at + lasts + GET_UP
                break
    return faults


def _beginnings(rng: random.Random, seconds: float) -> Iterator[float]:
    at = BEGIN
    while at < seconds:
        yield round(at, 1)
        at += rng.uniform(*GAP)
