"""Token in, token out: which conversation goes on, where its reply ends in a rendering, and what is sent."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.codec import pack_ids
from gateway.calls.chains import Chains, Context
from gateway.calls.tito import MAX_TRAILER, extend, render_requests, rendered, sense, with_tokens
from gateway.dialects import chat

END = 9


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
AGAIN = CALL | {"function": {"name": "add", "arguments": '{"b":2,"a":1}'}}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (
            {"role": "assistant", "content": "a"},
            {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
            True,
        ),
        ({"role": "assistant", "content": "a", "reasoning": "r"}, {"role": "assistant", "content": "a"}, True),
        (
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "assistant", "tool_calls": [AGAIN]},
            True,
        ),
        ({"role": "assistant", "content": "", "tool_calls": []}, {"role": "assistant", "content": None}, True),
        ({"role": "assistant", "content": "a"}, {"role": "assistant", "content": "a "}, False),
        ({"role": "assistant", "content": "a"}, {"role": "user", "content": "a"}, False),
        (
            {"role": "tool", "content": "a", "tool_call_id": "1"},
            {"role": "tool", "content": "a", "tool_call_id": "2"},
            False,
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "y"}}]},
            False,
        ),
        ("text", {"content": "text"}, True),
    ],
)
def test_messages_that_mean_the_same(one: Any, other: Any, same: bool) -> None:
    assert (sense(as_json(one)) == sense(as_json(other))) is same


def test_the_longest_conversation_that_goes_on_is_held() -> None:
    chains = Chains()
    messages = [as_json({"role": role, "content": text}) for role, text in (("user", "a"), ("assistant", "b"))]
    longer = [*messages, as_json({"role": "user", "content": "c"}), as_json({"role": "assistant", "content": "d"})]
    for number, (said, prompt, response) in enumerate([(messages, [1], [2, END]), (longer, [1, 2, END, 3], [4, END])]):
        context = Context(pack_ids(prompt), as_json(prompt), tuple(said[:-1]), b"{}")
        senses = tuple(sense(message) for message in said)
        chains.add(f"s{number}", context, chains.delta(context), pack_ids(response), said[-1], senses)

    def held(said: list[bytes]) -> Any:
        return chains.held([sense(message) for message in said])

    then = as_json({"role": "user", "content": "e"})
    assert held([*longer, then]) == (4, pack_ids([1, 2, END, 3, 4, END]), pack_ids([4, END]))
    assert held([*messages, then]) == (2, pack_ids([1, 2, END]), pack_ids([2, END]))
    assert held(longer[:1]) is None
    assert held(longer) == (2, pack_ids([1, 2, END]), pack_ids([2, END])), "the reply is the tail's beginning"
    assert held([then, *longer]) is None


def test_the_renderings_that_are_asked_for() -> None:
    asked = chat.asked(
        as_json(
            {"model": "m", "messages": [{"role": "user"}, {"role": "assistant"}, {"role": "tool"}], "tools": [], "n": 2}
        )
    )
    whole, before = (json.loads(body) for body in render_requests(asked, 2))
    assert whole == {
        "model": "m",
        "messages": [{"role": "user"}, {"role": "assistant"}, {"role": "tool"}],
        "tools": [],
        "add_generation_prompt": True,
    }
    assert before == whole | {"messages": [{"role": "user"}, {"role": "assistant"}], "add_generation_prompt": False}


TOKENS = st.lists(st.integers(0, 8), min_size=1, max_size=8)


@given(TOKENS, TOKENS, TOKENS, st.lists(st.integers(0, 8), max_size=MAX_TRAILER), TOKENS)
def test_what_is_sent_is_what_was_held_and_what_is_new(
    prompt: list[int], sampled: list[int], spelt: list[int], gap: list[int], new: list[int]
) -> None:
    """However the template spells the reply, what follows its end is appended to the tokens that were sampled."""
    response = [*sampled, END]
    before = [*prompt, *spelt, END, *gap]
    whole = [*prompt, *spelt, END, *gap, *new]
    held = pack_ids([*prompt, *response])
    assert extend(held, pack_ids(response), whole, before) == [*prompt, *response, *gap, *new]


@pytest.mark.parametrize(
    ("response", "whole", "before"),
    [
        ([], [1, END, 2], [1, END]),
        ([3, 4], [1, 3, END, 2], [1, 3, END]),  # cut before its end
        ([3, 4], [4, 5, 6, 7, 8, 3, END, 2], [4, 5, 6, 7, 8, 3, END]),  # cut, at a token that the prompt has
        ([3, 5], [5, 1, 2, 6, 3, 8, 5, 1, 6], [5, 1, 2, 6, 3, 8]),  # ended by what begins the next turn
        ([3, END], [1, 3, END], [1, 3, END]),  # nothing new
        ([3, END], [1, 3], [1, 3, END]),  # the template dropped the turn
    ],
)
def test_a_border_that_is_not_certain_is_not_taken(response: list[int], whole: list[int], before: list[int]) -> None:
    assert extend(pack_ids([1, *response]), pack_ids(response), whole, before) is None


def test_the_fields_that_carry_tokens() -> None:
    asked = chat.asked(b'{"messages":[],"kv_transfer_params":{"x":1}}')
    assert asked.left_out == ("kv_transfer_params",), "an agent puts no tokens in place of its messages"
    assert json.loads(with_tokens(asked, [1, 2], "kv_transfer_params"))["kv_transfer_params"] == {
        "prompt_token_ids": [1, 2]
    }
    assert json.loads(with_tokens(asked, [1, 2], "input_ids"))["input_ids"] == [1, 2]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"tokens": null}', b'{"tokens": [-1]}', b'{"tokens": ["1"]}'])
def test_what_is_no_rendering_gives_none(body: bytes) -> None:
    assert rendered(body) is None


def test_a_rendering() -> None:
    assert rendered(b'{"count": 2, "tokens": [1, 2]}') == [1, 2]
