"""Responses' requests: each form becomes the chat request that it means, and what cannot is refused by name."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.base import Asked
from gateway.dialects.responses import dialect, read
from gateway.dialects.responses_shapes import seal, unseal
from tests.unit.gateway.recordings import FOLDER, completed
from tests.unit.gateway.responses_requests import FUNCTION, RECORDED_CLIENTS, USER, call, output, recorded

CAPTURE = {"return_token_ids": True, "return_weight_versions": True, "logprobs": True, "top_logprobs": 0}
CHAT_FUNCTION = {"type": "function", "function": {key: FUNCTION[key] for key in ("name", "parameters", "strict")}}


def ask(**request: Any) -> Asked:
    return read(json.dumps({"model": "tiny", "input": "Hi", **request}).encode(), "call1", 1.0)


def chat(**request: Any) -> dict[str, Any]:
    """The chat request, without what capture adds."""
    upstream: dict[str, Any] = json.loads(ask(**request).upstream_body)
    return {key: value for key, value in upstream.items() if CAPTURE.get(key) != value}


def messages(*items: Any, **request: Any) -> Any:
    return chat(input=list(items), **request)["messages"]


def chat_call(call_id: str = "c1", name: str = "f", arguments: str = "{}") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def reasoning(text: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": "rs_1", "summary": [], "content": content}


def said(text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content}


# --------------------------------------------------------------------------------------------------------------- options


def test_smallest_request() -> None:
    assert chat() == {"model": "tiny", "messages": [USER]}
    asked = ask()
    assert (asked.dialect, asked.api.path, asked.n, asked.stream) == ("responses", "/v1/chat/completions", 1, False)
    assert asked.messages == (b'{"role":"user","content":"Hi"}',)
    assert json.loads(asked.upstream_body).items() >= CAPTURE.items()


def test_stream_asks_for_usage() -> None:
    asked = ask(stream=True, stream_options={"include_obfuscation": False})
    assert asked.stream
    assert json.loads(asked.upstream_body)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        ({"max_output_tokens": 5}, {"max_completion_tokens": 5}),
        ({"temperature": 0, "top_p": 0.5}, {"temperature": 0, "top_p": 0.5}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        ({"reasoning": None}, {}),
        ({"reasoning": {"summary": "auto"}}, {}),
        ({"user": "me", "metadata": {"a": "b"}, "store": True}, {"user": "me"}),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        ({"include": ["reasoning.encrypted_content"], "top_logprobs": 3}, {}),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 3}, {"top_logprobs": 3}),
        (
            {"seed": 7, "top_k": 5, "chat_template_kwargs": {"x": 1}},
            {"seed": 7, "top_k": 5, "chat_template_kwargs": {"x": 1}},
        ),
        ({"background": False, "previous_response_id": None, "conversation": None, "prompt": None, "n": 1}, {"n": 1}),
        ({"prompt_cache_key": "k", "client_metadata": {}, "truncation": "auto", "service_tier": "flex"}, {}),
        ({"max_tokens": 3, "max_output_tokens": 4}, {"max_tokens": 3, "max_completion_tokens": 4}),
        ({"messages": [1]}, {}),
    ],
)
def test_options_become_the_chat_s(request_: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert chat(**request_) == {"model": "tiny", "messages": [USER], **wanted}


def test_sampling_is_read() -> None:
    sampling = ask(temperature=0.5, max_output_tokens=9, text={"format": {"type": "json_object"}}).sampling
    assert (sampling.temperature, sampling.max_tokens, sampling.guided) == (0.5, 9, True)


# --------------------------------------------------------------------------------------------------------------- history


def test_instructions_and_leading_developers_are_one_system_message() -> None:
    found = messages(
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": t} for t in ("a", "b")]},
        {"role": "system", "content": "c"},
        USER,
        {"role": "developer", "content": "d"},
        instructions="first",
    )
    assert found == [
        {"role": "system", "content": "first\n\na\nb\n\nc"},
        USER,
        {"role": "system", "content": "d"},
    ]


def test_system_messages_may_be_merged_for_templates_that_take_one_at_the_head() -> None:
    body = {"input": [{"role": "developer", "content": "a"}, USER, {"role": "developer", "content": "b"}]}
    asked = dialect(merge_system=True).read(json.dumps(body).encode(), "call1", 1.0)
    assert [json.loads(message) for message in asked.messages] == [{"role": "system", "content": "a\n\nb"}, USER]


def test_one_turn_is_one_message() -> None:
    found = messages(
        USER, reasoning("r"), said("t"), call("c1"), call("c2"), output("c1"), output("c2", "43"), said("end")
    )
    assert found == [
        USER,
        {
            "role": "assistant",
            "content": "t",
            "reasoning": "r",
            "reasoning_content": "r",
            "tool_calls": [chat_call("c1"), chat_call("c2")],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
        {"role": "tool", "tool_call_id": "c2", "content": "43"},
        {"role": "assistant", "content": "end"},
    ]


def test_turns_without_a_user_between_stay_turns() -> None:
    assert messages(said("a"), said("b")) == [{"role": "assistant", "content": c} for c in "ab"]
    found = messages(USER, said("a"), reasoning("r"), said("b"), USER)
    assert [m.get("content") for m in found] == ["Hi", "a", "b", "Hi"]
    assert found[2]["reasoning"] == "r"


def test_text_after_a_call_is_of_its_turn() -> None:
    found = messages(USER, said("a"), call(), reasoning("r"), said("b"), output())
    assert found[1] == {
        "role": "assistant",
        "content": "ab",
        "reasoning": "r",
        "reasoning_content": "r",
        "tool_calls": [chat_call()],
    }


def test_pictures_that_an_assistant_showed_stay_parts() -> None:
    shown = {"role": "assistant", "content": [{"type": "input_image", "image_url": "data:x"}]}
    assert messages(USER, said("a"), call(), shown)[1]["content"] == [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "data:x"}},
    ]


def test_reasoning_that_a_broken_stream_left_is_no_history() -> None:
    assert messages(USER, reasoning("r1")) == [USER]
    found = messages(USER, reasoning("r1"), reasoning("r2"), call(), output())
    assert found[1]["reasoning"] == "r2"


def test_reasoning_without_an_answer_is_kept_before_the_user_s_next_word() -> None:
    assert messages(USER, reasoning("r"), USER)[1] == {
        "role": "assistant",
        "content": "",
        "reasoning": "r",
        "reasoning_content": "r",
    }


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ({"encrypted_content": seal("hidden"), "content": None}, "hidden"),
        ({"encrypted_content": "someone else's"}, None),
        ({"encrypted_content": "claw1:@@"}, None),
        ({"summary": [{"type": "summary_text", "text": "short"}]}, "short"),
        ({"encrypted_content": seal("hidden"), "summary": [{"text": "short"}]}, "hidden"),
    ],
)
def test_reasoning_comes_back_from_what_is_there(item: dict[str, Any], text: str | None) -> None:
    found = messages(USER, {"type": "reasoning", "summary": [], **item}, call(), output())
    assert found[1].get("reasoning") == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_sealed_reasoning_is_unsealed(text: str) -> None:
    assert unseal(seal(text)) == text


@pytest.mark.parametrize(
    ("role", "content", "wanted"),
    [
        ("user", "a", "a"),
        ("user", [{"type": "input_text", "text": "a"}], "a"),
        ("user", [{"type": "input_text", "text": t} for t in "ab"], [{"type": "text", "text": t} for t in "ab"]),
        ("user", [], ""),
        (
            "user",
            [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "data:x", "detail": "low"}],
            [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}}],
        ),
        (
            "user",
            [{"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}],
            [{"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}],
        ),
        ("assistant", None, ""),
        ("assistant", [{"type": "output_text", "text": t} for t in "ab"], "ab"),
        ("assistant", [{"type": "refusal", "refusal": "no"}], "no"),
    ],
)
def test_content_becomes_the_chat_s(role: str, content: Any, wanted: Any) -> None:
    assert messages({"role": role, "content": content}) == [{"role": role, "content": wanted}]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("42", "42"),
        ([{"type": "input_text", "text": t} for t in "ab"], "a\nb"),
        (
            [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "data:x"}],
            [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:x"}}],
        ),
    ],
)
def test_tool_output_becomes_a_tool_message(value: Any, wanted: Any) -> None:
    assert messages(USER, call(), output(value=value))[2]["content"] == wanted


def test_engine_renders_the_same_prompt() -> None:
    """The engine's own rendering of this responses request has the ids of the chat request that it becomes."""
    recorded = json.loads((FOLDER / "scaleout_responses_render.json").read_text("utf-8"))
    asked = read(json.dumps(recorded["request"]["body"]).encode(), "call1", 1.0)
    twin = next(r for r in completed() if r.name == "chat_temp0")
    assert [json.loads(message) for message in asked.messages] == json.loads(twin.request)["messages"]
    assert recorded["response"]["body"]["token_ids"] == twin.whole()["prompt_token_ids"]


