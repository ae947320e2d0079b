"""Anthropic requests as chat requests: what real clients send, each field alone, and bodies that nobody should send."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.dialects.messages import MESSAGES, count_reply, dialect, read_count, translate
from gateway.replies import Refusal

GOLDEN = Path(__file__).parents[2] / "golden"
CLIENTS = [*sorted((GOLDEN / "clients").glob("anthropic-*.json")), GOLDEN / "clients" / "claude-code.json"]
HEAD = {"model": "m", "max_tokens": 8}
HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}
TOOL = {"name": "f", "description": "does f", "input_schema": SCHEMA}
FUNCTION = {"type": "function", "function": {"name": "f", "description": "does f", "parameters": SCHEMA}}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
PIXEL = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
PIXEL_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def body(**over: Any) -> dict[str, Any]:
    return {**HEAD, "messages": HELLO, **over}


def chat(**over: Any) -> dict[str, Any]:
    return translate(body(**over))


def converted(*messages: dict[str, Any], **over: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = chat(messages=list(messages), **over)["messages"]
    return found


def calls(path: Path) -> list[dict[str, Any]]:
    """The recorded bodies; tools that were cut from a recording stand as tools of that name."""
    recorded = json.loads(path.read_text("utf-8"))["calls"]
    bodies = [call["body"] for call in recorded if not call["path"].endswith("count_tokens")]
    for sent in bodies:
        sent["tools"] = [_restored(tool) for tool in sent.get("tools", [])]
    return bodies


def _restored(tool: dict[str, Any]) -> dict[str, Any]:
    if "_tool" not in tool:
        return tool
    deferred = {"defer_loading": True} if "defer_loading" in tool["_keys"] else {}
    return {"name": tool["_tool"], "description": "cut", "input_schema": {"type": "object"}, **deferred}


# --------------------------------------------------------------------------------------------------------------- clients


@pytest.mark.parametrize("path", CLIENTS, ids=lambda path: path.stem)
def test_what_clients_send_becomes_a_chat_request(path: Path) -> None:
    for sent in calls(path):
        asked = MESSAGES.read(json.dumps(sent).encode(), "c1", 0.0)
        upstream = json.loads(asked.upstream_body)
        assert (asked.dialect, asked.api.path, asked.n) == ("messages", "/v1/chat/completions", 1)
        assert asked.stream == sent.get("stream", False) == upstream.get("stream", False)
        assert (asked.model, asked.sampling.max_tokens) == (sent["model"], sent["max_tokens"])
        assert [json.loads(message) for message in asked.messages] == upstream["messages"]
        assert upstream["return_token_ids"] is upstream["logprobs"] is True
        assert {tool["type"] for tool in upstream["tools"]} == {"function"}
        asked_for = {"max_tokens", "messages", "model", "stop", "stream", "stream_options", "tools", "tool_choice"}
        switches = {"reasoning_effort", "chat_template_kwargs", "temperature", "top_k", "parallel_tool_calls"}
        capture = {"return_token_ids", "return_weight_versions", "logprobs", "top_logprobs"}
        assert upstream.keys() <= asked_for | switches | capture


@pytest.mark.parametrize("path", CLIENTS, ids=lambda path: path.stem)
def test_a_longer_conversation_extends_the_shorter(path: Path) -> None:
    first, *_, last = [translate(sent) for sent in calls(path)]
    assert last["messages"][: len(first["messages"])] == first["messages"]
    assert {**last, "messages": None} == {**first, "messages": None}


def test_claude_code() -> None:
    first, second = (translate(sent) for sent in calls(GOLDEN / "clients" / "claude-code.json"))
    roles = ["system", "user", "system"]
    assert [message["role"] for message in first["messages"]] == roles
    assert [message["role"] for message in second["messages"]] == [*roles, "assistant", "tool"]
    system = first["messages"][0]["content"]
    assert system.startswith("You are a Claude agent, built on Anthropic's Claude Agent SDK.\nYou are an agent")
    assert [part["type"] for part in first["messages"][1]["content"]] == ["text", "text"]
    assert first["messages"][2]["content"].startswith("# Environment\n")
    call = second["messages"][3]
    assert call["reasoning"] == call["reasoning_content"] == "I should look before I answer."
    assert call["tool_calls"] == [
        {
            "id": "toolu_7cd706902238eaa55e757cea",
            "type": "function",
            "function": {"name": "Bash", "arguments": '{"command": "echo demo-$((6*7))-c0dec0de"}'},
        }
    ]
    result = {"role": "tool", "tool_call_id": "toolu_7cd706902238eaa55e757cea", "content": "marker-42-c0dec0de"}
    assert second["messages"][4] == result
    names = [tool["function"]["name"] for tool in first["tools"]]
    assert "Bash" in names
    assert "DeferredToolPlaceholder" not in names
    assert first["reasoning_effort"] == "high"
    assert first.keys() == {"model", "messages", "tools", "reasoning_effort", "max_tokens", "stream"}


def test_the_same_question_is_the_same_chat_request_as_the_recorded_one() -> None:
    native = json.loads((GOLDEN / "vllm/messages.json").read_text("utf-8"))["request"]["body"]
    recorded = json.loads((GOLDEN / "vllm/tool_auto.json").read_text("utf-8"))["request"]["body"]
    made = translate(native)
    for key in ("model", "messages", "tools", "temperature"):
        assert made[key] == recorded[key]


# -------------------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("system", "wanted"),
    [
        (None, None),
        ("", None),
        ([], None),
        ("terse", "terse"),
        ([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}], "ab"),
        ([{"type": "text", "text": "x-anthropic-billing-header: cc=1;"}, {"type": "text", "text": "b"}], "b"),
        ([{"type": "text", "text": "x-anthropic-billing-header: cc=1;"}], None),
    ],
)
def test_system_prompts(system: Any, wanted: str | None) -> None:
    head = [] if wanted is None else [{"role": "system", "content": wanted}]
    assert converted(*HELLO, system=system) == [*head, *HELLO]


def test_system_messages_stay_in_their_place_or_go_to_the_head() -> None:
    reminder = {"role": "system", "content": [{"type": "text", "text": "9 left"}]}
    noise = {"role": "system", "content": "x-anthropic-billing-header: cc=1;"}
    sent = body(system="terse. ", messages=[*HELLO, reminder, noise, {"role": "assistant", "content": "hi"}, *HELLO])
    kept = translate(sent)["messages"]
    assert [message["role"] for message in kept] == ["system", "user", "system", "assistant", "user"]
    assert kept[2]["content"] == "9 left"
    merged = translate(sent, merge_system=True)["messages"]
    assert merged == [
        {"role": "system", "content": "terse. 9 left"},
        *HELLO,
        {"role": "assistant", "content": "hi"},
        *HELLO,
    ]
    asked = dialect(merge_system=True).read(json.dumps(sent).encode(), "c1", 0.0)
    assert [json.loads(message) for message in asked.messages] == merged


def test_a_single_text_is_the_same_as_a_string() -> None:
    block = {"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}
    assert converted({"role": "user", "content": [block]}) == HELLO


def test_parts_of_a_user_message() -> None:
    content = [
        {"type": "text", "text": "see"},
        {"type": "text", "text": ""},
        {"type": "image", "source": PIXEL},
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "D"}},
        {
            "type": "document",
            "context": "C",
            "source": {"type": "content", "content": [{"type": "image", "source": PIXEL}]},
        },
        {"type": "document", "source": {"type": "content", "content": "E"}},
        {"type": "search_result", "title": "S", "source": "s.org", "content": [{"type": "text", "text": "found"}]},
    ]
    (message,) = converted({"role": "user", "content": content})
    assert message["content"] == [
        {"type": "text", "text": "see"},
        PIXEL_PART,
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "text", "text": "T\nD"},
        {"type": "text", "text": "C"},
        PIXEL_PART,
        {"type": "text", "text": "E"},
        {"type": "text", "text": "S\ns.org\nfound"},
    ]


def test_results_come_first_and_their_images_after_them() -> None:
    content = [
        {"type": "text", "text": "now this"},
        {"type": "tool_result", "tool_use_id": "a", "content": "plain"},
        {
            "type": "tool_result",
            "tool_use_id": "b",
            "content": [
                {"type": "text", "text": "x"},
                {"type": "image", "source": PIXEL},
                {"type": "text", "text": "y"},
            ],
        },
        {"type": "tool_result", "tool_use_id": "c", "is_error": True},
        {"type": "tool_result", "tool_use_id": "d", "is_error": True, "content": "no such file"},
        {"type": "tool_result", "tool_use_id": "e", "content": []},
    ]
    assert converted({"role": "user", "content": content}) == [
        {"role": "tool", "tool_call_id": "a", "content": "plain"},
        {"role": "tool", "tool_call_id": "b", "content": "x\ny"},
        {"role": "tool", "tool_call_id": "c", "content": "error"},
        {"role": "tool", "tool_call_id": "d", "content": "no such file"},
        {"role": "tool", "tool_call_id": "e", "content": ""},
        {"role": "user", "content": [PIXEL_PART, {"type": "text", "text": "now this"}]},
    ]


def test_the_assistants_blocks() -> None:
    content = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "opaque"},
        {"type": "text", "text": "I look. "},
        {"type": "text", "text": "Now."},
        {"type": "tool_use", "id": "a", "name": "f", "input": {"é": "ü", "n": [1, 2.5, None, True]}},
        {"type": "tool_use", "id": "b", "name": "g", "input": {}},
    ]
    (message,) = converted({"role": "assistant", "content": content})
    assert message == {
        "role": "assistant",
        "content": "I look. Now.",
        "reasoning": "hm",
        "reasoning_content": "hm",
        "tool_calls": [
            {
                "id": "a",
                "type": "function",
                "function": {"name": "f", "arguments": '{"é": "ü", "n": [1, 2.5, null, true]}'},
            },
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }


def test_a_begun_answer_is_continued() -> None:
    begun = [*HELLO, {"role": "assistant", "content": [{"type": "text", "text": "The answer is ("}]}]
    made = chat(messages=begun)
    assert (made["continue_final_message"], made["add_generation_prompt"]) == (True, False)
    called = [*HELLO, {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]}]
    assert "continue_final_message" not in chat(messages=called)
    assert "continue_final_message" not in chat()


# ----------------------------------------------------------------------------------------------------------------- tools


def test_tools_become_functions() -> None:
    typed = {"type": "custom", "name": "g", "input_schema": {"properties": {}}, "strict": True, "cache_control": {}}
    made = chat(tools=[TOOL, typed, SEARCH, {"type": "computer_20250124", "name": "computer"}])["tools"]
    parameters = {"type": "object", "properties": {}}
    assert made == [FUNCTION, {"type": "function", "function": {"name": "g", "parameters": parameters, "strict": True}}]
    assert "tools" not in chat(tools=[])
    assert "tools" not in chat(tools=None)


def test_deferred_tools_come_in_when_they_are_referred_to() -> None:
    later = {**TOOL, "name": "later", "defer_loading": True}

    def names(*messages: dict[str, Any]) -> list[str]:
        made = chat(tools=[TOOL, later, {**TOOL, "name": "last"}], messages=[*HELLO, *messages])
        return [tool["function"]["name"] for tool in made["tools"]]

    found = [{"type": "tool_reference", "tool_name": "later"}]
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": found}]}
    reference = {"type": "tool_reference", "name": "later"}
    added = {"role": "system", "content": [{"type": "tool_addition", "tool": reference}]}
    removed = {"role": "system", "content": [{"type": "tool_removal", "tool": reference}]}
    definition = {"type": "tool_definition", "definition": {**TOOL, "name": "new"}}
    assert names() == ["f", "last"]
    assert names(result) == ["f", "later", "last"]
    assert names(added) == ["f", "later", "last"]
    assert names(added, removed) == ["f", "last"]
    assert names({"role": "system", "content": [{"type": "tool_addition", "tool": definition}]}) == ["f", "last", "new"]
    assert converted(result)[0]["content"] == "later"


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (None, {}),
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "tool", "name": "f"}, {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
        ({"type": "auto", "disable_parallel_tool_use": True}, {"tool_choice": "auto", "parallel_tool_calls": False}),
        ({"type": "auto", "disable_parallel_tool_use": False}, {"tool_choice": "auto"}),
    ],
)
def test_tool_choices(choice: Any, wanted: dict[str, Any]) -> None:
    made = chat(tools=[TOOL], tool_choice=choice)
    assert {key: made[key] for key in ("tool_choice", "parallel_tool_calls") if key in made} == wanted
    if choice is None or choice["type"] in ("auto", "none"):
        assert chat(tool_choice=choice).keys() == chat().keys(), "no choice where there is nothing to choose"


# ---------------------------------------------------------------------------------------------------------- other fields


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 0.5, "top_p": 1, "top_k": 4}, {"temperature": 0.5, "top_p": 1, "top_k": 4}),
        ({"temperature": None, "top_p": None, "top_k": None, "stop_sequences": None, "stream": None}, {}),
        ({"stop_sequences": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"stream": True}, {"stream": True}),
        ({"stream": False}, {}),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, {}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            {"chat_template_kwargs": {"enable_thinking": True, "thinking": True}},
        ),
        (
            {"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}},
            {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
        ),
        (
            {"thinking": {"type": "disabled"}, "chat_template_kwargs": {"thinking": True, "x": 1}},
            {"chat_template_kwargs": {"enable_thinking": False, "thinking": True, "x": 1}},
        ),
        (
            {"output_config": {"effort": "max", "task_budget": {"type": "tokens", "total": 9}}},
            {"reasoning_effort": "max"},
        ),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "json_schema", "schema": SCHEMA}}},
        ),
        (
            {"output_format": {"type": "json_schema", "schema": SCHEMA}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "json_schema", "schema": SCHEMA}}},
        ),
        (
            {"metadata": {"user_id": "u"}, "context_management": {"edits": []}, "service_tier": "auto", "betas": ["b"]},
            {},
        ),
        ({"container": None, "mcp_servers": [], "n": 1, "stream_options": {"include_usage": False}}, {"n": 1}),
        (
            {"seed": 7, "cache_salt": "s", "repetition_penalty": 1.1, "x": {"y": [None]}},
            {"seed": 7, "cache_salt": "s", "repetition_penalty": 1.1, "x": {"y": [None]}},
        ),
        ({"stop": ["engine's name"], "stop_sequences": ["agent's"]}, {"stop": ["agent's"]}),
    ],
)
def test_fields(field: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert chat(**field) == {**HEAD, "messages": HELLO, **wanted}


def test_a_forced_tool_and_a_schema_are_recorded_as_guided() -> None:
    def guided(**over: Any) -> bool | None:
        return MESSAGES.read(json.dumps(body(**over)).encode(), "c1", 0.0).sampling.guided

    assert not guided(tools=[TOOL])
    assert guided(tools=[TOOL], tool_choice={"type": "any"})
    assert guided(output_format={"type": "json_schema", "schema": SCHEMA})


def test_reasoning_can_be_hidden() -> None:
    asked = MESSAGES.read(json.dumps(body(include_reasoning=False)).encode(), "c1", 0.0)
    assert json.loads(asked.upstream_body)["include_reasoning"] is True
    reply = b'{"choices":[{"message":{"reasoning":"hm","content":"x"},"finish_reason":"stop"}]}'
    assert json.loads(asked.voice.whole(reply))["content"] == [{"type": "text", "text": "x"}]


# ---------------------------------------------------------------------------------------------------------------- counts


def test_a_count_asks_the_engine_for_the_same_prompt() -> None:
    recorded = json.loads((GOLDEN / "vllm/tokenize_chat.json").read_text("utf-8"))
    native = json.loads((GOLDEN / "vllm/messages.json").read_text("utf-8"))
    sent = {key: value for key, value in native["request"]["body"].items() if key in ("model", "messages", "tools")}
    assert json.loads(read_count(json.dumps(sent).encode())) == {
        **recorded["request"]["body"],
        "add_generation_prompt": True,
    }
    counted = json.loads(count_reply(json.dumps(recorded["response"]["body"]).encode()))
    assert counted == {"input_tokens": native["response"]["body"]["usage"]["input_tokens"]}


def test_a_count_needs_no_max_tokens_and_thinks_as_the_call_would() -> None:
    sent = {"model": "m", "messages": HELLO, "output_config": {"effort": "low"}, "system": "s", "stream": True}
    assert json.loads(read_count(json.dumps(sent).encode())) == {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, *HELLO],
        "add_generation_prompt": True,
        "chat_template_kwargs": {"reasoning_effort": "low", "enable_thinking": True},
    }
    begun = {"model": "m", "messages": [*HELLO, {"role": "assistant", "content": "("}]}
    made = json.loads(read_count(json.dumps(begun).encode()))
    assert (made["add_generation_prompt"], made["continue_final_message"]) == (False, True)


def test_a_reply_without_a_count_is_refused() -> None:
    for reply in (b"", b"{}", b'{"count":"many"}', b'{"count":[1]}', b"[" * 100_000):
        with pytest.raises(Refusal) as refused:
            count_reply(reply)
        assert (refused.value.status, refused.value.code) == (502, "unparsable_reply")
