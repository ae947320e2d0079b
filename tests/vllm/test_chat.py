"""Chats through the gateway to a real vLLM: what is stored is what the engine itself gives to the same request."""

import asyncio
import json
from typing import Any

import pytest
from openai import AsyncOpenAI

from claw_r1.checks.engine import check_engine
from claw_r1.codec import unpack_floats, unpack_ids
from tests.conftest import Stack
from tests.vllm.exchange import CAPTURE, REAL_ENGINE, Bench, context, with_bench

pytestmark = REAL_ENGINE

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Say the marker."}]
ASKED: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 24, "temperature": 1.0, "seed": 7}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Look up a code.",
        "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    },
}


def told(events: list[dict[str, Any]], choice: int = 0) -> str:
    """The text of one choice of a stream."""
    deltas = [c["delta"] for event in events for c in event["choices"] if c["index"] == choice]
    return "".join(delta.get("content") or "" for delta in deltas)


@pytest.mark.parametrize("over", [{}, {"temperature": 0.0}, {"max_tokens": 1}], ids=["sampled", "greedy", "one"])
def test_whole_chat(stack: Stack, vllm: str, over: dict[str, Any]) -> None:
    async def body(bench: Bench) -> None:
        (choice,) = await bench.direct_choices(ASKED | over)
        plain = await bench.direct(CHAT, ASKED | over)
        reply = await bench.ask(CHAT, ASKED | over)
        assert reply["choices"][0]["message"] == plain["choices"][0]["message"]
        assert reply["usage"] == plain["usage"]
        (step,) = await bench.steps(1)
        choice.check(step)
        assert step.finish_reason == choice.finish_reason
        assert json.loads(step.reply or b"")["content"] == reply["choices"][0]["message"]["content"]

    with_bench(stack, vllm, body)


def test_log_probs_that_were_asked_for_are_those_that_are_stored(stack: Stack, vllm: str) -> None:
    async def body(bench: Bench) -> None:
        reply = await bench.ask(CHAT, ASKED | CAPTURE | {"top_logprobs": 2})
        (choice,) = reply["choices"]
        (step,) = await bench.steps(1)
        assert unpack_ids(step.response_ids).tolist() == choice["token_ids"]
        entries = choice["logprobs"]["content"]
        assert [len(entry["top_logprobs"]) for entry in entries] == [2] * len(entries)
        sent = unpack_floats(step.rollout_log_probs or b"").tolist()
        assert sent == pytest.approx([entry["logprob"] for entry in entries], abs=1e-7)

    with_bench(stack, vllm, body)


def test_streamed_chat(stack: Stack, vllm: str) -> None:
    async def body(bench: Bench) -> None:
        (choice,) = await bench.direct_choices(ASKED)
        plain = await bench.direct(CHAT, ASKED)
        events = await bench.events(CHAT, ASKED)
        assert told(events) == plain["choices"][0]["message"]["content"]
        assert not any(event.get("usage") for event in events), "the agent asked for no usage"
        (step,) = await bench.steps(1)
        choice.check(step)

    with_bench(stack, vllm, body)