def test_answer_given_back_is_the_engine_s_own_turn() -> None:
    """What a chat agent sends back after a recorded tool call, and what an agent of this dialect does, is one request."""
    first, second = (next(r for r in completed() if r.name == name) for name in ("tool_auto", "turn2_tool"))
    tool = json.loads(first.request)["tools"][0]["function"]
    answer = json.loads(ask(tools=[{"type": "function", **tool}]).voice.whole(first.reply))
    wanted = json.loads(second.request)
    result = output(answer["output"][0]["call_id"], wanted["messages"][2]["content"])
    found = chat(input=[wanted["messages"][0], *answer["output"], result], tools=[{"type": "function", **tool}])
    assert found["messages"] == wanted["messages"]
    assert found["tools"] == wanted["tools"]


# ----------------------------------------------------------------------------------------------------------------- tools


def test_functions_stand_and_hosted_tools_are_left_out() -> None:
    found = chat(
        tools=[
            FUNCTION,
            {"type": "web_search", "external_web_access": True},
            {"type": "function", "name": "later", "defer_loading": True},
            {"type": "mcp", "server_label": "x"},
            {"type": "function", "function": {"name": "g", "description": "d"}},
        ],
        tool_choice="auto",
        parallel_tool_calls=False,
    )
    assert found["tools"] == [CHAT_FUNCTION, {"type": "function", "function": {"name": "g", "description": "d"}}]
    assert (found["tool_choice"], found["parallel_tool_calls"]) == ("auto", False)


