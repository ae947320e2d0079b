"""A stream that does more than an engine should: order, end and what is held."""

import json
from typing import Any

import pytest

from gateway.calls.relay import Relay
from gateway.dialects import chat, messages, responses
from gateway.dialects.base import Dialect

ASKED: dict[str, Any] = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
BODIES: dict[str, dict[str, Any]] = {
    "chat": ASKED,
    "messages": ASKED | {"max_tokens": 9},
    "responses": {"model": "tiny", "stream": True, "input": "hi"},
}
ERROR = b'data: {"error": {"message": "out of memory"}}\n\n'
DONE = b"data: [DONE]\n\n"


def a_relay(dialect: Dialect) -> Relay:
    return Relay(dialect.read(json.dumps(BODIES[dialect.name]).encode(), "call", 1.0))


def a_chunk(token: int, finish: str | None = None) -> bytes:
    entry = {"token": "t", "logprob": -0.5, "bytes": [], "top_logprobs": []}
    choice = {"index": 0, "delta": {"content": f"w{token} "}, "token_ids": [token], "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice | {"logprobs": {"content": [entry]}}]}).encode() + b"\n\n"


@pytest.mark.parametrize("cut", [False, True])
def test_nothing_after_the_terminal_event_counts(cut: bool) -> None:
    relay = a_relay(chat.dialect())
    stream = [a_chunk(1), a_chunk(2, "stop"), DONE, a_chunk(3), b"data: half"]
    said = [relay.feed(part) for part in (stream if cut else [b"".join(stream)])]
    relay.close()
    assert b"".join(said) + relay.held == b"".join(stream[:3])
    assert relay.captured().choices[0].response_ids == b"\x01\0\0\0\x02\0\0\0"


@pytest.mark.parametrize("dialect", [messages.MESSAGES, responses.RESPONSES], ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("finished", [False, True])
def test_nothing_is_said_after_an_error(dialect: Dialect, finished: bool) -> None:
    relay = a_relay(dialect)
    stream = a_chunk(1) + a_chunk(2, "stop" if finished else None) + ERROR + a_chunk(3) + ERROR + DONE
    said = relay.feed(stream)
    relay.close()
    said += relay.held
    assert (relay.failed, relay.status) == (True, "partial")
    assert said.count(b"event: error") == 1
    assert b"w2 " in said[: said.index(b"event: error")]
    assert said[said.index(b"event: error") :].count(b"\n\n") == 1, "it is the last event"


def test_a_byte_order_mark_is_no_part_of_the_first_event() -> None:
    relay = a_relay(responses.RESPONSES)
    said = relay.feed(b"\xef\xbb\xbf" + a_chunk(1) + b": still here\n\nid: 7\n\n" + a_chunk(2, "stop") + DONE)
    assert said.startswith(b"event: response.created")
    assert b": still here\n\n" in said
    assert b"id: 7" not in said + relay.held
    assert relay.captured().choices[0].response_ids == b"\x01\0\0\0\x02\0\0\0"


def test_a_chunk_that_is_nested_too_deeply_is_a_fault() -> None:
    relay = a_relay(chat.dialect())
    deep = b'data: {"choices":[{"index":0,"delta":{"content":' + b"[" * 5000 + b"]" * 5000 + b"}}]}\n\n"
    relay.feed(a_chunk(1) + deep + a_chunk(2, "stop") + DONE)
    assert relay.captured().faults == ("unparsable_chunk",)
