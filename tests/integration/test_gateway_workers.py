"""Several gateways behind one port: they share no state, one may die, and a stop lets every stream end."""

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest
from aiohttp import ClientError, ClientSession, TCPConnector

from claw_r1 import topics
from claw_r1.bus import apply_topics
from claw_r1.events import Fact, Step, StepStarted
from claw_r1.ids import new_id
from claw_r1.local.ports import find_port
from claw_r1.settings import GatewaySettings
from gateway import server
from tests.conftest import Stack
from tests.integration.gateway_stand import a_reply, an_engine, chunks, replying, streaming, wait_for
from tests.log import facts_of
from tests.workers import Worker, workers

pytestmark = [pytest.mark.stack, pytest.mark.kill]
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


async def status_of(url: str) -> int | None:
    """What a GET answers on a connection of its own; None: nobody listens."""
    async with ClientSession(connector=TCPConnector(force_close=True)) as http:
        try:
            async with http.get(url) as response:
                return response.status
        except ClientError:
            return None


async def wait_status(url: str, status: int | None, deadline: float) -> None:
    async with asyncio.timeout(deadline):
        while True:
            if await status_of(url) == status:
                return
            await asyncio.sleep(0.05)


async def play(kafka: str, log: Path) -> tuple[list[str], list[Fact]]:
    """The step ids that callers got, and what is on the log."""
    run, url = new_id(), f"http://127.0.0.1:{(port := find_port())}"
    await apply_topics(kafka, topics.all_topics())
    async with an_engine(replying(a_reply([1, 2], [3]))) as engine:
        gateway = Worker(
            "gateway",
            log,
            kafka=kafka,
            gateway_port=port,
            gateway_upstream=engine.url,
            gateway_run=run,
            gateway_workers=2,
        )
        with workers(gateway):
            await wait_status(f"{url}/readyz", 200, 60)
            await wait_for(lambda: len(psutil.Process(gateway.pid).children()) == 2, "both workers run")
            answered: list[str] = []

            async def ask(number: int) -> None:
                # Each call on a connection of its own: the system gives it to one of the workers.
                async with ClientSession(connector=TCPConnector(force_close=True)) as http:
                    try:
                        async with http.post(f"{url}/{run}-{number}/p/v1/chat/completions", json=ASKED) as response:
                            await response.read()
                            if response.status == 200:
                                answered.append(response.headers["x-claw-step-id"])
                    except ClientError:
                        return  # its worker was killed: nobody knows what became of the call

            await asyncio.gather(*(ask(number) for number in range(20)))
            await asyncio.gather(*(ask(number) for number in range(20)))
            assert len(answered) == 40
            async with ClientSession() as http, http.get(f"{url}/metrics") as response:
                assert 'claw_gateway_calls_total{result="ok"} 40.0' in await response.text(), "of both workers"
            killed = psutil.Process(gateway.pid).children()[0].pid
            os.kill(killed, signal.SIGKILL)
            await asyncio.gather(*(ask(number) for number in range(20, 60)))

            def renewed() -> bool:
                pids = [child.pid for child in psutil.Process(gateway.pid).children()]
                return len(pids) == 2 and killed not in pids

            await wait_for(renewed, "the dead worker is started again")
            await wait_status(f"{url}/readyz", 200, 60)
            hold = asyncio.Event()
            engine.answer = streaming(chunks([1], [2, 3, 4]), hold)
            asked = len(engine.bodies)
            async with ClientSession() as http:
                call = asyncio.create_task(_read(http, f"{url}/{run}-last/p/v1/chat/completions"))
                await wait_for(lambda: len(engine.bodies) > asked, "the stream has begun")
                gateway.signal(signal.SIGTERM)
                await wait_status(f"{url}/healthz", None, 60)
                hold.set()
                step_id, reply = await call
            assert reply.endswith(b"data: [DONE]\n\n"), "a stop lets it end"
            answered.append(step_id)
            assert await asyncio.to_thread(gateway.end) == 0
    return answered, await facts_of(kafka, run)


async def _read(http: ClientSession, url: str) -> tuple[str, bytes]:
    async with http.post(
        url, data=json.dumps(ASKED | {"stream": True}), headers={"content-type": "application/json"}
    ) as r:
        return r.headers["x-claw-step-id"], await r.read()


def test_workers_share_a_port_and_nothing_else(stack: Stack, tmp_path: Path) -> None:
    answered, facts = asyncio.run(play(stack.kafka, tmp_path / "gateway.log"))
    stored = Counter(fact.step_id for fact in facts if isinstance(fact, Step))
    assert set(answered) <= set(stored)
    assert set(stored.values()) == {1}
    assert set(stored) <= {fact.step_id for fact in facts if isinstance(fact, StepStarted)}


def test_a_worker_that_cannot_serve_takes_no_connections_from_one_that_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be started while the broker is away: then it knows nothing, and the others know what they have read."""
    monkeypatch.setattr(server, "READY_WITHIN", 0.1)
    monkeypatch.setattr(server, "LOOK_EVERY", 0.02)

    async def body() -> None:
        port, looks, stop = find_port(), 0, asyncio.Event()

        async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal looks
            looks += 1
            writer.close()

        fields: dict[str, object] = {"kafka": f"127.0.0.1:{find_port()}", "port": port, "shared_port": True}
        with server.listen("127.0.0.1", port, shared=True) as listener:
            running = await asyncio.start_server(other, sock=listener)
            async with running:
                serving = asyncio.create_task(serve_until(stop, fields))
                await wait_for(lambda: looks > 3, "it looks whether the port is served, and stays away")
        await wait_status(f"http://127.0.0.1:{port}/readyz", 503, 60)  # now it listens, and says why nothing is served
        stop.set()
        await serving
        assert await status_of(f"http://127.0.0.1:{port}/readyz") is None

    asyncio.run(body())


async def serve_until(stop: asyncio.Event, fields: dict[str, object]) -> None:
    async with server.listening(GatewaySettings.model_validate(fields), stop):
        await stop.wait()


def test_a_worker_that_waits_for_the_broker_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "READY_WITHIN", 150.0)

    async def body() -> None:
        stop = asyncio.Event()
        fields: dict[str, object] = {
            "kafka": f"127.0.0.1:{find_port()}",
            "port": find_port(),
            "shared_port": True,
            "ack_timeout": 1.0,
        }
        serving = asyncio.create_task(serve_until(stop, fields))
        stop.set()
        done, _ = await asyncio.wait([serving], timeout=60)
        assert done == {serving}, "it does not wait any longer"
        await serving

    asyncio.run(body())
