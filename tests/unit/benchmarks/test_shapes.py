"""The agents and the stub engine speak of the same conversations."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.shapes import SHAPES, Shape, events, find_mark, prompt_ids, reply, request, response_ids

CONVERSATIONS = [shape for shape in SHAPES.values() if not shape.fresh]


def turns() -> Iterator[tuple[Shape, int]]:
    return ((shape, turn) for shape in SHAPES.values() for turn in (0, shape.turns - 1))


def test_the_mark_of_a_request_is_found_however_it_is_written() -> None:
    for shape, turn in turns():
        body = request(shape, turn)
        assert find_mark(body) == (shape.name, turn)
        assert find_mark(json.dumps(json.loads(body), indent=2).encode()) == (shape.name, turn)
    assert find_mark(b"{}") is None


@pytest.mark.parametrize("shape", CONVERSATIONS, ids=lambda shape: shape.name)
def test_every_prompt_begins_with_the_prompt_and_response_before_it(shape: Shape) -> None:
    for turn in range(shape.turns - 1):
        before = prompt_ids(shape, turn) + response_ids(shape, turn)
        assert prompt_ids(shape, turn + 1)[: len(before)] == before
        assert len(prompt_ids(shape, turn)) == shape.prompt_tokens(turn)


@pytest.mark.parametrize("shape", CONVERSATIONS, ids=lambda shape: shape.name)
def test_every_request_continues_the_messages_with_what_was_answered(shape: Shape) -> None:
    for turn in range(min(shape.turns - 1, 3)):
        before = json.loads(request(shape, turn))["messages"]
        after = json.loads(request(shape, turn + 1))["messages"]
        assert after[: len(before)] == before
        assert after[len(before)]["content"] == json.loads(reply(shape, turn))["choices"][0]["message"]["content"]


def test_the_rl_reply_is_of_4000_prompt_ids_on_average() -> None:
    shape = SHAPES["rl"]
    assert sum(shape.prompt_tokens(turn) for turn in range(shape.turns)) / shape.turns == 4000
    size = sum(len(reply(shape, turn)) for turn in range(shape.turns)) / shape.turns
    assert 54_000 < size < 60_000


def test_no_fresh_prompt_begins_as_another() -> None:
    shape = SHAPES["rl_fresh"]
    assert len({tuple(prompt_ids(shape, turn)[:2]) for turn in range(shape.turns)}) == shape.turns


def test_a_reply_counts_what_it_holds() -> None:
    for shape, turn in turns():
        body: dict[str, Any] = json.loads(reply(shape, turn))
        (choice,) = body["choices"]
        assert len(body["prompt_token_ids"]) == body["usage"]["prompt_tokens"]
        assert len(choice["token_ids"]) == len(choice["logprobs"]["content"]) == body["usage"]["completion_tokens"]


def test_a_stream_says_what_the_whole_reply_says() -> None:
    shape = SHAPES["stream"]
    whole = json.loads(reply(shape, 1))
    parts = [event.removeprefix(b"data: ").strip() for event in events(shape, 1)]
    assert parts[-1] == b"[DONE]"
    chunks = [json.loads(part) for part in parts[:-1]]
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert len(choices) == 1 + 100
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert "".join(c["delta"]["content"] for c in choices) == whole["choices"][0]["message"]["content"]
    assert [i for c in choices for i in c.get("token_ids", [])] == whole["choices"][0]["token_ids"]
    assert choices[-1]["finish_reason"] == "stop"
