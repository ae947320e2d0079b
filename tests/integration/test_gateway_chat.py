"""A chat through a real gateway on a real broker: what the agent gets, and what became durable."""

import asyncio

import pytest
from openai import AsyncOpenAI

from claw_r1.codec import restore_prompt, unpack_ids
from claw_r1.ids import new_id
from tests.conftest import Stack
from tests.integration.gateway_stand import a_gateway, a_reply, an_engine, chunks, replying, streaming

pytestmark = pytest.mark.stack


def test_whole_chat_becomes_a_step(stack: Stack) -> None:
    async def body() -> None:
        run = new_id()
        async with (
            an_engine(replying(a_reply([1, 2, 3], [4, 5]))) as engine,
            a_gateway(stack.kafka, engine.url, run=run) as stand,
            AsyncOpenAI(base_url=f"{stand.url}/{run}-t/p1/v1", api_key="none") as client,
        ):
            raw = await client.chat.completions.with_raw_response.create(
                model="tiny", messages=[{"role": "user", "content": "hi"}], temperature=0.7
            )
            assert raw.parse().choices[0].message.content == "hello"
            (step,) = await stand.steps(run)
            assert raw.headers["x-claw-step-id"] == step.step_id
            assert list(unpack_ids(step.new_prompt_ids)) == [1, 2, 3]
            assert list(unpack_ids(step.response_ids)) == [4, 5]
            assert (step.capture.ok, step.status, step.policy_version) == (True, "complete", 3)
            assert (step.trajectory_uid, step.prompt_uid, step.sampling.temperature) == (f"{run}-t", "p1", 0.7)
            assert engine.asked[0]["return_token_ids"] is True
            await stand.check_announced(run)

    asyncio.run(body())


def test_streamed_chat_becomes_a_step_and_a_child(stack: Stack) -> None:
    async def body() -> None:
        run = new_id()
        async with (
            an_engine(streaming(chunks([1, 2, 3], [4, 5, 6]))) as engine,
            a_gateway(stack.kafka, engine.url, run=run) as stand,
            AsyncOpenAI(base_url=f"{stand.url}/{run}-t/p1/v1", api_key="none") as client,
        ):
            text = ""
            async for chunk in await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True
            ):
                assert chunk.usage is None, "the agent did not ask for usage"
                text += chunk.choices[0].delta.content or ""
            assert text == "w0 w1 w2 "
            engine.answer = replying(a_reply([1, 2, 3, 4, 5, 6, 7, 8], [9]))
            await client.chat.completions.create(
                model="tiny",
                messages=[
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": text},
                    {"role": "user", "content": "on"},
                ],
            )
            first, second = await stand.steps(run)
            assert first.capture.ok
            assert first.reply == b'{"role":"assistant","content":"w0 w1 w2 "}'
            assert (second.parent_step_id, second.prefix_len, second.depth) == (first.step_id, 6, 1)
            prompt = restore_prompt(second, first.new_prompt_ids + first.response_ids)
            assert list(unpack_ids(prompt)) == [1, 2, 3, 4, 5, 6, 7, 8]
            assert second.messages_kept == 2
            await stand.check_announced(run)

    asyncio.run(body())
