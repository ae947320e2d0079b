"""What a growth of the events wrote again for other workers is not stored again."""

import asyncio
from types import SimpleNamespace
from typing import Any

from claw_r1.codec import MOVED, encode
from claw_r1.events import Outcome
from claw_r1.settings import SinksSettings
from claw_r1.topics import EVENTS, OUTCOMES
from sinks.app import Sink


def test_an_outcome_that_moved_is_stored_where_it_was_alone() -> None:
    outcome = Outcome(
        outcome_id="o",
        run_id="r",
        prompt_uid="p",
        group_id="p",
        outcome="closed",
        reason="size",
        partition=0,
        pos=7,
        at=1.0,
    )
    record = encode(outcome, source="test", key=b"r/p")
    sink = Sink(SinksSettings(), asyncio.Event())

    def convert(topic: str, headers: list[tuple[str, bytes]]) -> list[Any]:
        found = SimpleNamespace(topic=topic, partition=5, offset=0, timestamp=1, key=record.key, value=record.value)
        found.headers = headers
        rows, dead = sink._convert(found)
        assert dead is None
        return rows

    moved = [(MOVED, b"0/7"), *record.headers]
    assert convert(OUTCOMES, moved) == []
    assert len(convert(OUTCOMES, record.headers)) == 1
    assert len(convert(EVENTS, moved)) == 1
