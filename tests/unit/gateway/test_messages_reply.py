"""The engine's chat completions as Anthropic messages: whole and as event streams, on every recording and under any cut."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.chat_reply import ChatStream
from gateway.dialects.messages import MESSAGES
from gateway.dialects.messages_reply import MessagesVoice
from gateway.replies import Refusal
from gateway.sse import EventSplitter, event_data
from tests.unit.gateway.messages_grammar import check_message, events, read_message
from tests.unit.gateway.recordings import FOLDER, Recording, completed

WHOLE = [recording for recording in completed() if not recording.streamed]
STREAMED = [recording for recording in completed() if recording.streamed and recording.name != "abort_stream"]


def recorded(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def of(name: str) -> Recording:
    return next(recording for recording in completed() if recording.name == name)


def said(stream: bytes, voice: MessagesVoice | None = None) -> bytes:
    """What the agent gets of an engine's stream, as the proxy asks for it."""
    voice = voice or MessagesVoice("c1")
    fold, splitter = ChatStream(1), EventSplitter()
    out = []
    for event in splitter.feed(stream):
        data = event_data(event)
        out.append(voice.event(event, data, "other" if data is None else fold.take(data)))
    return b"".join(out) + voice.end()


def chunk(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"model": "m", "choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


def tool(index: int, arguments: str | None = None, **head: Any) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": head["name"]} if "name" in head else {})}
    return {"tool_calls": [{"index": index, "id": head.get("id"), "function": function}]}


def stream_of(*deltas: dict[str, Any], finish: str = "stop", **last: Any) -> bytes:
    chunks = [chunk(delta={"role": "assistant", "content": ""}), *(chunk(delta=delta) for delta in deltas)]
    return b"".join([*chunks, chunk(delta={}, finish_reason=finish, **last), b"data: [DONE]\n\n"])


def blocks(message: dict[str, Any]) -> list[Any]:
    """Each block in one value."""
    keys = {"text": "text", "thinking": "thinking", "tool_use": "input"}
    return [(block["type"], block[keys[block["type"]]]) for block in message["content"]]


# ------------------------------------------------------------------------------------------------------------ recordings


@pytest.mark.parametrize("recording", WHOLE, ids=lambda recording: recording.name)
def test_every_recorded_reply_is_a_message(recording: Recording) -> None:
    message = json.loads(MessagesVoice("c1").whole(recording.reply))
    check_message(message, ended=True)
    reply = recording.whole()
    chat = reply["choices"][0]["message"]
    assert "".join(text for kind, text in blocks(message) if kind == "text") == (chat["content"] or "")
    assert "".join(text for kind, text in blocks(message) if kind == "thinking") == (chat.get("reasoning") or "")
    calls = [call["id"] for call in chat.get("tool_calls") or []]
    assert [block["id"] for block in message["content"] if block["type"] == "tool_use"] == calls
    assert message["usage"]["input_tokens"] == reply["usage"]["prompt_tokens"]
    assert message["usage"]["output_tokens"] == reply["usage"]["completion_tokens"]


@pytest.mark.parametrize("recording", STREAMED, ids=lambda recording: recording.name)
def test_every_recorded_stream_keeps_the_grammar_and_builds_the_whole_message(recording: Recording) -> None:
    message = read_message(said(recording.reply))
    deltas = [c["choices"][0] for c in recording.chunks() if c["choices"] and c["choices"][0]["index"] == 0]
    whole: dict[str, Any] = {"content": "", "reasoning": "", "tool_calls": []}
    for choice in deltas:
        delta = choice["delta"]
        whole["content"] += delta.get("content") or ""
        whole["reasoning"] += delta.get("reasoning") or ""
        for call in delta.get("tool_calls") or []:
            if call.get("id"):
                whole["tool_calls"].append({**call, "function": {**call["function"], "arguments": ""}})
            whole["tool_calls"][-1]["function"]["arguments"] += call["function"].get("arguments") or ""
    last = {"index": 0, "message": whole, **{key: deltas[-1].get(key) for key in ("finish_reason", "stop_reason")}}
    reply = {"model": "tiny", "choices": [last], "usage": recording.chunks()[-1].get("usage")}
    wanted = json.loads(MessagesVoice("c1").whole(json.dumps(reply).encode()))
    assert message["content"] == wanted["content"]
    assert (message["stop_reason"], message["stop_sequence"]) == (wanted["stop_reason"], wanted["stop_sequence"])
    if reply["usage"]:
        assert message["usage"] == wanted["usage"]


@pytest.mark.parametrize(("chat", "native"), [("tool_auto", "messages"), ("reasoning", "reasoning_messages")])
def test_a_whole_reply_is_what_the_engines_own_messages_api_says(chat: str, native: str) -> None:
    ours = json.loads(MessagesVoice("c1").whole(of(chat).reply))
    engine = recorded(native)["response"]["body"]
    assert ours.keys() - engine.keys() == {"stop_sequence"}, "the engine leaves out what is null; Anthropic does not"
    for message in (ours, engine):
        for block in message["content"]:
            block.pop("id", None)
            block.pop("signature", None)
    assert ours["content"] == engine["content"]
    assert ours["stop_reason"] == engine["stop_reason"]
    details = ours["usage"].pop("output_tokens_details", None)
    assert details == (None if chat == "tool_auto" else {"thinking_tokens": 9})
    assert ours["usage"] == engine["usage"]


def test_a_stream_has_the_events_of_the_engines_own_messages_api() -> None:
    ours = events(said(of("tool_auto_stream").reply))
    engine = events((FOLDER / "messages_stream.sse").read_bytes())
    assert [name for name, _ in ours] == [name for name, _ in engine]
    for (name, mine), (_, theirs) in zip(ours, engine, strict=True):
        if name == "message_start":
            assert mine["message"].keys() == theirs["message"].keys()
            assert mine["message"]["usage"] == theirs["message"]["usage"], (
                "the prompt is counted before the usage comes"
            )
        elif name == "content_block_start":
            mine["content_block"]["id"] = theirs["content_block"]["id"]
            assert mine == theirs
        else:
            assert mine == theirs


# ---------------------------------------------------------------------------------------------------------------- stream


def test_deltas_are_said_as_they_come() -> None:
    voice, fold = MessagesVoice("c1"), ChatStream(1)
    got = []
    for event in EventSplitter().feed(of("tool_auto_stream").reply):
        data = event_data(event)
        assert data is not None
        got.append(events(voice.event(event, data, fold.take(data))))
    arguments = [
        "".join(e[1]["delta"]["partial_json"] for e in now if e[0] == "content_block_delta") for now in got if now
    ]
    chunks = [c["choices"][0]["delta"] for c in of("tool_auto_stream").chunks() if c["choices"]]
    sent = [
        call["function"]["arguments"] for delta in chunks for call in delta.get("tool_calls", ()) if not call.get("id")
    ]
    assert [text for text in arguments if text] == sent
    assert {name for now in got for name, _ in now}.isdisjoint({"message_delta", "message_stop"})
    assert [name for name, _ in events(voice.end())] == ["content_block_stop", "message_delta", "message_stop"]


def test_nothing_is_said_before_the_engine_says_something() -> None:
    voice = MessagesVoice("c1")
    opening = b'{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"prompt_token_ids":[1,2,3]}'
    assert voice.event(b"", opening, "delta") == b""
    aborted = b'{"choices":[{"index":0,"delta":{},"finish_reason":"abort"}]}'
    assert voice.event(b"", aborted, "delta") == b""
    assert voice.event(b": a comment\n\n", None, "other") == b""
    # The call is made again, at another engine.
    message = read_message(said(stream_of({"content": "hello"}), voice))
    assert blocks(message) == [("text", "hello")]
    assert message["stop_reason"] == "end_turn"


def test_tokens_without_text_begin_the_message() -> None:
    voice = MessagesVoice("c1")
    held_back = b'{"model":"m","choices":[{"index":0,"delta":{},"token_ids":[5]}],"prompt_token_ids":[1, 2, 3]}'
    ((name, data),) = events(voice.event(b"", held_back, "delta"))
    assert name == "message_start"
    assert data["message"]["usage"] == {"input_tokens": 3, "output_tokens": 0}


def test_parallel_tools_that_interleave_become_blocks_in_a_row() -> None:
    stream = stream_of(
        {"content": "I look."},
        tool(0, "", id="a", name="f"),
        tool(1, "", id="b", name="g"),
        tool(1, '{"y":'),
        tool(0, '{"x":'),
        tool(1, "2}"),
        tool(0, "1}"),
        tool(2, '{"z":3}', id="c", name="h"),
        {"content": "Done."},
        finish="tool_calls",
    )
    message = read_message(said(stream))
    wanted = [("text", "I look."), ("tool_use", {"x": 1}), ("tool_use", {"y": 2}), ("tool_use", {"z": 3})]
    assert blocks(message) == [*wanted, ("text", "Done.")]
    assert [block.get("id") for block in message["content"]] == [None, "a", "b", "c", None]
    assert message["stop_reason"] == "tool_use"


def test_a_tool_waits_only_until_the_one_before_is_complete() -> None:
    voice = MessagesVoice("c1")

    def now(delta: dict[str, Any]) -> list[str]:
        data = event_data(chunk(delta=delta))
        return [name for name, _ in events(voice.event(b"", data, "delta"))]

    assert now(tool(0, '{"x":', id="a", name="f")) == ["message_start", "content_block_start", "content_block_delta"]
    assert now(tool(1, "{}", id="b", name="g")) == []
    assert now({"content": "text"}) == []
    assert now(tool(0, "1}\n")) == [
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
    ]
    assert now({"content": " more"}) == ["content_block_delta"]


def test_thinking_has_a_signature_and_ends_where_text_begins() -> None:
    stream = said(of("reasoning_stream").reply)
    names = [data.get("delta", {}).get("type", name) for name, data in events(stream)]
    assert names == [
        "message_start",
        "content_block_start",
        "thinking_delta",
        "signature_delta",
        "content_block_stop",
        "content_block_start",
        "text_delta",
        "text_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_both_names_of_reasoning_are_known(key: str) -> None:
    assert blocks(read_message(said(stream_of({key: "hm"}, {"content": "yes"})))) == [
        ("thinking", "hm"),
        ("text", "yes"),
    ]
    both = stream_of({"reasoning": "hm", "reasoning_content": "hm"}, {"content": "yes"})
    assert blocks(read_message(said(both))) == [("thinking", "hm"), ("text", "yes")]


def test_reasoning_that_the_agent_does_not_want_is_not_said() -> None:
    stream = said(of("reasoning_stream").reply, MessagesVoice("c1", hides_thinking=True))
    assert blocks(read_message(stream)) == [("text", "\n\nHello, how can I help you?")]


def test_an_empty_answer_has_one_empty_block() -> None:
    assert blocks(read_message(MessagesVoice("c1").end())) == [("text", "")]
    whole = b'{"choices":[{"index":0,"message":{"content":null},"finish_reason":"stop"}]}'
    assert blocks(json.loads(MessagesVoice("c1").whole(whole))) == [("text", "")]


def test_a_tool_without_id_gets_one() -> None:
    message = read_message(said(stream_of(tool(0, "{}", name="f"), finish="tool_calls")))
    assert message["content"][0]["id"] == "toolu_c1_0"


def test_a_chunk_that_is_no_chunk_is_passed_over() -> None:
    voice = MessagesVoice("c1")
    for data in (b"{", b"[]", b'{"choices":{}}', b"\xff", b"[" * 100_000, b'{"choices":[{"delta":{"content":1}}]}'):
        assert voice.event(b"", data, "other") == b""
        assert voice.event(b"", data, "delta") == b""


# ---------------------------------------------------------------------------------------------------- reasons and counts


@pytest.mark.parametrize(
    ("finish", "stop", "arguments", "wanted"),
    [
        ("stop", None, None, ("end_turn", None)),
        ("stop", 2, None, ("end_turn", None)),
        ("stop", "END", None, ("stop_sequence", "END")),
        ("length", None, None, ("max_tokens", None)),
        ("length", None, "{}", ("max_tokens", None)),
        ("tool_calls", None, "{}", ("tool_use", None)),
        ("tool_calls", None, "", ("tool_use", None)),
        ("stop", None, '{"a":1}', ("tool_use", None)),
        ("stop", "END", '{"a":', ("stop_sequence", "END")),
        ("stop", "END", '{"a":1}', ("tool_use", None)),
        ("tool_calls", None, '{"a":', ("tool_use", None)),
        ("content_filter", None, None, ("refusal", None)),
        ("something_new", None, None, ("end_turn", None)),
    ],
)
def test_stop_reasons(finish: str, stop: Any, arguments: str | None, wanted: tuple[str, str | None]) -> None:
    call = [] if arguments is None else [{"id": "a", "function": {"name": "f", "arguments": arguments}}]
    choice = {"message": {"content": "x", "tool_calls": call}, "finish_reason": finish, "stop_reason": stop}
    whole = json.loads(MessagesVoice("c1").whole(json.dumps({"choices": [choice]}).encode()))
    assert (whole["stop_reason"], whole["stop_sequence"]) == wanted
    deltas = [{"content": "x"}] + ([] if arguments is None else [tool(0, arguments, id="a", name="f")])
    streamed = read_message(said(stream_of(*deltas, finish=finish, matched_stop=stop)))
    assert (streamed["stop_reason"], streamed["stop_sequence"]) == wanted
    assert streamed["content"] == whole["content"]


def test_cached_tokens_are_counted_apart() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 7}}
    reply = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
    message = json.loads(MessagesVoice("c1").whole(json.dumps(reply).encode()))
    assert message["usage"] == {"input_tokens": 3, "cache_read_input_tokens": 7, "output_tokens": 4}


