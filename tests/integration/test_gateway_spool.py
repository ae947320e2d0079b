"""The broker hangs or dies while a gateway with a spool serves: calls go on, and every fact reaches the log in order."""

import asyncio
import contextlib
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from claw_r1 import topics
from claw_r1.bus import apply_topics, ensure_topic, read_topic
from claw_r1.codec import decode, decode_body
from claw_r1.errors import RetryableError
from claw_r1.events import Fact, Step, TrajectoryIndex
from claw_r1.ids import new_id
from claw_r1.local.ports import find_port
from claw_r1.local.stack import RunningStack
from claw_r1.metrics import GATEWAY_DROPPED, GATEWAY_SPOOL_RECORDS
from claw_r1.topics import Topic
from gateway.durable.frames import SEGMENT_HEAD, Entry, read_head, scan
from gateway.durable.recorder import Ack, Recorder
from gateway.durable.segments import Segment, Writer
from gateway.durable.spool import Spool
from gateway.replies import Refusal
from tests.factories import a_step
from tests.integration.gateway_stand import (
    Stand,
    a_gateway,
    a_reply,
    an_engine,
    an_unready_gateway,
    replying,
    wait_for,
)

pytestmark = pytest.mark.stack
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def broker(spare: RunningStack) -> RunningStack:
    """A broker to be ill-treated."""
    asyncio.run(apply_topics(spare.kafka, topics.all_topics()))
    return spare


async def post(stand: Stand, path: str, body: object) -> tuple[int, dict[str, str], Any]:
    async with stand.http.post(stand.url + path, json=body) as response:
        return response.status, dict(response.headers), json.loads(await response.read())


@contextlib.asynccontextmanager
async def a_recorder(
    kafka: str, spool: Path, *, ack: Ack = "before_finish", limit: int = 2**30, ack_timeout: float = 15.0
) -> AsyncIterator[Recorder]:
    recorder = Recorder(kafka, ack_timeout, ack=ack, spool=Spool(spool, limit))
    recorder.start()
    try:
        await wait_for(lambda: recorder.reason is None, "the recorder has looked for the broker")
        yield recorder
    finally:
        await recorder.stop()


@contextlib.contextmanager
def frozen(broker: RunningStack) -> Iterator[None]:
    pid = broker.freeze("kafka")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def logged(kafka: str, run: str) -> dict[int, list[Fact]]:
    """The run's facts by partition, each the first time that the log has it."""
    found: dict[int, dict[str, Fact]] = {}
    for record in await read_topic(kafka, topics.EVENTS, client_id="test"):
        if (record.key or b"").startswith(f"{run}/".encode()):
            fact = decode(record.headers, record.value)
            assert isinstance(fact, Fact)
            found.setdefault(record.partition, {}).setdefault(fact.fact_id, fact)
    return {partition: list(facts.values()) for partition, facts in found.items()}


def check_order(facts: dict[int, list[Fact]], agents: int, turns: dict[int, int]) -> None:
    """Every agent's steps are on the log, in one partition, in the order in which they were acknowledged."""
    for agent in range(agents):
        mine = [[f for f in of if isinstance(f, Step) and f.prompt_uid == f"p{agent}"] for of in facts.values()]
        (steps,) = [of for of in mine if of]
        numbers = [int(step.step_id.rsplit("-", 1)[1]) for step in steps]
        assert numbers[: turns[agent]] == list(range(turns[agent]))
        assert len(numbers) <= turns[agent] + 1, "at most the one that was not acknowledged more"


