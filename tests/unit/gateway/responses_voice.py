"""A voice of Responses, and chunks for it to say."""

import json
from typing import Any

from gateway.dialects.base import Voice
from gateway.dialects.chat_reply import ChatStream
from gateway.dialects.responses import read
from gateway.sse import EventSplitter, event_data

AT = 1795364029.5


def a_voice(**request: Any) -> Voice:
    body = {"model": "tiny", "input": "Say hello.", **request}
    return read(json.dumps(body).encode(), "call1", AT).voice


def say(voice: Voice, stream: bytes) -> bytes:
    """What the agent gets, with the end."""
    return say_open(voice, stream) + voice.end()


def say_open(voice: Voice, stream: bytes) -> bytes:
    fold, splitter = ChatStream(1), EventSplitter()
    said = []
    for event in [*splitter.feed(stream), splitter.rest()]:
        data = event_data(event)
        said.append(voice.event(event, data, "other" if data is None else fold.take(data)))
    return b"".join(said)


def a_chunk(finish: str | None = None, usage: dict[str, Any] | None = None, **delta: Any) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    chunk: dict[str, Any] = {"id": "chatcmpl-1", "model": "tiny", "choices": choices, "usage": usage}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"