def test_custom_tools_take_one_string() -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": "start: x"}
    found = chat(tools=[{"type": "custom", "name": "patch", "description": "Patches.", "format": form}])["tools"]
    function = found[0]["function"]
    assert function["parameters"]["required"] == ["input"]
    assert function["description"] == "Patches.\n\n`input` follows this lark grammar:\nstart: x"
    history = [
        {"type": "custom_tool_call", "call_id": "c1", "name": "patch", "input": 'a"b'},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "ok"},
    ]
    assert messages(USER, *history)[1:] == [
        {"role": "assistant", "content": None, "tool_calls": [chat_call(name="patch", arguments='{"input":"a\\"b"}')]},
        {"role": "tool", "tool_call_id": "c1", "content": "ok"},
    ]


def test_namespaced_calls_keep_their_flat_names() -> None:
    tools = [
        {"type": "function", "name": "ns__f"},
        {"type": "namespace", "name": "ns", "description": "d", "tools": [{"type": "function", "name": "f"}]},
    ]
    found = chat(input=[USER, call() | {"namespace": "ns"}, output()], tools=tools)
    names = [tool["function"]["name"] for tool in found["tools"]]
    assert names == ["ns__f", "ns__f_2"]
    assert found["messages"][1]["tool_calls"][0]["function"]["name"] == "ns__f_2"
    assert messages(USER, call() | {"namespace": "gone"}, output())[1]["tool_calls"][0]["function"]["name"] == "gone__f"