def test_a_frozen_broker_stops_no_call_and_every_fact_arrives_in_order(broker: RunningStack, tmp_path: Path) -> None:
    async def body() -> None:
        run, agents = new_id(), 6
        turns = dict.fromkeys(range(agents), 0)
        stop = asyncio.Event()

        async with a_recorder(broker.kafka, tmp_path) as recorder:
            await wait_for(lambda: not recorder.spooling, "connected")

            async def agent(number: int) -> None:
                while not stop.is_set():
                    step_id = f"{run}-{number}-{turns[number]}"
                    step = a_step(run_id=run, prompt_uid=f"p{number}", step_id=step_id, fact_id=step_id)
                    await recorder.publish(step)
                    turns[number] += 1

            def all_reached(more: int) -> bool:
                return all(turns[number] >= before[number] + more for number in range(agents))

            tasks = [asyncio.create_task(agent(number)) for number in range(agents)]
            before = dict(turns)
            await wait_for(lambda: all_reached(20), "facts are acknowledged by the broker")
            with frozen(broker):
                await wait_for(lambda: recorder.spooling, "the broker is known to be away")
                before = dict(turns)
                await wait_for(lambda: all_reached(20), "facts are durable without the broker")
                assert recorder.reason is None
                assert recorder._spool is not None
                assert recorder._spool.records > 0
            await wait_for(lambda: recorder._direct, "the spool is empty while facts still come")
            before = dict(turns)
            await wait_for(lambda: all_reached(20), "facts go to the broker again")
            stop.set()
            await asyncio.gather(*tasks)
            check_order(await logged(broker.kafka, run), agents, turns)

    asyncio.run(body())
    assert list(tmp_path.iterdir()) == []


def test_a_killed_broker_stops_no_call(broker: RunningStack, tmp_path: Path) -> None:
    async def body() -> None:
        run, ended, stop = new_id(), set[str](), asyncio.Event()
        async with (
            an_engine(replying(a_reply([1, 2], [3, 4]))) as engine,
            a_gateway(broker.kafka, engine.url, run=run, spool=str(tmp_path)) as stand,
        ):
            turns = dict.fromkeys(range(4), 0)

            async def agent(number: int) -> None:
                while not stop.is_set():
                    path = f"/{run}-{number}/p{number}/v1/chat/completions"
                    status, headers, reply = await post(stand, path, ASKED)
                    assert status == 200, reply
                    ended.add(headers["x-claw-step-id"])
                    turns[number] += 1

            agents = [asyncio.create_task(agent(number)) for number in range(4)]
            await wait_for(lambda: min(turns.values()) > 5, "calls are made")
            pid = broker.kill("kafka")
            before = len(ended)
            await wait_for(lambda: len(ended) > before + 40, "calls are made without a broker")
            await asyncio.to_thread(broker.wait_restarted, "kafka", pid)
            await wait_for(lambda: stand.gateway._recorder._direct, "the spool is empty", deadline=60)
            before = len(ended)
            await wait_for(lambda: len(ended) > before + 20, "calls are made again")
            stop.set()
            await asyncio.gather(*agents)
            steps = [fact for of in (await logged(broker.kafka, run)).values() for fact in of if isinstance(fact, Step)]
            assert {step.step_id for step in steps if step.status == "complete"} == ended

    asyncio.run(body())


def test_a_trajectory_that_nobody_knows_begins_while_the_broker_is_away(broker: RunningStack, tmp_path: Path) -> None:
    """It gets its place from its path; the index learns of it by the first call after the outage."""

    async def body() -> None:
        run, uid = new_id(), new_id()
        async with (
            an_engine(replying(a_reply([1], [2]))) as engine,
            a_gateway(broker.kafka, engine.url, run=run, spool=str(tmp_path)) as stand,
        ):
            path = f"/{uid}/p/v1/chat/completions"
            with frozen(broker):
                assert (await post(stand, path, ASKED))[0] == 200
                async with stand.http.get(f"{stand.url}/readyz") as response:
                    assert response.status == 200
                assert (await post(stand, "/rewards", {"trajectory_uid": uid, "value": 1.0}))[0] == 200
                assert (await post(stand, "/init_trajectory", {}))[0] == 200
                await wait_for(lambda: GATEWAY_SPOOL_RECORDS._value.get() >= 4, "the metrics tell")
                async with stand.http.get(f"{stand.url}/metrics") as response:
                    assert "claw_gateway_spool_oldest_seconds" in await response.text()
            await wait_for(lambda: stand.gateway._recorder._direct, "the spool is empty")
            kinds = [fact.TYPE for of in (await logged(broker.kafka, run)).values() for fact in of]
            assert kinds == ["step-started", "step", "reward"]
            assert uid not in await indexed(broker.kafka)
            assert (await post(stand, path, ASKED))[0] == 200
            assert (await indexed(broker.kafka))[uid] == run

    asyncio.run(body())


