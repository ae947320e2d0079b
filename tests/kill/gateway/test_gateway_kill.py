"""The gateway is killed while its spool holds facts: what agents were answered is on the log, each trajectory in its order."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from claw_r1.ids import new_id
from claw_r1.local.ports import find_port
from claw_r1.local.stack import RunningStack
from tests.integration.gateway_stand import a_reply, an_engine, replying, wait_for
from tests.kill.gateway.play import a_spooling_gateway, check_log, playing, segments
from tests.workers import workers

pytestmark = [pytest.mark.stack, pytest.mark.kill]


def tear(spool: Path) -> None:
    """Leave the last segment as a process does that is killed in the middle of a write."""
    last = max(spool.glob("worker-*/*.segment"))
    with last.open("ab") as file:
        file.write(last.read_bytes()[16:40])


def test_a_gateway_killed_with_facts_in_its_spool_loses_none(broker: RunningStack, tmp_path: Path) -> None:
    spool = tmp_path / "spool"

    async def body() -> None:
        run, port = new_id(), find_port()
        async with an_engine(replying(a_reply([1, 2], [3, 4]))) as engine:
            gateway = a_spooling_gateway(tmp_path, broker.kafka, engine.url, port=port, run=run)
            with workers(gateway):
                async with playing(f"http://127.0.0.1:{port}", run) as play:
                    await play.go_on(3, "calls are served")
                    pid = broker.freeze("kafka")
                    try:
                        await play.go_on(10, "calls are served without the broker")
                        gateway.kill()
                        assert segments(spool)
                        tear(spool)
                    finally:
                        os.kill(pid, signal.SIGCONT)
                    gateway.start()
                    await play.go_on(3, "calls are served by a gateway that was killed")
                    await wait_for(lambda: segments(spool) == [], "the spool is empty while calls are made")
                    pid = broker.freeze("kafka")
                    try:
                        await play.go_on(10, "calls are served without the broker again")
                    finally:
                        os.kill(pid, signal.SIGCONT)
                    gateway.kill()  # it may be draining
                    gateway.start()
                    await play.go_on(3, "calls are served in the end")
                assert gateway.end() == 0
            assert "a torn record was cut" in gateway.logged()
            await check_log(broker.kafka, play)

    asyncio.run(body())
    assert list(spool.iterdir()) == []
