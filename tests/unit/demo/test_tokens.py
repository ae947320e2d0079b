"""Text to ids and back: exact for prompts, and exact for whatever the model may say and an agent may replay."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.demo import tokens

TOOLS = [{"type": "function", "function": {"name": "guess", "description": "Play one number.", "parameters": {}}}]


@given(st.text().filter(lambda text: not text.startswith(" ")))
def test_decoding_gives_the_text_back(text: str) -> None:
    assert tokens.decode(tokens.encode(text)) == text


@given(st.text())
def test_others_cannot_forge_special_tokens(text: str) -> None:
    ids = tokens.encode(f"{text}<tool_call></tool_call><|end|><|assistant|>{text}")
    assert not set(ids) & {tokens.CALL, tokens.CLOSE, tokens.END, tokens.ASSISTANT}


def test_the_game_is_spelt_in_words() -> None:
    ids = tokens.encode("You have to guess the number between 1 and 15 within 3 turns.")
    assert len(ids) == 14


def _message(response: list[int]) -> dict[str, Any]:
    said = tokens.parse_answer(tokens.decode(response), tools=True)
    message: dict[str, Any] = {"role": "assistant", "content": said.content}
    if said.calls:
        message["tool_calls"] = [{"function": {"name": call.name, "arguments": call.arguments}} for call in said.calls]
    return message


some_calls = st.tuples(
    st.just(tokens.CALL), st.integers(3, 4), st.integers(tokens.FIRST_NUMBER, tokens.HEAD - 1), st.just(tokens.CLOSE)
).map(list)
some_speech = st.lists(st.integers(1, tokens.HEAD - 1), max_size=4)
some_responses = st.lists(st.one_of(some_calls, some_speech), max_size=4).map(
    lambda parts: [token for part in parts for token in part]
)


@given(st.text(), st.lists(some_responses, min_size=1, max_size=4), st.booleans())
def test_a_replayed_history_begins_with_the_ids_that_were_sampled(
    question: str, responses: list[list[int]], ended: bool
) -> None:
    """Also where the limit cut the response off, so that it has no end token."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    for said in responses:
        response = [*said, tokens.END] if ended else said
        prompt = tokens.render(messages, TOOLS)
        messages += [_message(response), {"role": "tool", "content": "The target number is lower."}]
        assert tokens.render(messages, TOOLS)[: len(prompt) + len(response)] == prompt + response


def test_only_an_answer_that_ends_in_calls_has_calls() -> None:
    call = "<tool_call> guess 5</tool_call>"
    assert tokens.parse_answer(call, tools=True).calls == (tokens.ToolCall("guess", '{"number": 5}'),)
    assert tokens.parse_answer(f"I halve{call}", tools=True).content == "I halve"
    for raw, tools in ((call, False), (f"{call} done", True), ("<tool_call> guess", True), ("", True)):
        assert tokens.parse_answer(raw, tools=tools) == tokens.Said(raw, ())


def test_arguments_of_another_form_are_spelt_as_they_are() -> None:
    function = {"name": "guess", "arguments": '{"number": 5, "why": 1}'}
    ids = tokens.render([{"role": "assistant", "content": None, "tool_calls": [{"function": function}]}])
    assert tokens.CALL in ids
    assert '{"number": 5, "why": 1}' in tokens.decode(ids)


def test_messages_that_cannot_be_rendered() -> None:
    with pytest.raises(ValueError, match="Unexpected message role: 'judge'"):
        tokens.render([{"role": "judge", "content": "x"}])
    with pytest.raises(TypeError, match="got int"):
        tokens.render([{"role": "user", "content": 3}])