@pytest.mark.parametrize("arguments", ['{"a": 1', '["a"]', '"text"', "none", '{"a":' * 100_000])
def test_an_input_that_is_no_object_is_kept_as_text(arguments: str) -> None:
    call = {"id": "a", "function": {"name": "f", "arguments": arguments}}
    reply = {"choices": [{"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    message = json.loads(MessagesVoice("c1").whole(json.dumps(reply).encode()))
    assert message["content"][0]["input"] == {"INVALID_JSON": arguments}


def test_a_stream_too_keeps_an_input_that_is_no_object_as_text() -> None:
    message = read_message(
        said(stream_of(tool(0, " ", id="a", name="f"), tool(0, '"te'), tool(0, "xt"), {"content": "x"}))
    )
    assert blocks(message) == [("tool_use", {"INVALID_JSON": ' "text'}), ("text", "x")]
    streamed = said(of("noise_tool_named_stream").reply)
    (sent,) = [data["delta"]["partial_json"] for name, data in events(streamed) if name == "content_block_delta"]
    assert json.loads(sent)["INVALID_JSON"].startswith('"lies& had this')


def test_the_prompt_is_counted_without_usage() -> None:
    assert read_message(said(of("chat_stream").reply))["usage"]["input_tokens"] == 14


def test_a_reply_of_another_shape_is_refused() -> None:
    for body in (b"", b"[]", b'{"choices":7}', b'{"choices":[{"message":{"content":{}}}]}'):
        with pytest.raises(Refusal) as refused:
            MessagesVoice("c1").whole(body)
        assert (refused.value.status, refused.value.code) == (502, "unparsable_reply")


# ----------------------------------------------------------------------------------------------------------- any cutting

LETTERS = st.text("ab\n {}é", min_size=1, max_size=6)
INPUT = st.dictionaries(LETTERS, st.one_of(LETTERS, st.integers(), st.lists(LETTERS, max_size=2)), max_size=3)
PART = st.one_of(
    st.tuples(st.just("thinking"), LETTERS),
    st.tuples(st.just("text"), LETTERS),
    st.tuples(st.just("tool_use"), INPUT),
)


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[str]:
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=4)))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[Any], bytes]:
    """Blocks, and a stream that says them: each block cut anyhow, and tools that follow each other mixed anyhow."""
    parts = draw(st.lists(PART, max_size=5))
    wanted: list[Any] = []
    deltas: list[dict[str, Any]] = []
    running: list[list[dict[str, Any]]] = []
    tools = 0

    def flush() -> None:
        heads = [pieces.pop(0) for pieces in running]
        deltas.extend(heads)
        while any(running):
            deltas.append(draw(st.sampled_from([pieces for pieces in running if pieces])).pop(0))
        running.clear()

    for kind, value in parts:
        if kind == "tool_use":
            pieces = draw(cut(json.dumps(value)))
            running.append([tool(tools, "", id=f"t{tools}", name="f"), *(tool(tools, piece) for piece in pieces)])
            wanted.append((kind, value))
            tools += 1
            continue
        flush()
        key = "content" if kind == "text" else "reasoning"
        deltas.extend({key: piece} for piece in draw(cut(str(value))))
        if wanted and wanted[-1][0] == kind:
            wanted[-1] = (kind, wanted[-1][1] + value)
        else:
            wanted.append((kind, value))
    flush()
    return wanted, stream_of(*deltas, finish="tool_calls" if tools else "stop")


