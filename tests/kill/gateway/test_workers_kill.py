"""Several workers spool while the broker is away, and one is killed: what agents were answered is on the log all the same."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from claw_r1.ids import new_id
from claw_r1.local.ports import find_port
from claw_r1.local.stack import RunningStack
from tests.integration.gateway_stand import a_reply, an_engine, replying, wait_for
from tests.kill.gateway.play import Play, a_spooling_gateway, check_log, playing, segments
from tests.workers import Worker, workers

pytestmark = [pytest.mark.stack, pytest.mark.kill, pytest.mark.slow, pytest.mark.timeout(300)]
TAKEN_OVER = "the spool holds facts of an earlier process"


def children(gateway: Worker) -> list[int]:
    return [child.pid for child in psutil.Process(gateway.pid).children()]


def listening(gateway: Worker, port: int) -> list[int]:
    """The workers that take calls."""
    found = []
    for pid in children(gateway):
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in psutil.Process(pid).net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                    found.append(pid)
    return found


@contextlib.asynccontextmanager
async def an_outage(broker: RunningStack, *, dies: bool) -> AsyncIterator[None]:
    """The broker hangs; in the end it goes on, or it is killed and another one starts on its files."""
    frozen = broker.freeze("kafka")
    try:
        yield
    finally:
        if dies:
            await asyncio.to_thread(broker.wait_restarted, "kafka", broker.kill("kafka"))
        else:
            os.kill(frozen, signal.SIGCONT)


async def kill_one_that_spools(gateway: Worker, play: Play, spool: Path) -> None:
    """Both workers have facts in folders of their own when one is killed; the other goes on, and a new one takes over."""
    found = gateway.logged().count(TAKEN_OVER)
    await play.go_on(5, "calls are served without the broker")
    await wait_for(lambda: len({path.parent for path in segments(spool)}) == 2, "both workers spool")
    killed = children(gateway)[0]
    os.kill(killed, signal.SIGKILL)
    await play.go_on(5, "the other worker serves")
    await wait_for(lambda: gateway.logged().count(TAKEN_OVER) > found, "its folder has a new owner")


def test_workers_with_spools_of_which_one_is_killed_lose_nothing(broker: RunningStack, tmp_path: Path) -> None:
    spool = tmp_path / "spool"

    async def body() -> None:
        run, port = new_id(), find_port()
        async with an_engine(replying(a_reply([1, 2], [3, 4]))) as engine:
            gateway = a_spooling_gateway(tmp_path, broker.kafka, engine.url, port=port, run=run, workers=2)
            with workers(gateway):
                async with playing(f"http://127.0.0.1:{port}", run, keeps_connections=False) as play:
                    for dies in (False, True):
                        await wait_for(lambda: len(listening(gateway, port)) == 2, "both take calls", deadline=60)
                        await play.go_on(5, "calls are served with a broker")
                        async with an_outage(broker, dies=dies):
                            await kill_one_that_spools(gateway, play, spool)
                        await wait_for(lambda: segments(spool) == [], "the broker has what was spooled", deadline=60)
                    await play.go_on(5, "calls are served in the end")
                assert await asyncio.to_thread(gateway.end) == 0
            assert gateway.logged().count('"exit_code": -9') == 2
            await check_log(broker.kafka, play, in_order=False)

    asyncio.run(body())
    assert list(spool.iterdir()) == []
