"""Spans of calls through a whole gateway reach a collector by OTLP, with the agent's span above and the engine's below."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from claw_r1 import bus, topics
from claw_r1.codec import header
from claw_r1.ids import new_id
from claw_r1.local.ports import find_port
from tests.conftest import Stack
from tests.integration.collector import a_collector, values
from tests.integration.gateway_stand import (
    Handler,
    Stand,
    a_gateway,
    a_reply,
    an_engine,
    chunks,
    replying,
    streaming,
    wait_for,
)

pytestmark = pytest.mark.stack
TRACE = "a" * 32
PARENT = f"00-{TRACE}-{'b' * 16}-01"
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "the word of the prompt"}], "temperature": 1.0}


def noting(answer: Handler, seen: list[str | None]) -> Handler:
    async def note(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("traceparent"))
        return await answer(request)

    return note


async def ask(stand: Stand, path: str, **over: Any) -> tuple[int, bytes]:
    headers = {"traceparent": PARENT}
    async with stand.http.post(f"{stand.url}{path}", json=ASKED | over, headers=headers) as response:
        return response.status, await response.read()


@pytest.mark.parametrize(
    ("path", "over", "answer"),
    [
        ("chat/completions", {}, replying(a_reply([1, 2, 3], [4, 5]))),
        ("chat/completions", {"stream": True}, streaming(chunks([1, 2, 3], [4, 5]))),
        ("messages", {"max_tokens": 64}, replying(a_reply([1, 2, 3], [4, 5]))),
    ],
    ids=["chat", "stream", "messages"],
)
def test_a_call_is_one_span(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, path: str, over: dict[str, Any], answer: Handler
) -> None:
    seen: list[str | None] = []

    async def run() -> None:
        name = new_id()
        async with (
            a_collector(monkeypatch) as collector,
            an_engine(noting(answer, seen)) as engine,
            a_gateway(stack.kafka, engine.url, run=name, trace=True) as stand,
        ):
            status, _ = await ask(stand, f"/{name}/p/v1/{path}", **over)
            assert status == 200
            await wait_for(lambda: len(collector.spans) == 1, "the collector has the span")
            (step,) = await stand.steps(name)
            told = await traces_on_log(stack, name)
        (span,) = collector.spans
        assert span.name == "chat tiny"
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, "b" * 16)
        assert seen == [f"00-{TRACE}-{span.span_id.hex()}-01"]
        assert told == {"claw.step-started.v1": seen[0], "claw.step.v1": seen[0]}
        found = values(span)
        assert found["claw.trajectory_uid"] == name
        assert found["claw.step_id"] == step.step_id
        assert found.get("claw.policy_version") == step.policy_version
        assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (3, 2)
        assert (found["server.address"], found["server.port"]) == ("127.0.0.1", int(engine.url.rpartition(":")[2]))
        assert 0 < found["claw.time_to_first_byte"] < (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
        assert found["claw.record_wait"] > 0
        assert "error.type" not in found
        assert not any(b"the word of the prompt" in body for body in collector.bodies)

    asyncio.run(run())


async def traces_on_log(stack: Stack, run: str) -> dict[str, str | None]:
    """By type of a run's facts, the trace that their records name; those of a call alone."""
    records = await bus.read_topic(stack.kafka, topics.EVENTS, client_id="test")
    found: dict[str, str | None] = {}
    for record in records:
        kind = (header(record.headers, "ce_type") or b"").decode()
        if (record.key or b"").startswith(f"{run}/".encode()) and kind.startswith("claw.step"):
            trace = header(record.headers, "traceparent")
            found[kind] = None if trace is None else trace.decode()
    return found


@pytest.mark.parametrize(("said", "told"), [(PARENT, PARENT), ("garbage", None)])
def test_without_tracing_records_name_the_agents_own_trace(stack: Stack, said: str, told: str | None) -> None:
    async def run() -> None:
        name = new_id()
        async with (
            an_engine(replying(a_reply([1], [2]))) as engine,
            a_gateway(stack.kafka, engine.url, run=name) as stand,
            stand.http.post(
                f"{stand.url}/{name}/p/v1/chat/completions", json=ASKED, headers={"traceparent": said}
            ) as response,
        ):
            assert response.status == 200
            assert await traces_on_log(stack, name) == {"claw.step-started.v1": told, "claw.step.v1": told}

    asyncio.run(run())


def test_calls_that_fail_are_spans_with_the_reason(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        name = new_id()
        answer = replying({"error": {"message": "too long", "type": "BadRequestError", "code": 400}}, status=400)
        async with a_collector(monkeypatch) as collector, an_engine(answer) as engine:
            models = {"tiny": {"role": "policy"}}
            async with a_gateway(stack.kafka, engine.url, run=name, trace=True, models=models) as stand:
                assert (await ask(stand, f"/{name}/p/v1/chat/completions"))[0] == 400
                assert (await ask(stand, f"/{name}/p/v1/chat/completions", model="large"))[0] == 404
                assert (await ask(stand, f"/{name}/p/v1/chat/completions", n="many"))[0] == 400
        # What waits when the gateway stops is handed over.  A request that is none has no span.
        found = {span.name: values(span)["error.type"] for span in collector.spans}
        assert found == {"chat tiny": "400", "chat large": "model_not_found"}

    asyncio.run(run())


def test_a_gateway_whose_collector_is_away_serves_and_stops(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{find_port()}")

    async def run() -> None:
        name = new_id()
        async with (
            an_engine(replying(a_reply([1], [2]))) as engine,
            a_gateway(stack.kafka, engine.url, run=name, trace=True) as stand,
        ):
            assert (await ask(stand, f"/{name}/p/v1/chat/completions"))[0] == 200

    asyncio.run(asyncio.wait_for(run(), 60))