@given(streams())
def test_any_cutting_gives_the_same_message(made: tuple[list[Any], bytes]) -> None:
    wanted, stream = made
    assert blocks(read_message(said(stream))) == (wanted or [("text", "")])


# ---------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (408, "timeout_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_a_status_has_its_type_of_error(status: int, kind: str) -> None:
    refusal = Refusal(status, "why", code="invalid_field", param="max_tokens")
    details = {"error_code": "invalid_field", "param": "max_tokens"}
    body = {"type": "error", "error": {"type": kind, "message": "why", "details": details}}
    assert json.loads(MESSAGES.refusal(refusal)) == body
    assert events(MESSAGES.break_off(refusal)) == [("error", body)]
    engine = json.dumps({"error": {"message": "why", "code": status}}).encode()
    wanted = {"type": "error", "error": {"type": kind, "message": "why"}}
    assert json.loads(MessagesVoice("c1").error(status, engine)) == wanted


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"no such model","type":"NotFoundError","param":"model","code":404}}', "no such model"),
        (b'{"object":"error","message":"no such model"}', "no such model"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"error":"plain"}', "plain"),
        (b'{"detail":[{"loc":["body"]}]}', '{"detail":[{"loc":["body"]}]}'),
        (b"<html>bad gateway</html>", "<html>bad gateway</html>"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"", "the engine answered with status 404"),
        (b"[" * 100_000, "[" * 4000),
    ],
)
def test_an_engines_error_is_said_whatever_its_shape(body: bytes, message: str) -> None:
    error = json.loads(MessagesVoice("c1").error(404, body))["error"]
    assert (error["type"], error["message"]) == ("not_found_error", message)


def test_an_error_inside_of_a_stream_is_an_event() -> None:
    voice = MessagesVoice("c1")
    voice.event(b"", b'{"choices":[{"index":0,"delta":{"content":"x"}}]}', "delta")
    data = b'{"error":{"message":"the engine died","type":"InternalServerError","code":503}}'
    error = {"type": "overloaded_error", "message": "the engine died"}
    assert events(voice.event(b"", data, "error")) == [("error", {"type": "error", "error": error})]
