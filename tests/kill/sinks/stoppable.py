"""`python -m sinks`, but it kills itself, or stops itself, at the n-th time that it passes a named point of a flush.

TEST_SINK_POINT: promised, inserted, inserted all, stored. TEST_SINK_TIMES: n. TEST_SINK_SIGNAL: KILL or STOP.
"""

import asyncio
import os
import signal

from claw_r1.health import HealthServer
from claw_r1.process import main
from claw_r1.settings import SinksSettings
from sinks.app import Sink


async def run(settings: SinksSettings, stop: asyncio.Event) -> None:
    left = int(os.environ["TEST_SINK_TIMES"])

    def at(point: str) -> None:
        nonlocal left
        if point == os.environ["TEST_SINK_POINT"]:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.Signals[f"SIG{os.environ['TEST_SINK_SIGNAL']}"])

    sink = Sink(settings, stop, at)
    health = HealthServer(settings.host, settings.port, sink.why_not_ready)
    await health.start()
    try:
        await sink.run()
    finally:
        await health.stop()


if __name__ == "__main__":
    main("sinks", SinksSettings, run)