@pytest.mark.parametrize(
    ("choice", "wanted", "tools"),
    [
        ("auto", "auto", ["f", "ns__g"]),
        ("none", "none", ["f", "ns__g"]),
        ("required", "required", ["f", "ns__g"]),
        ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}, ["f", "ns__g"]),
        (
            {"type": "function", "name": "g", "namespace": "ns"},
            {"type": "function", "function": {"name": "ns__g"}},
            ["f", "ns__g"],
        ),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "f"}, {"type": "mcp"}],
            },
            "required",
            ["f"],
        ),
    ],
)
def test_tool_choice_becomes_the_chat_s(choice: Any, wanted: Any, tools: list[str]) -> None:
    namespace = {"type": "namespace", "name": "ns", "tools": [{"type": "function", "name": "g"}]}
    found = chat(tools=[FUNCTION, namespace], tool_choice=choice)
    assert found["tool_choice"] == wanted
    assert [tool["function"]["name"] for tool in found["tools"]] == tools


def test_choice_without_tools_is_not_sent() -> None:
    assert chat(tools=[], tool_choice="auto", parallel_tool_calls=True) == {"model": "tiny", "messages": [USER]}


# ------------------------------------------------------------------------------------------------------------------ echo


def test_response_repeats_the_request() -> None:
    request = {
        "instructions": "Be terse.",
        "tools": [FUNCTION, {"type": "web_search"}],
        "tool_choice": {"type": "function", "name": "f"},
        "parallel_tool_calls": False,
        "temperature": 0.5,
        "max_output_tokens": 7,
        "reasoning": {"effort": "low"},
        "metadata": {"a": "b"},
        "text": {"format": {"type": "json_object"}},
    }
    response = json.loads(ask(**request, store=True, truncation="auto").voice.whole(b"{}"))
    assert {key: response[key] for key in request if key != "tools"} == {
        k: v for k, v in request.items() if k != "tools"
    }
    assert response["tools"] == [{"description": None, **FUNCTION}, {"type": "web_search"}]
    assert (response["store"], response["truncation"], response["created_at"]) == (False, "disabled", 1)


# --------------------------------------------------------------------------------------------------------------- clients


@pytest.mark.parametrize("name", RECORDED_CLIENTS)
def test_recorded_client_s_second_turn_extends_its_first(name: str) -> None:
    first, second = (read(json.dumps(body).encode(), "call1", 1.0) for body in recorded(name))
    assert second.messages[: len(first.messages)] == first.messages
    turn, result = (json.loads(message) for message in second.messages[len(first.messages) :])
    (asked,) = turn["tool_calls"]
    assert result["role"] == "tool"
    assert result["tool_call_id"] == asked["id"]
    assert "marker-42" in result["content"]
    upstream = json.loads(second.upstream_body)
    assert all(tool["type"] == "function" for tool in upstream["tools"])
    assert not {"store", "include", "input", "prompt_cache_key", "client_metadata"} & upstream.keys()


def test_codex_s_tools_are_callable() -> None:
    asked = read(json.dumps(recorded("codex")[0]).encode(), "call1", 1.0)
    names = [tool["function"]["name"] for tool in json.loads(asked.upstream_body)["tools"]]
    assert "exec_command" in names
    assert "multi_agent_v1__spawn" in names
    assert json.loads(asked.messages[0])["role"] == "system"
    assert [json.loads(message)["role"] for message in asked.messages[1:]] == ["user", "user"]
