"""Responses' answers: every recorded chat reply becomes a response, and every stream adds up to the same."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response

from gateway.dialects.chat_reply import ChatStream
from gateway.dialects.responses import RESPONSES, read
from gateway.dialects.responses_events import CustomInput
from gateway.replies import unavailable
from tests.unit.gateway.recordings import FOLDER, Recording, completed
from tests.unit.gateway.responses_grammar import events_of, response_of
from tests.unit.gateway.responses_voice import AT, a_chunk, a_voice, say, say_open

RECORDED = completed()
WHOLE = [recording for recording in RECORDED if not recording.streamed]
STREAMED = [recording for recording in RECORDED if recording.streamed]
LOG_PROBS = "message.output_text.logprobs"
SEALED = "reasoning.encrypted_content"


def a_call(index: int, arguments: str = "", name: str | None = None) -> dict[str, Any]:
    call: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
    if name is not None:
        call["id"] = f"call-{index}"
        call["type"] = "function"
        call["function"]["name"] = name
    return call


def a_reply(finish: str = "stop", **message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return json.dumps({"id": "chatcmpl-1", "model": "tiny", "choices": [choice], "usage": None}).encode()


def outputs(reply: bytes) -> list[tuple[str, str]]:
    """(type, text) of each item."""
    found = []
    for item in json.loads(reply)["output"]:
        content = item.get("content") or [{}]
        found.append((item["type"], item.get("arguments", item.get("input", content[0].get("text")))))
    return found


# ------------------------------------------------------------------------------------------------------------ recordings


@pytest.mark.parametrize("recording", WHOLE, ids=lambda recording: recording.name)
def test_recorded_reply_becomes_a_response(recording: Recording) -> None:
    response = json.loads(a_voice(include=[LOG_PROBS]).whole(recording.reply))
    Response.model_validate(response)
    chat = recording.whole()
    choice, message = chat["choices"][0], chat["choices"][0]["message"]
    cut = choice["finish_reason"] == "length"
    assert response["status"] == ("incomplete" if cut else "completed")
    assert response["incomplete_details"] == ({"reason": "max_output_tokens"} if cut else None)
    assert response["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert response["usage"]["output_tokens"] == chat["usage"]["completion_tokens"]
    wanted = [("reasoning", message.get("reasoning")), ("message", message.get("content"))]
    wanted += [("function_call", call["function"]["arguments"]) for call in message.get("tool_calls") or []]
    assert outputs(json.dumps(response).encode()) == [(kind, text) for kind, text in wanted if text]
    calls = [item for item in response["output"] if item["type"] == "function_call"]
    assert [(item["call_id"], item["name"]) for item in calls] == [
        (call["id"], call["function"]["name"]) for call in message.get("tool_calls") or []
    ]


@pytest.mark.parametrize("include", [[], [LOG_PROBS, SEALED]], ids=["plain", "log-probs"])
@pytest.mark.parametrize("recording", STREAMED, ids=lambda recording: recording.name)
def test_recorded_stream_adds_up_to_the_whole_response(recording: Recording, include: list[str]) -> None:
    ended = not recording.name.startswith("abort")
    response = response_of(say(a_voice(include=include), recording.reply))
    if not ended:
        assert response["status"] == "failed"
        return
    whole = json.loads(a_voice(include=include).whole(_as_whole(recording)))
    assert {**response, "usage": whole["usage"]} == whole
    assert response["usage"] in (None, whole["usage"])


def _as_whole(recording: Recording) -> bytes:
    """The reply that a stream would have been without `stream`, put together the plain way."""
    message: dict[str, Any] = {"role": "assistant", "content": "", "reasoning": "", "tool_calls": []}
    tokens: list[Any] = []
    finish, usage = None, None
    for chunk in recording.chunks():
        usage = chunk.get("usage") or usage
        for choice in (choice for choice in chunk["choices"] if choice["index"] == 0):
            delta = choice["delta"]
            for key in ("content", "reasoning"):
                message[key] += delta.get(key) or ""
            for call in delta.get("tool_calls") or []:
                if call["index"] == len(message["tool_calls"]):
                    message["tool_calls"].append({"id": call["id"], "function": {"name": "", "arguments": ""}})
                for key, value in call["function"].items():
                    message["tool_calls"][call["index"]]["function"][key] += value or ""
            tokens += (choice.get("logprobs") or {}).get("content") or []
            finish = choice.get("finish_reason") or finish
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": {"content": tokens}}
    return json.dumps({"model": recording.chunks()[0]["model"], "choices": [choice], "usage": usage}).encode()


def test_text_comes_as_it_arrives() -> None:
    recording = next(r for r in STREAMED if r.name == "chat_stream")
    texts = [c["choices"][0]["delta"].get("content") for c in recording.chunks() if c["choices"]]
    events = events_of(say_open(a_voice(), recording.reply))
    assert [event["delta"] for event in events if event["type"] == "response.output_text.delta"] == list(
        filter(None, texts)
    )


# ------------------------------------------------------------------------------------------------------- the real engine


def _engine(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def _without_ids(response: dict[str, Any]) -> list[dict[str, Any]]:
    drop = ("id", "phase")
    items = [{key: value for key, value in item.items() if key not in drop} for item in response["output"]]
    for part in (part for item in items for part in item["content"]):
        part["logprobs"] = part["logprobs"] or []
    return items


@pytest.mark.parametrize("name", ["responses", "responses_logprobs"])
def test_response_is_the_engine_s_own(name: str) -> None:
    recorded = _engine(name)
    theirs = recorded["response"]["body"]
    asked = read(json.dumps(recorded["request"]["body"]).encode(), "call1", AT)
    chat = next(r for r in WHOLE if r.name == "chat_temp0")
    assert [json.loads(message) for message in asked.messages] == json.loads(chat.request)["messages"]
    ours = json.loads(asked.voice.whole(chat.reply))
    assert _without_ids(ours) == _without_ids(theirs)
    known = Response.model_fields.keys() & theirs.keys()
    assert known <= ours.keys()
    assert {key: ours["usage"][key] for key in ("input_tokens", "output_tokens", "total_tokens")} == {
        key: theirs["usage"][key] for key in ("input_tokens", "output_tokens", "total_tokens")
    }
    same = (
        "object",
        "status",
        "error",
        "incomplete_details",
        "background",
        "previous_response_id",
        "truncation",
        "model",
    )
    assert {key: ours[key] for key in same} == {key: theirs.get(key) for key in same}


def test_events_are_the_engine_s_own() -> None:
    recorded = _engine("responses_stream")
    theirs = events_of((FOLDER / "responses_stream.sse").read_bytes())
    request = {**recorded["request"]["body"]}
    chat = next(r for r in STREAMED if r.name == "chat_length_stream")
    ours = events_of(say(read(json.dumps(request).encode(), "call1", AT).voice, chat.reply))
    # The engine ends an answer that was cut with `response.completed`, OpenAI with `response.incomplete`.
    assert _order(ours)[:-1] == _order(theirs)[:-1]
    assert [ours[-1]["type"], theirs[-1]["response"]["status"]] == ["response.incomplete", "incomplete"]
    for event in ours[:-1]:
        twin = next(other for other in theirs if other["type"] == event["type"])
        assert event.keys() == twin.keys()


def _order(events: list[dict[str, Any]]) -> list[str]:
    """The types of the events, runs of one type once."""
    types = [event["type"] for event in events]
    return [kind for place, kind in enumerate(types) if place == 0 or types[place - 1] != kind]


# ----------------------------------------------------------------------------------------------------------------- items


def test_reasoning_text_and_calls_are_items_in_order() -> None:
    calls = [{"id": f"call-{i}", "function": {"name": "f", "arguments": "{}"}} for i in range(2)]
    voice = a_voice(include=[SEALED])
    reply = voice.whole(a_reply("tool_calls", reasoning="think", content="say", tool_calls=calls))
    assert outputs(reply) == [
        ("reasoning", "think"),
        ("message", "say"),
        ("function_call", "{}"),
        ("function_call", "{}"),
    ]
    ids = [item["id"] for item in json.loads(reply)["output"]]
    assert ids == ["rs_call1_0", "msg_call1_1", "fc_call1_2", "fc_call1_3"]


def test_hidden_reasoning_is_not_said() -> None:
    reply = a_reply(reasoning="think", content="say")
    assert outputs(a_voice(include_reasoning=False).whole(reply)) == [("message", "say")]
    stream = a_chunk(reasoning="think") + a_chunk(content="say", finish="stop")
    assert b"think" not in say(a_voice(include_reasoning=False), stream)


def test_sglang_s_reasoning_is_read() -> None:
    assert outputs(a_voice().whole(a_reply(reasoning_content="think", content="say")))[0] == ("reasoning", "think")


@pytest.mark.parametrize(
    ("details", "wanted"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 3}, "completion_tokens_details": {"reasoning_tokens": 2}}, (3, 2)),
        ({"prompt_tokens_details": None, "reasoning_tokens": 2}, (0, 2)),
        ({"prompt_tokens_details": {"cached_tokens": None}, "completion_tokens_details": 5}, (0, 0)),
    ],
)
def test_usage_of_either_engine_is_read(details: dict[str, Any], wanted: tuple[int, int]) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 5, **details}
    stream = a_chunk(content="say", finish="stop") + a_chunk(usage=usage)
    said = response_of(say(a_voice(), stream))["usage"]
    assert (said["input_tokens"], said["output_tokens"], said["total_tokens"]) == (7, 5, 12)
    details_said = said["input_tokens_details"]["cached_tokens"], said["output_tokens_details"]["reasoning_tokens"]
    assert details_said == wanted


def test_mixed_parallel_calls_stay_apart() -> None:
    stream = b"".join(
        [
            a_chunk(role="assistant", content=""),
            a_chunk(tool_calls=[a_call(0, name="f"), a_call(1, name="g")]),
            a_chunk(tool_calls=[a_call(1, '{"b"'), a_call(0, '{"a": {')]),
            a_chunk(tool_calls=[a_call(0, '"x": 1}')]),
            a_chunk(tool_calls=[a_call(1, ": 2}")]),
            a_chunk(content="between"),
            a_chunk(tool_calls=[a_call(0, "}")]),
            a_chunk(tool_calls=[a_call(2, "{}", name="h")], finish="tool_calls"),
        ]
    )
    response = response_of(say(a_voice(), stream))
    assert outputs(json.dumps(response).encode()) == [
        ("function_call", '{"a": {"x": 1}}'),
        ("function_call", '{"b": 2}'),
        ("message", "between"),
        ("function_call", "{}"),
    ]
    assert [item.get("call_id") for item in response["output"]] == ["call-0", "call-1", None, "call-2"]


def test_second_call_is_live_once_the_first_is_whole() -> None:
    voice = a_voice()
    say_open(voice, a_chunk(tool_calls=[a_call(0, '{"a": 1}', name="f")]))
    said = events_of(say_open(voice, a_chunk(tool_calls=[a_call(1, '{"b', name="g")])))
    assert [event["type"].removeprefix("response.") for event in said] == [
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
    ]


def test_a_call_keeps_the_id_under_which_it_was_begun() -> None:
    late = a_call(0, "}") | {"id": "call_late"}
    first = a_call(0, '{"a": 1', "f") | {"id": None}
    events = events_of(say(a_voice(), a_chunk(tool_calls=[first]) + a_chunk(tool_calls=[late]) + a_chunk("tool_calls")))
    ids = {event["item"]["call_id"] for event in events if "item" in event}
    assert len(ids) == 1
    assert ids != {"call_late"}


def test_call_without_arguments_is_said_at_the_end() -> None:
    response = response_of(say(a_voice(), a_chunk(tool_calls=[a_call(0, name="f")], finish="tool_calls")))
    assert [(item["name"], item["arguments"], item["status"]) for item in response["output"]] == [
        ("f", "", "completed")
    ]


@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
        ("abort", "failed", None),
        (None, "failed", None),
    ],
)
def test_finish_gives_the_status(finish: str | None, status: str, reason: str | None) -> None:
    response = response_of(say(a_voice(), a_chunk(content="say", finish=finish)))
    assert response["status"] == status
    assert response["incomplete_details"] == (None if reason is None else {"reason": reason})
    assert response["output"][0]["status"] == ("completed" if status == "completed" else "incomplete")


def test_what_was_cut_off_is_the_last_item_alone() -> None:
    stream = a_chunk(reasoning="r", content="c") + a_chunk(tool_calls=[a_call(0, '{"a": ', name="f")], finish="length")
    response = response_of(say(a_voice(), stream))
    assert [item["status"] for item in response["output"]] == ["completed", "completed", "incomplete"]


def test_log_probs_of_reasoning_are_not_the_text_s() -> None:
    recording = next(r for r in WHOLE if r.name == "reasoning")
    response = json.loads(a_voice(include=[LOG_PROBS]).whole(recording.reply))
    part = response["output"][1]["content"][0]
    assert "".join(token["token"] for token in part["logprobs"]) == part["text"]
    assert json.loads(a_voice().whole(recording.reply))["output"][1]["content"][0]["logprobs"] == []


def test_log_probs_come_with_their_text() -> None:
    recording = next(r for r in STREAMED if r.name == "chat_stream")
    events = events_of(say(a_voice(include=[LOG_PROBS]), recording.reply))
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert all("".join(token["token"] for token in event["logprobs"]) == event["delta"] for event in deltas)


# ----------------------------------------------------------------------------------------------------------------- tools

NAMESPACE = {
    "type": "namespace",
    "name": "agents",
    "description": "d",
    "tools": [{"type": "function", "name": "spawn"}, {"type": "custom", "name": "shell"}],
}


def test_names_come_back_as_the_agent_s() -> None:
    tools = [{"type": "function", "name": "agents__spawn"}, NAMESPACE, {"type": "custom", "name": "patch"}]
    asked = read(json.dumps({"input": "x", "tools": tools}).encode(), "call1", AT)
    flat = [tool["function"]["name"] for tool in json.loads(asked.upstream_body)["tools"]]
    assert flat == ["agents__spawn", "agents__spawn_2", "agents__shell", "patch"]
    calls = [{"id": name, "function": {"name": name, "arguments": '{"input": "ls"}'}} for name in [*flat, "made_up"]]
    items = json.loads(asked.voice.whole(a_reply("tool_calls", content=None, tool_calls=calls)))["output"]
    assert [(item["type"], item.get("namespace"), item["name"]) for item in items] == [
        ("function_call", None, "agents__spawn"),
        ("function_call", "agents", "spawn"),
        ("custom_tool_call", "agents", "shell"),
        ("custom_tool_call", None, "patch"),
        ("function_call", None, "made_up"),
    ]
    assert [item["input"] for item in items if item["type"] == "custom_tool_call"] == ["ls", "ls"]


def test_custom_input_streams_as_text() -> None:
    voice = a_voice(tools=[{"type": "custom", "name": "patch"}])
    pieces = ['{"inp', 'ut": "one\\', "n\\ud83d", '\\ude00"', "}"]
    chunks = [
        a_chunk(tool_calls=[a_call(0, piece, name="patch" if i == 0 else None)]) for i, piece in enumerate(pieces)
    ]
    said = say(voice, b"".join(chunks) + a_chunk(finish="tool_calls"))
    deltas = [e["delta"] for e in events_of(said) if e["type"] == "response.custom_tool_call_input.delta"]
    assert deltas == ["one", "\n", "😀"]
    assert outputs(json.dumps(response_of(said)).encode()) == [("custom_tool_call", "one\n😀")]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "a\\"b\\\\c\\/d\\u00e9"}', 'a"b\\c/dé'),
        ('{"input": ""}', ""),
        ('{"input": "cut', "cut"),
        ('{"input": "cut\\u00', "cut\ufffd00"),
        ('{"input": "lone \\ud83d end, and long enough"}', "lone \ufffd end, and long enough"),
        ('{"input": "bad \\q escape"}', "bad \ufffd escape"),
        ('{"other": 1}', '{"other": 1}'),
        ("*** Begin Patch", "*** Begin Patch"),
        ("", ""),
    ],
)
def test_custom_input_of_any_arguments(arguments: str, text: str) -> None:
    whole = CustomInput()
    assert whole.feed(arguments) + whole.end() == text
    parts = CustomInput()
    assert "".join(parts.feed(letter) for letter in arguments) + parts.end() == text


PREFIXES = st.sampled_from(["", '{"input": "', '{ "input" :"', '{"in', " " * 70 + '{"input": "'])


@given(
    prefix=PREFIXES,
    rest=st.text(st.characters(codec="ascii") | st.sampled_from('\\"u')),
    cuts=st.lists(st.integers(0, 99)),
)
def test_custom_input_does_not_depend_on_the_cutting(prefix: str, rest: str, cuts: list[int]) -> None:
    arguments = prefix + rest
    edges = [0, *sorted(min(cut, len(arguments)) for cut in cuts), len(arguments)]
    whole, parts = CustomInput(), CustomInput()
    said = "".join([parts.feed(arguments[a:b]) for a, b in pairwise(edges)]) + parts.end()
    assert said == whole.feed(arguments) + whole.end()


@given(text=st.text(), cuts=st.lists(st.integers(0, 400)), as_ascii=st.booleans())
def test_custom_input_is_the_text_under_any_cutting(text: str, cuts: list[int], as_ascii: bool) -> None:
    arguments = json.dumps({"input": text}, ensure_ascii=as_ascii)
    edges = [0, *sorted(min(cut, len(arguments)) for cut in cuts), len(arguments)]
    read_in = CustomInput()
    said = [read_in.feed(arguments[a:b]) for a, b in pairwise(edges)]
    assert "".join(said) + read_in.end() == text


# -------------------------------------------------------------------------------------------------------------- property

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
JSON = st.dictionaries(st.text("ab", max_size=2), st.integers() | TEXT, max_size=3).map(json.dumps)


@st.composite
def answers(draw: st.DrawFn) -> tuple[dict[str, Any], list[bytes]]:
    """A message, and chunks that say it: reasoning, text, then calls whose parts may be mixed."""
    reasoning, content = draw(st.none() | TEXT), draw(st.none() | TEXT)
    calls = [draw(JSON) for _ in range(draw(st.integers(0, 3)))]
    names = [draw(st.sampled_from(["f", "patch", "ns__g"])) for _ in calls]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    for key, text in (("reasoning", reasoning), ("content", content)):
        deltas += [{key: piece} for piece in _pieces(draw, text or "")]
    rows = [
        [a_call(i, name=names[i]), *(a_call(i, piece) for piece in _pieces(draw, calls[i]))] for i in range(len(calls))
    ]
    started = 0
    while any(rows):
        ready = [i for i, row in enumerate(rows) if row and i <= started]
        index = draw(st.sampled_from(ready))
        deltas.append({"tool_calls": [rows[index].pop(0)]})
        started = max(started, index + 1)
    message = {
        "reasoning": reasoning,
        "content": content,
        "tool_calls": [
            {"id": f"call-{i}", "function": {"name": names[i], "arguments": calls[i]}} for i in range(len(calls))
        ],
    }
    finish = "tool_calls" if calls else "stop"
    return {"message": message, "finish": finish}, [a_chunk(**delta) for delta in deltas] + [a_chunk(finish=finish)]


def _pieces(draw: st.DrawFn, text: str) -> list[str]:
    edges = [0, *sorted(draw(st.lists(st.integers(0, len(text)), max_size=4))), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@given(answer=answers())
def test_any_cutting_gives_the_same_response(answer: tuple[dict[str, Any], list[bytes]]) -> None:
    whole, chunks = answer
    tools = [
        {"type": "function", "name": "f"},
        {"type": "custom", "name": "patch"},
        {"type": "namespace", "name": "ns", "description": "d", "tools": [{"type": "function", "name": "g"}]},
    ]
    streamed = response_of(say(a_voice(tools=tools), b"".join(chunks)))
    assert streamed == json.loads(a_voice(tools=tools).whole(a_reply(whole["finish"], **whole["message"])))


@given(
    junk=st.lists(st.binary(max_size=40) | st.sampled_from([b'{"choices": 1}', b"[]", b'{"choices":[{"delta":1}]}']))
)
def test_no_chunk_raises(junk: list[bytes]) -> None:
    voice, fold = a_voice(include=[LOG_PROBS]), ChatStream(1)
    for data in junk:
        voice.event(b"data: " + data + b"\n\n", data, fold.take(data))
    assert events_of(voice.end())[-1]["type"] == "response.failed"
    for data in junk:
        assert json.loads(a_voice().whole(data))["object"] == "response"
        assert json.loads(a_voice().error(500, data))["error"]["message"]


def test_call_that_was_given_up_at_once_can_be_made_again() -> None:
    voice = a_voice()
    assert say_open(voice, a_chunk(role="assistant", content="") + a_chunk(finish="abort")) == b""
    response = response_of(say(voice, a_chunk(role="assistant", content="") + a_chunk(content="say", finish="stop")))
    assert (response["status"], outputs(json.dumps(response).encode())) == ("completed", [("message", "say")])


def test_comment_passes() -> None:
    assert a_voice().event(b": ping\n\n", None, "other") == b": ping\n\n"


# ---------------------------------------------------------------------------------------------------------------- errors


def _errors() -> list[tuple[str, int, Any]]:
    found = []
    for path in sorted(FOLDER.glob("err_*.json")):
        response = json.loads(path.read_text("utf-8"))["response"]
        if response["status"] >= 400 and "body" in response:
            found.append((path.stem, response["status"], response["body"]))
    return found


@pytest.mark.parametrize(
    ("name", "status", "body"), _errors(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_engine_s_error_is_an_openai_error(name: str, status: int, body: Any) -> None:
    error = json.loads(a_voice().error(status, json.dumps(body).encode()))["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    theirs = body.get("error", {"message": body.get("detail")})
    assert error["message"] == theirs["message"]
    assert name


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the engine answered with status 502"),
        (b"Bad Gateway", "Bad Gateway"),
        (b'{"object": "error", "message": "no", "code": 400, "param": "max_completion_tokens"}', "no"),
        (b'{"detail": [{"loc": ["body"]}]}', "[{'loc': ['body']}]"),
        (b'{"error": "plain"}', "plain"),
    ],
)
def test_error_of_any_form_has_a_message(body: bytes, message: str) -> None:
    error = json.loads(a_voice().error(502, body))["error"]
    assert error["message"] == message
    assert error["param"] in (None, "max_output_tokens")


def test_error_inside_a_stream_is_said_and_fails_the_response() -> None:
    stream = a_chunk(content="say") + b'data: {"error": {"message": "died", "type": "E", "code": 500}}\n\n'
    said = say(a_voice(), stream)
    response = response_of(said)
    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": "died"}
    assert [item["status"] for item in response["output"]] == ["incomplete"]
    assert [event["message"] for event in events_of(said) if event["type"] == "error"] == ["died"]


def test_refusals_are_openai_errors() -> None:
    refusal = unavailable("no", code="broker_unavailable")
    assert json.loads(RESPONSES.refusal(refusal))["error"]["code"] == "broker_unavailable"
    (event,) = events_of(RESPONSES.break_off(refusal))
    assert event["type"] == "error"
    assert event["error"] == json.loads(refusal.body)["error"]