async def indexed(kafka: str) -> dict[str, str]:
    """Trajectory → run, as the index says."""
    records = await read_topic(kafka, topics.TRAJECTORY_INDEX, client_id="test")
    entries = [decode_body(TrajectoryIndex, record.value) for record in records if record.value is not None]
    return {entry.trajectory_uid: entry.run_id for entry in entries}


def test_what_is_known_keeps_its_run_while_the_broker_is_away(broker: RunningStack, tmp_path: Path) -> None:
    async def body() -> None:
        run = new_id()
        async with (
            an_engine(replying(a_reply([1], [2]))) as engine,
            a_gateway(broker.kafka, engine.url, run="other", spool=str(tmp_path)) as stand,
        ):
            _, _, made = await post(stand, "/init_trajectory", {"run_id": run})
            with frozen(broker):
                path = made["base_url"].removeprefix(stand.url) + "/chat/completions"
                assert (await post(stand, path, ASKED))[0] == 200
                _, _, late = await post(stand, "/init_trajectory", {"run_id": run})
                late_path = late["base_url"].removeprefix(stand.url) + "/chat/completions"
                assert (await post(stand, late_path, ASKED))[0] == 200
            await wait_for(lambda: stand.gateway._recorder._direct, "the spool is empty")
            steps = [fact for of in (await logged(broker.kafka, run)).values() for fact in of if isinstance(fact, Step)]
            assert {step.trajectory_uid for step in steps} == {made["trajectory_uid"], late["trajectory_uid"]}
            assert (await indexed(broker.kafka))[late["trajectory_uid"]] == run

    asyncio.run(body())


def test_beyond_the_bound_calls_are_refused(broker: RunningStack, tmp_path: Path) -> None:
    async def body() -> None:
        run = new_id()
        async with (
            an_engine(replying(a_reply([1], [2]))) as engine,
            a_gateway(broker.kafka, engine.url, run=run, spool=str(tmp_path), spool_bytes=20_000) as stand,
        ):
            served: list[str] = []
            with frozen(broker):
                while True:
                    path = f"/{run}-{len(served)}/p/v1/chat/completions"
                    status, headers, reply = await post(stand, path, ASKED)
                    if status != 200:
                        break
                    served.append(headers["x-claw-step-id"])
                assert len(served) > 3
                assert (status, headers["Retry-After"], reply["error"]["code"]) == (503, "5", "spool_full")
                assert "CLAW_GATEWAY_SPOOL_BYTES" in reply["error"]["message"]
                async with stand.http.get(f"{stand.url}/readyz") as response:
                    assert response.status == 503
                    assert "spool is full" in (await response.json())["reason"]
                asked = len(engine.bodies)
                status, _, reply = await post(stand, path, ASKED)
                assert (status, reply["error"]["code"], len(engine.bodies)) == (503, "spool_full", asked)
            await wait_for(lambda: stand.gateway._recorder._direct, "the spool is empty")
            assert (await post(stand, path, ASKED))[0] == 200
            steps = [fact for of in (await logged(broker.kafka, run)).values() for fact in of if isinstance(fact, Step)]
            assert set(served) < {step.step_id for step in steps}

    asyncio.run(body())


def test_a_process_that_never_saw_the_broker_guesses_nothing(tmp_path: Path) -> None:
    """It does not know what belongs where: it says so, and what is told in full is durable."""

    async def body() -> None:
        async with (
            an_engine(replying(a_reply([1], [2]))) as engine,
            an_unready_gateway(
                f"127.0.0.1:{find_port()}", engine.url, run="r", ack_timeout=1.0, spool=str(tmp_path)
            ) as stand,
        ):
            recorder = stand.gateway._recorder
            await wait_for(lambda: recorder.reason is None, "the spool takes facts")
            assert stand.gateway.ready() is not None
            assert (await post(stand, "/t/p/v1/chat/completions", ASKED))[0] == 503
            assert engine.bodies == []
            assert (await post(stand, "/groups", {"size": 2}))[0] == 200
            assert recorder._spool is not None
            assert recorder._spool.records > 0

    asyncio.run(body())


