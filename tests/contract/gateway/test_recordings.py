"""Every recorded exchange of a real engine, through the gateway: the agent gets its bytes, the log its tokens."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from aiohttp import web

from claw_r1.codec import restore_prompt
from claw_r1.ids import new_id
from gateway.dialects.completions import asked
from gateway.sse import EventSplitter, event_data
from tests.conftest import Stack
from tests.integration.gateway_stand import Stand, a_gateway, an_engine
from tests.unit.gateway import test_chat as chat
from tests.unit.gateway import test_completions as completions
from tests.unit.gateway.recordings import Recording, recordings

pytestmark = pytest.mark.stack


def visible(recording: Recording) -> bytes:
    """What the agent must get: all of it, but for the usage chunk that it did not ask for."""
    asked = json.loads(recording.request)
    if not recording.streamed or (asked.get("stream_options") or {}).get("include_usage"):
        return recording.reply
    events = EventSplitter().feed(recording.reply)
    return b"".join(e for e in events if b'"choices":[],' not in (event_data(e) or b""))


async def exchange(stand: Stand, run: str, recording: Recording, api: str) -> None:
    url = f"{stand.url}/{run}-{recording.name}/p1{api}"
    async with stand.http.post(url, data=recording.request, headers={"content-type": "application/json"}) as response:
        assert response.status == recording.status
        assert await response.read() == visible(recording)


@pytest.mark.parametrize("api", ["/v1/chat/completions", "/v1/completions"])
def test_recorded_exchanges_through_the_gateway(stack: Stack, api: str) -> None:
    sent = {recording.name: recording for recording in named(api)}

    async def replay(request: web.Request) -> web.StreamResponse:
        recording = sent[(await request.json())["metadata"]["recording"]]
        response = web.StreamResponse(status=recording.status, headers={"content-type": recording.content_type})
        await response.prepare(request)
        for start in range(0, len(recording.reply), 700):
            await response.write(recording.reply[start : start + 700])
        await response.write_eof()
        return response

    async def body() -> None:
        run = new_id()
        async with an_engine(replay) as engine, a_gateway(stack.kafka, engine.url, run=run) as stand:
            for recording in sent.values():
                await exchange(stand, run, recording, api)
            steps = {(step.trajectory_uid, step.choice): step for step in await stand.steps(run)}
            for recording in sent.values():
                if recording.status != 200:
                    assert steps[f"{run}-{recording.name}", 0].status == "failed"
                    continue
                for index, wanted in told(api, recording).items():
                    step = steps[f"{run}-{recording.name}", index]
                    assert (step.response_ids, step.rollout_log_probs, step.finish_reason) == wanted
                    assert len(restore_prompt(step, None)) == 4 * step.prompt_len
            assert set(engine.paths) == {api}
            await stand.check_announced(run)

    asyncio.run(body())


def named(api: str) -> Iterator[Recording]:
    """The exchanges that the gateway hands on, each with its name in its request."""
    for recording in recordings(api):
        asked = json.loads(recording.request)
        hands_on = isinstance(asked.get("messages", asked.get("prompt")), str | list) and asked.get("n") != 0
        if hands_on and not recording.name.startswith("abort") and not isinstance(asked.get("messages"), str):
            request = json.dumps(asked | {"metadata": {"recording": recording.name}}).encode()
            yield replace(recording, request=request)


def told(api: str, recording: Recording) -> dict[int, tuple[bytes, bytes | None, str | None]]:
    """Index → response ids, log-probs and finish reason."""
    if api == "/v1/completions":
        captured = completions.capture(asked(recording.request), recording)
    else:
        captured = chat.capture(recording)
        assert {choice.index for choice in captured.choices} == set(chat.expected(recording))
    return {c.index: (c.response_ids or b"", c.log_probs, c.finish_reason) for c in captured.choices}
