"""The broker hangs, dies, or was never there: no agent sees the end of an answer whose step is not durable."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from aiohttp import ClientSession

from claw_r1.events import StepStarted
from claw_r1.ids import new_id
from claw_r1.local.ports import find_port
from claw_r1.local.stack import RunningStack
from gateway.durable.recorder import Recorder
from tests.factories import a_step
from tests.integration.gateway_stand import (
    Stand,
    a_gateway,
    a_reply,
    an_engine,
    an_unready_gateway,
    chunks,
    replying,
    streaming,
    wait_for,
)

pytestmark = pytest.mark.stack
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def broker(spare: RunningStack) -> RunningStack:
    """A broker to be ill-treated."""
    return spare


async def post(stand: Stand, path: str, body: object) -> tuple[int, dict[str, str], bytes]:
    async with stand.http.post(stand.url + path, json=body) as response:
        return response.status, dict(response.headers), await response.read()


async def announced(stand: Stand, run: str, calls: int) -> None:
    """Wait until so many calls are announced durably."""
    async with asyncio.timeout(60):
        while True:
            if sum(isinstance(fact, StepStarted) for fact in await stand.facts(run)) >= calls:
                return
            await asyncio.sleep(0.02)


def test_a_broker_that_hangs(broker: RunningStack) -> None:
    async def body() -> None:
        run, hold = new_id(), asyncio.Event()
        async with (
            an_engine(replying(a_reply([1], [2]))) as engine,
            a_gateway(broker.kafka, engine.url, run=run, ack_timeout=4.0) as stand,
        ):
            path = f"/{run}/p/v1/chat/completions"
            assert (await post(stand, path, ASKED))[0] == 200
            engine.answer = streaming(chunks([1], [2, 3, 4]), hold)
            streamed = asyncio.create_task(post(stand, path, ASKED | {"stream": True}))
            await announced(stand, run, 2)
            pid = broker.freeze("kafka")
            try:
                hold.set()
                status, _, reply = await streamed
                assert (status, b"[DONE]" in reply, b'"finish_reason": "stop"' in reply) == (200, False, False)
                assert b"not_recorded" in reply
                status, headers, reply = await post(stand, path, ASKED)
                assert (status, headers["Retry-After"]) == (503, "1")
                assert json.loads(reply)["error"]["code"] == "broker_unavailable", (
                    "known to be away: no engine is asked"
                )
                assert len(engine.bodies) == 2
                assert stand.gateway.ready() is not None
            finally:
                os.kill(pid, signal.SIGCONT)
            await wait_for(lambda: stand.gateway.ready() is None, "the broker is back")
            engine.answer = replying(a_reply([1], [2]))
            assert (await post(stand, path, ASKED))[0] == 200
            await stand.check_announced(run)

    asyncio.run(body())


def test_a_broker_that_dies_in_the_middle(broker: RunningStack) -> None:
    async def body() -> None:
        run, pid = new_id(), broker.pids["kafka"]
        ended: set[str] = set()
        attempted = 0
        stop = asyncio.Event()
        async with (
            an_engine(replying(a_reply([1, 2], [3, 4]))) as engine,
            a_gateway(broker.kafka, engine.url, run=run, ack_timeout=60.0) as stand,
        ):

            async def agent(number: int) -> None:
                nonlocal attempted
                while not stop.is_set():
                    attempted += 1
                    status, headers, _ = await post(stand, f"/{run}-{number}/p/v1/chat/completions", ASKED)
                    assert status in (200, 503)
                    if status == 200:
                        ended.add(headers["x-claw-step-id"])

            agents = [asyncio.create_task(agent(number)) for number in range(4)]
            await wait_for(lambda: len(ended) > 20, "calls are made")
            os.kill(pid, signal.SIGKILL)
            before = len(ended)
            await wait_for(lambda: len(ended) > before + 50, "calls are made again", deadline=90.0)
            stop.set()
            await asyncio.gather(*agents)
            recorded = [step.step_id for step in await stand.steps(run) if step.status == "complete"]
            assert ended <= set(recorded)
            assert len(recorded) == len(set(recorded)) <= attempted
            await stand.check_announced(run)

    asyncio.run(body())


def test_no_broker_at_the_start() -> None:
    async def body() -> None:
        kafka = f"127.0.0.1:{find_port()}"
        async with (
            an_engine(replying(a_reply([1], [2]))) as engine,
            an_unready_gateway(kafka, engine.url, run="r", ack_timeout=1.0) as stand,
        ):
            await wait_for(lambda: "no Kafka broker" in (stand.gateway.ready() or ""), "the cause is known")
            async with stand.http.get(f"{stand.url}/readyz") as response:
                assert response.status == 503
                assert kafka in (await response.json())["reason"]
            async with stand.http.get(f"{stand.url}/healthz") as response:
                assert response.status == 200
            for path in ("/t/p/v1/chat/completions", "/t/p/v1/register_trajectory", "/init_trajectory"):
                status, headers, reply = await post(stand, path, ASKED)
                assert (status, headers["Retry-After"]) == (503, "1")
                assert kafka in json.loads(reply)["error"]["message"]
            assert engine.bodies == []

    asyncio.run(body())


def test_a_stop_waits_for_the_stream_that_is_open(broker: RunningStack, tmp_path: Path) -> None:
    async def body() -> None:
        run, port, hold = new_id(), find_port(), asyncio.Event()
        async with (
            an_engine(streaming(chunks([1], [2, 3, 4]), hold)) as engine,
            a_gateway(broker.kafka, engine.url, run=run) as reader,
        ):
            settings = {
                "KAFKA": broker.kafka,
                "GATEWAY_PORT": str(port),
                "GATEWAY_UPSTREAM": engine.url,
                "GATEWAY_RUN": run,
            }
            env = {k: v for k, v in os.environ.items() if not k.startswith("CLAW_")}
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway", env=env | {f"CLAW_{k}": v for k, v in settings.items()}
            )
            try:
                await call_through_a_stop(process, f"http://127.0.0.1:{port}", run, hold)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            (step,) = await reader.steps(run)
            assert (step.status, step.capture.ok) == ("complete", True)

    asyncio.run(body())


async def call_through_a_stop(process: asyncio.subprocess.Process, url: str, run: str, hold: asyncio.Event) -> None:
    async with ClientSession() as http:
        async with asyncio.timeout(60):
            while True:
                try:
                    async with http.get(f"{url}/readyz") as response:
                        if response.status == 200:
                            break
                except OSError:
                    await asyncio.sleep(0.05)
        async with http.post(f"{url}/{run}/p/v1/chat/completions", json=ASKED | {"stream": True}) as response:
            first = await response.content.readuntil(b"\n\n")
            process.send_signal(signal.SIGTERM)
            assert process.returncode is None
            hold.set()
            rest = await response.content.read()
    assert b"[DONE]" in first + rest
    assert await asyncio.wait_for(process.wait(), 60) == 0


def test_a_producer_that_ended_for_good_is_made_anew(broker: RunningStack) -> None:
    """An error such as an unknown sequence ends a producer: every later send fails, until there is another one."""

    async def body() -> None:
        recorder = Recorder(broker.kafka, ack_timeout=10)
        recorder.start()
        try:
            await wait_for(lambda: recorder.reason is None, "connected")
            ended = recorder._producer
            assert ended is not None
            ended._sender.sender_task.cancel()
            await wait_for(lambda: recorder._producer not in (None, ended) and recorder.reason is None, "another")
            await recorder.publish(a_step(run_id=new_id()))
        finally:
            await recorder.stop()

    asyncio.run(body())