def test_usage_that_was_asked_for_ends_the_stream(stack: Stack, vllm: str) -> None:
    async def body(bench: Bench) -> None:
        plain = await bench.direct(CHAT, ASKED)
        events = await bench.events(CHAT, ASKED | {"stream_options": {"include_usage": True}})
        counts = {name: events[-1]["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
        assert counts == {name: plain["usage"][name] for name in counts}

    with_bench(stack, vllm, body)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_two_choices_are_two_steps(stack: Stack, vllm: str, stream: bool) -> None:
    async def body(bench: Bench) -> None:
        choices = await bench.direct_choices(ASKED | {"n": 2})
        assert choices[0].response != choices[1].response
        if stream:
            events = await bench.events(CHAT, ASKED | {"n": 2})
            texts = [told(events, choice) for choice in (0, 1)]
        else:
            reply = await bench.ask(CHAT, ASKED | {"n": 2})
            texts = [choice["message"]["content"] for choice in reply["choices"]]
        steps = sorted(await bench.steps(2), key=lambda step: step.choice)
        assert [step.choice for step in steps] == [0, 1]
        for choice, step, text in zip(choices, steps, texts, strict=True):
            choice.check(step)
            assert json.loads(step.reply or b"")["content"] == text

    with_bench(stack, vllm, body)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_stop_string_cuts_the_text_and_no_id(stack: Stack, vllm: str, stream: bool) -> None:
    async def body(bench: Bench) -> None:
        whole = (await bench.direct(CHAT, ASKED))["choices"][0]["message"]["content"]
        middle = len(whole) // 2
        asked = ASKED | {"stop": [whole[middle : middle + 2]]}
        (choice,) = await bench.direct_choices(asked)
        assert choice.finish_reason == "stop"
        if stream:
            text = told(await bench.events(CHAT, asked))
        else:
            text = (await bench.ask(CHAT, asked))["choices"][0]["message"]["content"]
        assert whole.startswith(text)
        assert len(text) <= middle
        (step,) = await bench.steps(1)
        choice.check(step)
        assert step.stop_reason == asked["stop"][0]

    with_bench(stack, vllm, body)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_length_ends_an_answer(stack: Stack, vllm: str, stream: bool) -> None:
    async def body(bench: Bench) -> None:
        asked = ASKED | {"max_tokens": 5, "ignore_eos": True}
        (choice,) = await bench.direct_choices(asked)
        if stream:
            events = await bench.events(CHAT, asked)
            reasons = [c["finish_reason"] for event in events for c in event["choices"] if c["finish_reason"]]
        else:
            reasons = [c["finish_reason"] for c in (await bench.ask(CHAT, asked))["choices"]]
        assert reasons == ["length"]
        (step,) = await bench.steps(1)
        choice.check(step)
        assert (step.finish_reason, step.response_len) == ("length", 5)

    with_bench(stack, vllm, body)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_named_tool_is_called_and_known_as_guided(stack: Stack, vllm: str, stream: bool) -> None:
    async def body(bench: Bench) -> None:
        named = {"type": "function", "function": {"name": "lookup"}}
        asked = ASKED | {"tools": [TOOL], "tool_choice": named, "max_tokens": 200}
        (choice,) = await bench.direct_choices(asked)
        (called,) = (await bench.direct(CHAT, asked))["choices"][0]["message"]["tool_calls"]
        if stream:
            events = await bench.events(CHAT, asked)
            pieces = [p for e in events for c in e["choices"] for p in c["delta"].get("tool_calls") or ()]
            arguments = "".join(piece["function"].get("arguments") or "" for piece in pieces)
            assert [p["function"]["name"] for p in pieces if p["function"].get("name")] == ["lookup"]
        else:
            (call,) = (await bench.ask(CHAT, asked))["choices"][0]["message"]["tool_calls"]
            arguments = call["function"]["arguments"]
        assert arguments == called["function"]["arguments"], "noise, but the same noise"
        (step,) = await bench.steps(1)
        choice.check(step)
        assert step.sampling.guided
        (stored,) = json.loads(step.reply or b"")["tool_calls"]
        assert stored["function"] == {"name": "lookup", "arguments": arguments}

    with_bench(stack, vllm, body)


def test_second_turn_is_stored_as_the_engine_saw_it(stack: Stack, vllm: str) -> None:
    async def body(bench: Bench) -> None:
        async with AsyncOpenAI(base_url=f"{bench.base}/v1", api_key="none") as client:
            messages: list[Any] = list(HELLO)
            first = await client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, seed=3)
            messages += [first.choices[0].message.model_dump(exclude_none=True), {"role": "user", "content": "Again."}]
            await client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, seed=3)
        (direct,) = await bench.direct_choices({"model": "tiny", "messages": messages, "max_tokens": 8, "seed": 3})
        one, two = await bench.steps(2)
        parent = one if two.parent_step_id else None
        assert two.parent_step_id in (None, one.step_id)
        direct.check(two, context(two, parent))

    with_bench(stack, vllm, body)


def test_calls_at_once_do_not_mix(stack: Stack, vllm: str) -> None:
    async def body(bench: Bench) -> None:
        seeds = range(12)
        asked = [ASKED | {"seed": seed, "stream": seed % 2 == 0, "user": f"u{seed}"} for seed in seeds]

        async def one(fields: dict[str, Any]) -> str:
            if fields["stream"]:
                return told(await bench.events(CHAT, fields))
            return str((await bench.ask(CHAT, fields))["choices"][0]["message"]["content"])

        texts = await asyncio.gather(*map(one, asked))
        steps = {step.sampling.seed: step for step in await bench.steps(len(asked))}
        for seed, text in zip(seeds, texts, strict=True):
            assert json.loads(steps[seed].reply or b"")["content"] == text
            assert steps[seed].capture.ok

    with_bench(stack, vllm, body)


@pytest.mark.parametrize(
    ("over", "status"),
    [({"temperature": "hot"}, 400), ({"messages": [{"role": "user", "content": "word " * 3000}]}, 400)],
    ids=["bad value", "too long"],
)
def test_engines_error_keeps_its_status_and_words(stack: Stack, vllm: str, over: dict[str, Any], status: int) -> None:
    async def body(bench: Bench) -> None:
        direct = await bench.post(f"{vllm}{CHAT}", ASKED | over)
        through = await bench.post(f"{bench.base}{CHAT}", ASKED | over)
        assert (through[0], direct[0]) == (status, status)
        assert through[1]["error"]["message"]
        if isinstance(over.get("messages"), list):
            assert through[1] == direct[1]

    with_bench(stack, vllm, body)


def test_models_are_the_engines(stack: Stack, vllm: str) -> None:
    async def body(bench: Bench) -> None:
        async with bench.stand.http.get(f"{bench.base}/v1/models") as response:
            assert [model["id"] for model in (await response.json())["data"]] == ["tiny"]

    with_bench(stack, vllm, body)


def test_the_doctor_sees_what_it_can_of_the_engine(vllm: str) -> None:
    """Its raw log-probs say nothing of the sampling in effect, and it renders for nobody without --enable-scale-out."""
    tokens, mode, defaults = asyncio.run(check_engine(vllm, "", None))
    assert (tokens.state, mode.state, defaults.state) == ("ok", "ok", "skipped")
    assert mode.says.startswith("its log-probs are raw")
    assert "--generation-config vllm" in defaults.remedy
