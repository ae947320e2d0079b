"""Calls that do not go to their end: an agent leaves, a trainer stops the engine to load weights."""

import asyncio
import json
from typing import Any

import pytest

from claw_r1.codec import unpack_floats
from tests.conftest import Stack
from tests.integration.gateway_stand import DEADLINE
from tests.vllm.exchange import REAL_ENGINE, Bench, Choice, with_bench

pytestmark = REAL_ENGINE

HELLO = [{"role": "user", "content": "Say the marker."}]
LONG = 1900
LOOKUP = {"type": "function", "function": {"name": "lookup", "parameters": {"type": "object", "properties": {}}}}
CALLS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": LONG},
    "/v1/completions": {"prompt": "the agent will", "max_tokens": LONG},
    "/v1/messages": {"messages": HELLO, "max_tokens": LONG},
    "/v1/responses": {"input": HELLO, "max_output_tokens": LONG},
}


def asked(path: str, **over: Any) -> dict[str, Any]:
    """A call that takes seconds."""
    return CALLS[path] | {"model": "tiny", "temperature": 1.0, "ignore_eos": True} | over


async def wait_running(bench: Bench) -> None:
    end = asyncio.get_running_loop().time() + DEADLINE
    while not await bench.metric("vllm:num_requests_running"):
        assert asyncio.get_running_loop().time() < end, "the engine runs nothing"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("path", CALLS)
def test_agent_that_leaves_a_stream_stops_the_engine(stack: Stack, vllm: str, path: str) -> None:
    async def body(bench: Bench) -> None:
        async with bench.stand.http.post(f"{bench.base}{path}", json=asked(path, stream=True)) as response:
            seen = 0
            async for line in response.content:
                seen += line.startswith(b"data: ")
                if seen == 10:
                    break
            response.close()
        (step,) = await bench.wait_for_steps(1)
        await bench.wait_idle()
        assert step.status == "partial"
        assert 1 <= step.response_len < LONG
        assert len(unpack_floats(step.rollout_log_probs or b"")) == step.response_len

    with_bench(stack, vllm, body, retry_grace=0.05)


@pytest.mark.parametrize("path", CALLS)
def test_agent_that_leaves_while_it_waits_stops_the_engine(stack: Stack, vllm: str, path: str) -> None:
    async def body(bench: Bench) -> None:
        call = asyncio.create_task(bench.ask(path, asked(path)))
        await wait_running(bench)
        call.cancel()
        (step,) = await bench.wait_for_steps(1)
        await bench.wait_idle()
        assert (step.status, step.response_len) == ("partial", 0)

    with_bench(stack, vllm, body, retry_grace=0.05)


_undisturbed: dict[str, Choice] = {}


async def undisturbed(bench: Bench, request: dict[str, Any]) -> Choice:
    """What the engine samples for a greedy chat that nobody stops: the same whenever it is asked, and so asked once."""
    key = json.dumps([bench.vllm, request], sort_keys=True)
    if key not in _undisturbed:
        (_undisturbed[key],) = await bench.direct_choices(request)
    return _undisturbed[key]


async def words(bench: Bench) -> list[int]:
    """Tokens that are whole words: an answer that stops in the middle of a character is not gone on with."""
    asked = {"model": "tiny", "prompt": "agent answer find file code json marker message number query", "n": 1}
    reply = await bench.direct("/tokenize", asked)
    return sorted(set(reply["tokens"]))


@pytest.mark.parametrize(
    ("path", "syncs", "tools"),
    [
        ("/v1/chat/completions", 1, []),
        ("/v1/chat/completions", 2, []),
        ("/v1/chat/completions", 1, [LOOKUP]),
        ("/v1/messages", 2, []),
        ("/v1/responses", 2, []),
    ],
)
def test_stream_that_weight_syncs_abort_goes_on_as_if_it_had_not_stopped(
    stack: Stack, vllm: str, path: str, syncs: int, tools: list[Any]
) -> None:
    async def body(bench: Bench) -> None:
        over: dict[str, Any] = {"temperature": 0.0, "allowed_token_ids": await words(bench)}
        if tools:
            over["tools"] = tools  # its parser looks at every token
        alone = await undisturbed(bench, asked("/v1/chat/completions", max_tokens=600) | over)
        limit = {"max_output_tokens" if "responses" in path else "max_tokens": 600}
        call = asked(path, stream=True) | over | limit
        async with bench.stand.http.post(f"{bench.base}{path}", json=call) as response:
            lines = []
            for _ in range(syncs):
                lines += [await response.content.readline() for _ in range(60)]
                await pause(bench)
                await resume(bench)
            lines += (await response.read()).splitlines()
        assert b"abort" not in b"".join(lines)
        (step,) = await bench.steps(1)
        alone.check(step)
        assert len(step.metadata["continued"]) == 1 + syncs
        assert step.finish_reason == "length"
        assert read_text(lines) == json.loads(step.reply or b"")["content"]

    with_bench(stack, vllm, body)


def read_text(lines: list[bytes]) -> str:
    """The text deltas of a stream of any dialect."""
    said = ""
    for event in (json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: {")):
        for choice in event.get("choices", ()):
            said += choice["delta"].get("content") or ""
        if event.get("type") == "content_block_delta":
            said += event["delta"].get("text", "")
        elif event.get("type") == "response.output_text.delta":
            said += event["delta"]
    return said


def test_call_that_a_weight_sync_aborts_goes_on_as_if_it_had_not_stopped(stack: Stack, vllm: str) -> None:
    async def body(bench: Bench) -> None:
        path = "/v1/chat/completions"
        request = asked(path, max_tokens=600, temperature=0.0, allowed_token_ids=await words(bench))
        alone = await undisturbed(bench, request)
        call = asyncio.create_task(bench.ask(path, request))
        await wait_running(bench)
        await pause(bench)
        await resume(bench)
        reply = await call
        assert [choice["finish_reason"] for choice in reply["choices"]] == ["length"]
        complete = [step for step in await bench.stand.steps(bench.run) if step.status == "complete"]
        (step,) = complete  # a call that was stopped before its first token is made anew
        alone.check(step)
        assert reply["choices"][0]["message"]["content"] == json.loads(step.reply or b"")["content"]
        assert reply["usage"]["completion_tokens"] == 600
        await bench.stand.check_announced(bench.run)

    with_bench(stack, vllm, body)


def test_stream_that_cannot_be_gone_on_with_does_not_end_well(stack: Stack, vllm: str) -> None:
    async def body(bench: Bench) -> None:
        path = "/v1/chat/completions"
        call = asked(path, stream=True, presence_penalty=0.1)  # which an engine would begin to count anew
        async with bench.stand.http.post(f"{bench.base}{path}", json=call) as response:
            lines = [await response.content.readline() for _ in range(20)]
            await pause(bench)
            await resume(bench)
            lines += (await response.read()).splitlines()
        events = [json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: {")]
        assert "error" in events[-1]
        reasons = [choice["finish_reason"] for event in events[:-1] for choice in event["choices"]]
        assert set(reasons) == {None}
        (step,) = await bench.steps(1)
        assert step.status == "partial"
        assert 1 <= step.response_len < LONG

    with_bench(stack, vllm, body)


async def pause(bench: Bench) -> None:
    async with bench.stand.http.post(f"{bench.vllm}/pause?mode=abort") as response:
        assert response.status == 200, await response.text()


async def resume(bench: Bench) -> None:
    async with bench.stand.http.post(f"{bench.vllm}/resume") as response:
        assert response.status == 200, await response.text()