def test_what_the_spool_cannot_take_is_refused_and_counted_by_nobody_as_durable(tmp_path: Path) -> None:
    async def body() -> None:
        async with a_recorder(f"127.0.0.1:{find_port()}", tmp_path, limit=4000, ack_timeout=0.5) as recorder:
            spool = recorder._spool
            assert spool is not None
            durable = 0
            while spool.bytes < 3000:
                await recorder.publish(a_step(run_id="r"))
                durable += 1
            with pytest.raises(Refusal, match="spool is full"):
                await recorder.publish(*[a_step(run_id="r")] * 3)
            with pytest.raises(RetryableError, match="spool is full"):
                await recorder.erase(topics.TRAJECTORY_INDEX, b"k" * 2000)
            assert spool.records == durable

    asyncio.run(body())


def test_a_record_that_the_broker_refuses_for_good_holds_up_nothing(broker: RunningStack, tmp_path: Path) -> None:
    """Its topic takes less than the gateway does: it is kept aside, and what stands behind it arrives."""
    topic = Topic(f"small-{new_id()}", 1, "any", "small records", {"max.message.bytes": "4000"})

    async def body() -> None:
        await ensure_topic(broker.kafka, topic)
        dropped = GATEWAY_DROPPED.labels("too_large")._value.get()
        async with a_recorder(broker.kafka, tmp_path) as recorder:
            await wait_for(lambda: not recorder.spooling, "connected")
            spool = recorder._spool
            assert spool is not None
            values = [str(number).encode().ljust(5000 if number in (3, 7) else 10) for number in range(10)]
            await spool.append([Entry(topic.name, b"k", value, []) for value in values])
            await wait_for(lambda: recorder._direct, "the spool is empty")
        found = list(dict.fromkeys(r.value for r in await read_topic(broker.kafka, topic.name, client_id="test")))
        assert found == [value for value in values if len(value) < 4000]
        assert GATEWAY_DROPPED.labels("too_large")._value.get() - dropped == 2

    asyncio.run(body())
    kept = [path.read_bytes() for path in (tmp_path / "aside").iterdir()]
    entries = [entry for data in kept for entry in scan(data[SEGMENT_HEAD:], read_head(data) or b"").entries]
    assert sorted(entry.value or b"" for entry in entries) == [b"3".ljust(5000), b"7".ljust(5000)]


def test_async_does_not_wait_and_keeps_the_order_through_an_outage(broker: RunningStack, tmp_path: Path) -> None:
    async def body() -> None:
        run = new_id()
        turns = {0: 0}

        async with a_recorder(broker.kafka, tmp_path, ack="async", ack_timeout=2.0) as recorder:
            await wait_for(lambda: not recorder.spooling, "connected")

            async def publish(count: int) -> None:
                for _ in range(count):
                    step_id = f"{run}-0-{turns[0]}"
                    await recorder.publish(a_step(run_id=run, prompt_uid="p0", step_id=step_id, fact_id=step_id))
                    turns[0] += 1

            await publish(50)
            with frozen(broker):
                await publish(200)
                assert recorder._unacknowledged, "on their way, and nobody waited"
                await wait_for(lambda: recorder.spooling, "the broker is known to be away")
                await publish(50)
            await publish(50)
        check_order(await logged(broker.kafka, run), 1, turns)

    asyncio.run(body())
    assert list(tmp_path.iterdir()) == []


def test_async_flushes_at_the_stop_without_a_spool(broker: RunningStack) -> None:
    async def body() -> None:
        run = new_id()
        recorder = Recorder(broker.kafka, 10.0, ack="async")
        recorder.start()
        await wait_for(lambda: recorder.reason is None, "connected")
        for number in range(300):
            step_id = f"{run}-0-{number}"
            await recorder.publish(a_step(run_id=run, prompt_uid="p0", step_id=step_id, fact_id=step_id))
        await recorder.stop()
        facts = await logged(broker.kafka, run)
        check_order(facts, 1, {0: 300})
        assert sum(len(of) for of in facts.values()) == 300

    asyncio.run(body())


