"""A test waits for facts of its run by one consumer that reads on, instead of reading the log again and again."""

import asyncio
import time
from collections.abc import Callable

from claw_r1 import bus, topics
from claw_r1.codec import decode
from claw_r1.events import Fact


async def _wait(
    kafka: str, run_id: str, many: int, kind: type[Fact], check: Callable[[], None], timeout: float
) -> None:
    consumer = await bus.start_consumer(kafka, topics.EVENTS, client_id="test")
    found: set[str] = set()
    deadline = time.monotonic() + timeout
    try:
        while len(found) < many:
            assert time.monotonic() < deadline, f"after {timeout:.0f} s {len(found)} of {many} facts of {run_id}"
            check()
            for records in (await consumer.getmany(timeout_ms=100)).values():
                mine = [record for record in records if (record.key or b"").startswith(f"{run_id}/".encode())]
                events = [decode(record.headers, record.value) for record in mine]
                found |= {event.fact_id for event in events if isinstance(event, kind)}
    finally:
        await bus.stop_consumer(consumer)


def wait_for_facts(
    kafka: str,
    run_id: str,
    many: int,
    kind: type[Fact] = Fact,
    *,
    check: Callable[[], None] = lambda: None,
    timeout: float = 90.0,
) -> None:
    """Return when so many different facts of a kind are there; `check` may fail meanwhile."""
    asyncio.run(_wait(kafka, run_id, many, kind, check, timeout))
