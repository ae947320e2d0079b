"""Responses' requests that mean nothing here are refused by name, and nothing else is raised whatever they are."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.base import Asked
from gateway.dialects.responses import RESPONSES, read
from gateway.replies import Refusal
from tests.unit.gateway.responses_requests import CLIENTS, FUNCTION, RECORDED_CLIENTS, USER, call, output, recorded

BAD: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": ["x"]}, "input[0]"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
    ({"input": [{"id": "x"}]}, "input[0]"),
    ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
    ({"input": [{"type": 5}]}, "input[0].type"),
    ({"input": [{"type": "local_shell_call"}]}, "input[0].type"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": [], "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": ["x"]}]}, "input[0].content[0]"),
    ({"input": [{"role": "user", "content": [{"type": "x"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input[0].content[0].type"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]},
        "input[0].content[0].image_url",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": 1}]}]},
        "input[0].content[0].image_url",
    ),
    ({"input": [USER, {**call(), "name": None}]}, "input[1].name"),
    ({"input": [USER, {**call(), "call_id": 1}]}, "input[1].call_id"),
    ({"input": [USER, {**call(), "arguments": {}}]}, "input[1].arguments"),
    ({"input": [USER, call(), {**output(), "call_id": None}]}, "input[2].call_id"),
    ({"input": [USER, call(), output(value=5)]}, "input[2].output"),
    ({"input": [USER, {"type": "reasoning", "content": "x"}]}, "input[1].content"),
    ({"input": [USER, {"type": "reasoning", "encrypted_content": 5}]}, "input[1].encrypted_content"),
    ({"instructions": 5}, "instructions"),
    ({"model": 5}, "model"),
    ({"stream": "yes"}, "stream"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"background": True}, "background"),
    ({"background": "yes"}, "background"),
    ({"store": "yes"}, "store"),
    ({"n": 2}, "n"),
    ({"include": "x"}, "include"),
    ({"include": [5]}, "include[0]"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 1.5}, "max_output_tokens"),
    ({"max_output_tokens": 2**63}, "max_output_tokens"),
    ({"max_output_tokens": True}, "max_output_tokens"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": []}, "top_p"),
    ({"top_logprobs": -1}, "top_logprobs"),
    ({"reasoning": "low"}, "reasoning"),
    ({"reasoning": {"effort": 5}}, "reasoning.effort"),
    ({"metadata": "x"}, "metadata"),
    ({"user": 5}, "user"),
    ({"text": "x"}, "text"),
    ({"text": {"format": "x"}}, "text.format"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
    ({"parallel_tool_calls": "x"}, "parallel_tool_calls"),
    ({"tools": {}}, "tools"),
    ({"tools": [5]}, "tools[0]"),
    ({"tools": [{}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tools": [{"type": "function", "function": 5}]}, "tools[0].function"),
    ({"tools": [{**FUNCTION, "parameters": "x"}]}, "tools[0].parameters"),
    ({"tools": [{**FUNCTION, "strict": "x"}]}, "tools[0].strict"),
    ({"tools": [{"type": "custom", "name": "c", "format": "x"}]}, "tools[0].format"),
    ({"tools": [{"type": "custom", "name": "c", "format": {"type": "grammar"}}]}, "tools[0].format.syntax"),
    ({"tools": [{"type": "namespace", "name": "n"}]}, "tools[0].tools"),
    ({"tools": [{"type": "namespace", "name": "n", "tools": [5]}]}, "tools[0].tools[0]"),
    ({"tools": [{"type": "web_search"}, {"type": "file_search"}]}, "tools"),
    ({"tools": [{**FUNCTION, "defer_loading": True}, {"type": "tool_search"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": 5}, "tool_choice"),
    ({"tool_choice": {}}, "tool_choice"),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "function"}}, "tool_choice.name"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "custom", "name": "f"}}, "tool_choice.name"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice.mode"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice.tools"),
    (
        {"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [5]}},
        "tool_choice.tools[0]",
    ),
]


@pytest.mark.parametrize(("request_", "param"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_request_is_refused_by_name(request_: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as refused:
        read(json.dumps({"model": "tiny", "input": "Hi", **request_}).encode(), "call1", 1.0)
    assert refused.value.status == 400
    error = json.loads(RESPONSES.refusal(refused.value))["error"]
    assert error["param"] == param
    assert error["code"] in ("invalid_field", "missing_field", "unsupported")
    assert error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'"x"', b'{"input": "\xff"}', b"[" * 100_000, b'{"input": ' + b"[" * 9_000]
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        read(body, "call1", 1.0)
    assert refused.value.status == 400


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "role", "content", "name", "text", "tools", "format", "image_url", "output", "summary"]
            ),
            inner
            | st.sampled_from(["message", "function", "custom", "namespace", "input_text", "input_image", "user"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)
_FIELDS = st.sampled_from(
    [
        *(
            "input",
            "instructions",
            "tools",
            "tool_choice",
            "text",
            "reasoning",
            "include",
            "metadata",
            "stream",
            "model",
        ),
        *("temperature", "max_output_tokens", "n", "parallel_tool_calls", "top_logprobs", "previous_response_id"),
        *("extra", "stream_options", "logprobs"),
    ]
)


def attempt(body: bytes) -> Asked | Refusal:
    try:
        return read(body, "call1", 1.0)
    except Refusal as refusal:
        return refusal


@given(st.dictionaries(_FIELDS, _JSON, max_size=5))
def test_hostile_shapes_raise_nothing_but_refusals(body: dict[str, Any]) -> None:
    asked = attempt(json.dumps(body).encode())
    if isinstance(asked, Refusal):
        assert asked.status == 400
    else:
        assert json.loads(asked.upstream_body)["messages"]
        assert json.loads(asked.voice.whole(b"{}"))["status"] == "failed"


@pytest.mark.parametrize("place", ["tools", "extra", "metadata", "input", "schema", "image"])
def test_deep_nests_raise_nothing_but_refusals(place: str) -> None:
    for depth in (10, 200, *range(300, 1100, 20), 5000):
        nest = b'{"a":' * depth + b"1" + b"}" * depth
        body = {
            "tools": b'"tools": [{"type": "function", "name": "f", "parameters": %s}]' % nest,
            "extra": b'"extra": %s' % nest,
            "metadata": b'"metadata": %s' % nest,
            "input": b'"x": 1, "input": [%s]' % nest,
            "schema": b'"text": {"format": {"type": "json_schema", "schema": %s}}' % nest,
            "image": b'"input": [{"role": "user", "content": [{"type": "input_audio", "input_audio": %s}]}]' % nest,
        }[place]
        asked = attempt(b'{"model": "m", "input": "x", %s}' % body)
        if isinstance(asked, Refusal):
            assert asked.status == 400
        else:
            assert asked.voice.whole(b"{}")


@given(data=st.data())
def test_mutated_clients_raise_nothing_but_refusals(data: st.DataObject) -> None:
    body = data.draw(st.sampled_from(_BODIES))
    mutated = json.loads(json.dumps(body))
    for _ in range(data.draw(st.integers(1, 3))):
        holder: Any = mutated
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(holder[key], dict | list) and holder[key] and data.draw(st.booleans()):
                holder = holder[key]
                continue
            holder[key] = data.draw(_JSON)
            break
    asked = attempt(json.dumps(mutated).encode())
    assert asked.status == 400 if isinstance(asked, Refusal) else asked.messages


_BODIES = [body for name in RECORDED_CLIENTS for body in recorded(name)]


def test_recorded_clients_are_here() -> None:
    assert len(_BODIES) >= 10
    assert (CLIENTS / "codex.json").is_file()
