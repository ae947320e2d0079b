"""OpenAI's SDK reads what Responses says: whole, streamed, broken off and refused."""

import json

import httpx2
import openai
import pytest

from gateway.dialects.responses import RESPONSES
from gateway.replies import Refusal
from tests.unit.gateway.recordings import Recording, completed
from tests.unit.gateway.responses_grammar import events_of
from tests.unit.gateway.responses_voice import a_chunk, a_voice, say, say_open

WHOLE = [recording for recording in completed() if not recording.streamed]
STREAMED = [recording for recording in completed() if recording.streamed]


def _client(body: bytes, content_type: str, status: int = 200) -> openai.OpenAI:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, content=body, headers={"content-type": content_type}, request=request)

    return openai.OpenAI(
        api_key="key",
        base_url="http://gateway.test/v1",
        max_retries=0,
        http_client=httpx2.Client(transport=httpx2.MockTransport(answer)),
    )


@pytest.mark.parametrize("recording", STREAMED, ids=lambda recording: recording.name)
def test_openai_sdk_reads_the_stream(recording: Recording) -> None:
    said = say(a_voice(), recording.reply)
    last = events_of(said)[-1]
    with (
        _client(said, "text/event-stream") as client,
        client.responses.stream(model="tiny", input="Say hello.") as stream,
    ):
        for event in stream:
            if event.type == "response.output_text.delta":
                assert event.snapshot.endswith(event.delta)
        if last["type"] == "response.completed":
            assert stream.get_final_response().id == "resp_call1"
            assert len(stream.get_final_response().output) == len(last["response"]["output"])


def test_openai_sdk_reads_the_whole() -> None:
    recording = next(r for r in WHOLE if r.name == "tool_auto")
    with _client(a_voice().whole(recording.reply), "application/json") as client:
        response = client.responses.create(model="tiny", input="What is 12 + 30?")
    (item,) = response.output
    assert item.type == "function_call"
    assert json.loads(item.arguments) == {"expression": "12 + 30"}


@pytest.mark.parametrize("by_engine", [True, False])
def test_openai_sdk_raises_on_an_error_inside_the_stream(by_engine: bool) -> None:
    if by_engine:
        said = say(a_voice(), a_chunk(content="say") + b'data: {"error": {"message": "died"}}\n\n')
    else:
        refusal = Refusal(503, "died", kind="service_unavailable", code="not_recorded")
        said = say_open(a_voice(), a_chunk(content="say")) + RESPONSES.break_off(refusal)
    with _client(said, "text/event-stream") as client:
        stream = client.responses.create(model="tiny", input="Say hello.", stream=True)
        with pytest.raises(openai.APIError, match="died"):
            list(stream)


def test_openai_sdk_raises_on_an_engine_s_error() -> None:
    body = a_voice().error(404, json.dumps({"error": {"message": "no model", "type": "NotFoundError"}}).encode())
    with _client(body, "application/json", 404) as client, pytest.raises(openai.NotFoundError, match="no model"):
        client.responses.create(model="tiny", input="Say hello.")