def test_what_is_left_at_the_stop_is_drained_at_the_next_start(broker: RunningStack, tmp_path: Path) -> None:
    async def body() -> None:
        run = new_id()

        def step(number: int) -> Step:
            step_id = f"{run}-0-{number}"
            return a_step(run_id=run, prompt_uid="p0", step_id=step_id, fact_id=step_id)

        with frozen(broker):
            async with a_recorder(broker.kafka, tmp_path, ack_timeout=1.0) as recorder:
                for number in range(20):
                    await recorder.publish(step(number))
        async with a_recorder(broker.kafka, tmp_path) as recorder:
            for number in range(20, 40):
                await recorder.publish(step(number))
            await wait_for(lambda: recorder._direct, "drained")
        check_order(await logged(broker.kafka, run), 1, {0: 40})

    asyncio.run(body())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_hangs_is_a_503_in_the_dialects_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves = threading.Event()

    async def body() -> None:
        async with (
            an_engine(replying(a_reply([1], [2]))) as engine,
            an_unready_gateway(
                f"127.0.0.1:{find_port()}", engine.url, run="r", ack_timeout=0.3, spool=str(tmp_path)
            ) as stand,
        ):
            await wait_for(lambda: stand.gateway._recorder.reason is None, "the spool takes facts")
            write = Writer.write

            def hang(self: Writer, payloads: list[bytes]) -> tuple[Segment, int]:
                moves.wait(30)
                return write(self, payloads)

            monkeypatch.setattr(Writer, "write", hang)
            try:
                status, headers, reply = await post(stand, "/groups", {"size": 2})
                assert (status, headers["Retry-After"], reply["error"]["code"]) == (503, "1", "spool_failed")
                for path in ("chat/completions", "responses", "messages"):  # no call begins
                    status, headers, reply = await post(
                        stand, f"/t/p/v1/{path}", ASKED | {"input": "hi", "max_tokens": 9}
                    )
                    assert (status, "Retry-After" in headers) == (503, True)
                    error = reply["error"]
                    code = error["details"]["error_code"] if path == "messages" else error["code"]
                    assert code == "spool_failed"
                    assert "does not answer" in error["message"]
                assert engine.bodies == []
                assert "does not answer" in (stand.gateway._recorder.reason or "")
            finally:
                moves.set()
            await wait_for(lambda: stand.gateway._recorder.reason is None, "the disk answers again")

    asyncio.run(body())


def test_a_call_whose_step_the_disk_does_not_take_in_time_has_no_result(
    broker: RunningStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves, write = threading.Event(), Writer.write

    def hang(self: Writer, payloads: list[bytes]) -> tuple[Segment, int]:
        moves.wait(30)
        return write(self, payloads)

    async def body() -> None:
        run = new_id()
        async with (
            an_engine(replying(a_reply([1], [2]))) as engine,
            a_gateway(broker.kafka, engine.url, run=run, ack_timeout=1.5, spool=str(tmp_path)) as stand,
        ):
            try:
                with frozen(broker):
                    await wait_for(lambda: not stand.gateway._recorder._unacknowledged, "nothing is on its way")
                    monkeypatch.setattr(Writer, "write", hang)
                    status, headers, reply = await post(stand, f"/{run}/p/v1/chat/completions", ASKED)
                    assert (status, headers["Retry-After"], reply["error"]["code"]) == (503, "1", "spool_failed")
            finally:
                moves.set()
            await wait_for(lambda: stand.gateway._recorder._direct, "the spool is empty")
            assert (await post(stand, f"/{run}/p/v1/chat/completions", ASKED))[0] == 200
            kinds = [fact.TYPE for of in (await logged(broker.kafka, run)).values() for fact in of]
            assert kinds.count("step-started") == 2, "what was late is there all the same"
            assert kinds[-1] == "step"

    asyncio.run(body())
