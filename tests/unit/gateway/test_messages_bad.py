"""Anthropic requests that nobody should send: each is refused by the name of its place, and nothing else ever happens."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.messages import MESSAGES, read_count
from gateway.replies import Refusal
from tests.unit.gateway.test_messages_request import HELLO, PIXEL, SCHEMA, SEARCH, TOOL, body


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "content": list(blocks)}]}


FIRST = "messages[0].content[0]"
BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": ""}, "model"),
    ({"model": 7}, "model"),
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "8"}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 8.5}, "max_tokens"),
    ({"max_tokens": 2**63}, "max_tokens"),
    ({"temperature": "1"}, "temperature"),
    ({"top_p": []}, "top_p"),
    ({"top_k": 1.5}, "top_k"),
    ({"stream": "true"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"stop_sequences": "END"}, "stop_sequences"),
    ({"stop_sequences": ["END", 7]}, "stop_sequences[1]"),
    ({"n": 2}, "n"),
    ({"system": 7}, "system"),
    ({"system": ["terse"]}, "system[0]"),
    ({"system": [{"type": "text"}]}, "system[0].text"),
    ({"system": [{"type": "image", "source": PIXEL}]}, "system[0].type"),
    ({"container": "c"}, "container"),
    ({"mcp_servers": [{"type": "url", "url": "https://example.org"}]}, "mcp_servers"),
    ({"output_config": []}, "output_config"),
    ({"output_config": "high"}, "output_config"),
    ({"output_config": {"effort": 3}}, "output_config.effort"),
    ({"output_config": {"format": {"type": "text"}}}, "output_config.format.type"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"output_format": {"type": "json_schema", "schema": "x"}}, "output_format.schema"),
    ({"thinking": True}, "thinking"),
    ({"thinking": {}}, "thinking.type"),
    ({"thinking": {"type": "on"}}, "thinking.type"),
    ({"thinking": {"type": "enabled", "budget_tokens": "1024"}}, "thinking.budget_tokens"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": {}}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": ["hello"]}, "messages[0]"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "developer", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    (user("text"), FIRST),
    (user({}), f"{FIRST}.type"),
    (user({"type": 7}), f"{FIRST}.type"),
    (user({"type": "text", "text": 7}), f"{FIRST}.text"),
    (user({"type": "video"}), f"{FIRST}.type"),
    (user({"type": "thinking", "thinking": "x"}), f"{FIRST}.type"),
    (user({"type": "tool_use", "id": "a", "name": "f", "input": {}}), f"{FIRST}.type"),
    (user({"type": "image"}), f"{FIRST}.source"),
    (user({"type": "image", "source": "x"}), f"{FIRST}.source"),
    (user({"type": "image", "source": {"type": "base64", "data": "x"}}), f"{FIRST}.source.media_type"),
    (user({"type": "image", "source": {"type": "url"}}), f"{FIRST}.source.url"),
    (user({"type": "image", "source": {"type": "file", "file_id": "x"}}), f"{FIRST}.source.type"),
    (user({"type": "document", "source": {**PIXEL, "media_type": "application/pdf"}}), f"{FIRST}.source.type"),
    (
        user({"type": "document", "source": {"type": "content", "content": [{"type": "x"}]}}),
        f"{FIRST}.source.content[0].type",
    ),
    (user({"type": "search_result", "title": "t", "source": "s", "content": "x"}), f"{FIRST}.content"),
    (user({"type": "tool_result", "content": "x"}), f"{FIRST}.tool_use_id"),
    (user({"type": "tool_result", "tool_use_id": "a", "content": 7}), f"{FIRST}.content"),
    (user({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "x"}]}), f"{FIRST}.content[0].type"),
    (
        user({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "tool_reference"}]}),
        f"{FIRST}.content[0].tool_name",
    ),
    (assistant({"type": "tool_use", "name": "f", "input": {}}), f"{FIRST}.id"),
    (assistant({"type": "tool_use", "id": "a", "input": {}}), f"{FIRST}.name"),
    (assistant({"type": "tool_use", "id": "a", "name": "f", "input": "x"}), f"{FIRST}.input"),
    (assistant({"type": "tool_use", "id": "a", "name": "f", "input": []}), f"{FIRST}.input"),
    (assistant({"type": "tool_result", "tool_use_id": "a"}), f"{FIRST}.type"),
    (assistant({"type": "image", "source": PIXEL}), f"{FIRST}.type"),
    (assistant({"type": "server_tool_use", "id": "a", "name": "web_search", "input": {}}), f"{FIRST}.type"),
    (assistant({"type": "thinking"}), f"{FIRST}.thinking"),
    ({"messages": [{"role": "system", "content": [{"type": "tool_addition"}]}, *HELLO]}, f"{FIRST}.tool"),
    (
        {"messages": [{"role": "system", "content": [{"type": "tool_addition", "tool": {"type": "mcp"}}]}, *HELLO]},
        f"{FIRST}.tool.type",
    ),
    ({"tools": {}}, "tools"),
    ({"tools": 7}, "tools"),
    ({"tools": [7]}, "tools[0]"),
    ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
    ({"tools": [{"name": "", "input_schema": {}}]}, "tools[0].name"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tools": [{"name": "f", "input_schema": "x"}]}, "tools[0].input_schema"),
    ({"tools": [{**TOOL, "description": 7}]}, "tools[0].description"),
    ({"tools": [{**TOOL, "type": 7}]}, "tools[0].type"),
    ({"tools": [{**TOOL, "strict": "yes"}]}, "tools[0].strict"),
    ({"tools": [{**TOOL, "defer_loading": "yes"}]}, "tools[0].defer_loading"),
    ({"tools": [SEARCH]}, "tools"),
    ({"tools": [{**TOOL, "defer_loading": True}]}, "tools"),
    ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {}}, "tool_choice.type"),
    ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "tool_choice.type"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": [TOOL, SEARCH], "tool_choice": {"type": "tool", "name": "web_search"}}, "tool_choice.name"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": 1}},
        "tool_choice.disable_parallel_tool_use",
    ),
    ({"tool_choice": {"type": "any"}}, "tool_choice.type"),
]


@pytest.mark.parametrize(("bad", "param"), BAD, ids=[f"{index}-{param}" for index, (_, param) in enumerate(BAD)])
def test_what_cannot_be_honoured_is_refused_by_name(bad: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as refused:
        MESSAGES.read(json.dumps(body(**bad)).encode(), "c1", 0.0)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert param in refused.value.message
    error = json.loads(MESSAGES.refusal(refused.value))["error"]
    assert (error["type"], error["details"]["param"]) == ("invalid_request_error", param)


DEEP = 100_000


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"model":"\xff"}', "invalid_json"),
        (b'{"model":"\\ud800"}', "invalid_json"),
        (b'{"max_tokens":NaN}', "invalid_json"),
        (b'{"max_tokens":' + b"9" * 5000 + b"}", "invalid_json"),
        (b"[]", "invalid_body"),
        (b"null", "invalid_body"),
        (b"[" * DEEP, "invalid_body"),
        (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "invalid_body"),
    ],
)
def test_what_is_no_request_is_refused(sent: bytes, code: str) -> None:
    for read in (lambda: MESSAGES.read(sent, "c1", 0.0), lambda: read_count(sent)):
        with pytest.raises(Refusal) as refused:
            read()
        assert (refused.value.status, refused.value.code) == (400, code)


@pytest.mark.parametrize("depth", [10, 300, 600, 800, 900, 950, 1000, 2000])
def test_depth_is_carried_or_refused(depth: int) -> None:
    value = '{"a":' * depth + "1" + "}" * depth
    call = '{"role":"assistant","content":[{"type":"tool_use","id":"a","name":"f","input":' + value + "}]}"
    for message in (call, '{"role":"user","content":"x","more":' + value + "}"):
        sent = '{"model":"m","max_tokens":8,"messages":[' + message + '],"x":' + value + "}"
        assert outcome(sent.encode()) in ("read", 400)


def outcome(sent: bytes) -> str | int:
    try:
        MESSAGES.read(sent, "c1", 0.0)
        read_count(sent)
    except Refusal as refusal:
        json.loads(MESSAGES.refusal(refusal))
        return refusal.status
    return "read"


ANY = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
        st.sampled_from(["text", "tool_result", "tool_use", "image", "user", "assistant", "system", "custom", "8"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["type", "text", "content", "role", "name", "input", "source", "tool", "x"]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=8,
)
RICH = body(
    system=[{"type": "text", "text": "terse", "cache_control": {"type": "ephemeral"}}],
    messages=[
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image", "source": PIXEL}]},
        {"role": "system", "content": [{"type": "tool_addition", "tool": {"type": "tool_reference", "name": "f"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "r"}]},
                {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "d"}]}},
                {"type": "search_result", "title": "t", "source": "s", "content": [{"type": "text", "text": "d"}]},
            ],
        },
    ],
    tools=[TOOL, SEARCH],
    tool_choice={"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    thinking={"type": "enabled", "budget_tokens": 1024},
    output_config={"effort": "high", "format": {"type": "json_schema", "schema": SCHEMA}},
    chat_template_kwargs={"x": 1},
    stop_sequences=["END"],
    stream=True,
    stream_options={"include_usage": True},
    temperature=1.0,
    top_k=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = replaced(value[path[0]], path[1:], new)
    return copied


def test_the_rich_request_is_read() -> None:
    assert outcome(json.dumps(RICH).encode()) == "read"


@given(st.sampled_from(list(places(RICH))), ANY)
def test_any_value_at_any_place_is_read_or_refused(place: tuple[Any, ...], value: Any) -> None:
    assert outcome(json.dumps(replaced(RICH, place, value)).encode()) in ("read", 400)


@given(st.binary(max_size=4), st.integers(0, 2**16), st.integers(0, 8))
def test_any_damage_to_the_bytes_is_read_or_refused(new: bytes, at: int, removed: int) -> None:
    sent = json.dumps(RICH).encode()
    at %= len(sent)
    assert outcome(sent[:at] + new + sent[at + removed :]) in ("read", 400)
