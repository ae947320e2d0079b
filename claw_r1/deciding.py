"""People's decisions go onto the log: from the command line and from the console alike."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from claw_r1 import bus
from claw_r1.codec import encode
from claw_r1.events import Decision
from claw_r1.ids import derived_id, new_id
from claw_r1.topics import EVENTS

DEADLINE: Final = 30.0
AT_ONCE: Final = 500
"""Records that are on their way together."""

Subject = tuple[str, str, str | None]
"""run_id, prompt_uid, and the trajectory; None: the prompt's group."""


def make_decisions(subjects: Sequence[Subject], said: Mapping[str, Any], at: float) -> list[Decision]:
    """One decision for each subject; all of one call are told by one id in theirs. `said` are further fields of the event, `at`
    seconds since the epoch."""
    call = new_id()
    return [
        Decision(
            fact_id=derived_id("decision", call, run, prompt, trajectory),
            run_id=run,
            at=at,
            prompt_uid=prompt,
            trajectory_uid=trajectory,
            **said,
        )
        for run, prompt, trajectory in subjects
    ]


async def publish_decisions(kafka: str, decisions: Sequence[Decision], *, source: str) -> None:
    """Append them to the log; returns when the broker has them all.

    Raises DependencyUnreachable if no broker answers, RetryableError if it does not acknowledge within DEADLINE seconds: some
    may be on the log then, and sending the same ones again adds nothing.
    """
    producer = await bus.start_producer(kafka, client_id=source.replace("/", "-"))
    try:
        for first in range(0, len(decisions), AT_ONCE):
            records = [encode(decision, source=source) for decision in decisions[first : first + AT_ONCE]]
            await asyncio.gather(*(bus.publish(producer, EVENTS, record, deadline=DEADLINE) for record in records))
    finally:
        await bus.stop_producer(producer)
