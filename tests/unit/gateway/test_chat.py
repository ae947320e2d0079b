"""Chat's shapes: what is injected into a request, and what a reply gives up, on every recorded exchange."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.codec import pack_floats, pack_ids
from gateway.calls.parts import experts_ref, flat_experts_ref
from gateway.calls.shaping import for_sglang
from gateway.dialects import chat
from gateway.dialects.captured import Captured
from gateway.dialects.chat_reply import ChatStream, as_events, read_reply
from gateway.replies import Refusal
from gateway.sse import EventSplitter, event_data
from tests.unit.gateway.recordings import Recording, completed

INJECTED = {"return_token_ids": True, "return_weight_versions": True, "logprobs": True, "top_logprobs": 0}
RECORDED = completed()


def capture(recording: Recording) -> Captured:
    if not recording.streamed:
        return read_reply(recording.reply)
    stream = ChatStream(json.loads(recording.request).get("n") or 1)
    splitter = EventSplitter()
    for event in [*splitter.feed(recording.reply), splitter.rest()]:
        if (data := event_data(event)) is not None:
            stream.take(data)
    return stream.captured()


def expected(recording: Recording) -> dict[int, dict[str, Any]]:
    """Index → ids, log-probs, finish reason and text, read the plain way."""
    choices: dict[int, dict[str, Any]] = {}
    replies = recording.chunks() if recording.streamed else [recording.whole()]
    for choice in (choice for reply in replies for choice in reply.get("choices", [])):
        found = choices.setdefault(choice["index"], {"ids": None, "lps": None, "finish": None, "text": None})
        if choice.get("token_ids") is not None:
            found["ids"] = (found["ids"] or []) + choice["token_ids"]
        if choice.get("logprobs") and choice["logprobs"].get("content") is not None:
            found["lps"] = (found["lps"] or []) + [entry["logprob"] for entry in choice["logprobs"]["content"]]
        found["finish"] = choice.get("finish_reason") or found["finish"]
        message = choice.get("message") or choice.get("delta") or {}
        if message.get("content") is not None:
            found["text"] = (found["text"] or "") + message["content"]
    return choices


@pytest.mark.parametrize("recording", RECORDED, ids=lambda recording: recording.name)
def test_recorded_reply_gives_its_tokens(recording: Recording) -> None:
    captured = capture(recording)
    wanted = expected(recording)
    assert captured.faults == ()
    assert {choice.index for choice in captured.choices} == set(wanted)
    for choice in captured.choices:
        want = wanted[choice.index]
        assert choice.response_ids == (None if want["ids"] is None else pack_ids(want["ids"]))
        assert choice.log_probs == (None if want["lps"] is None else pack_floats(want["lps"]))
        assert choice.finish_reason == want["finish"]
        assert choice.faults == ()
        assert json.loads(choice.reply or b"{}").get("content") == want["text"]
    prompts = [r.get("prompt_token_ids") for r in (recording.chunks() if recording.streamed else [recording.whole()])]
    assert (None if captured.prompt_json is None else json.loads(captured.prompt_json)) == next(
        filter(None, prompts), None
    )


def test_streamed_tool_calls_are_put_together() -> None:
    whole = next(r for r in RECORDED if r.name == "tool_auto")
    streamed = next(r for r in RECORDED if r.name == "tool_auto_stream")
    wanted = json.loads(read_reply(whole.reply).choices[0].reply or b"")["tool_calls"]
    got = json.loads(capture(streamed).choices[0].reply or b"")["tool_calls"]
    assert [call["function"]["name"] for call in got] == [call["function"]["name"] for call in wanted]
    assert [json.loads(call["function"]["arguments"]) for call in got]
    assert all(call["id"] and call["type"] == "function" for call in got)


def test_stream_is_finished_with_its_last_choice() -> None:
    recording = next(r for r in RECORDED if r.name == "chat_n2_stream")
    stream = ChatStream(2)
    finished = []
    for event in EventSplitter().feed(recording.reply):
        stream.take(event_data(event) or b"")
        finished.append(stream.finished)
    assert finished == sorted(finished)
    assert finished.index(True) >= len(finished) - 3, "one finish reason is not the end of two choices"


def test_an_empty_finish_reason_is_none() -> None:
    stream = ChatStream(1)
    for reason in ("", "stop", ""):
        assert not stream.finished or reason == ""
        stream.take(json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}).encode())
    assert stream.finished
    assert stream.captured().choices[0].finish_reason == "stop"


def test_keys_are_spliced_in_and_all_else_keeps_its_bytes() -> None:
    body = b'{ "model" : "tiny",\n "messages":[{"role":"user","content":"\\u00e9}"}], "temperature":1.0E0 }\n'
    call = chat.asked(body)
    assert call.upstream_body.startswith(body.rstrip()[:-1])
    assert json.loads(call.upstream_body) == json.loads(body) | INJECTED
    assert call.messages == (b'{"role":"user","content":"\\u00e9}"}',)
    assert call.request == b'{"model":"tiny","temperature":1.0E0}'
    assert (call.model, call.stream, call.n, call.sampling.temperature) == ("tiny", False, 1, 1.0)


def test_keys_that_stand_in_the_way_are_replaced() -> None:
    body = b'{"messages":[],"logprobs":false,"top_logprobs":null,"include_reasoning":false,"return_token_ids":false}'
    upstream = chat.asked(body).upstream_body
    assert json.loads(upstream) == INJECTED | {"messages": [], "include_reasoning": True}
    assert upstream.count(b'"logprobs"') == 1


def test_what_the_agent_asked_of_log_probs_stays() -> None:
    call = chat.asked(b'{"messages":[],"logprobs":true,"top_logprobs":5}')
    assert json.loads(call.upstream_body)["top_logprobs"] == 5
    assert call.upstream_body.count(b"logprobs") == 2


@pytest.mark.parametrize(
    ("options", "wants", "sent"),
    [
        (None, False, {"include_usage": True}),
        ({"include_usage": False}, False, {"include_usage": True}),
        ({"include_usage": True, "x": 1}, True, {"include_usage": True, "x": 1}),
    ],
)
def test_streams_are_asked_for_usage(options: Any, wants: bool, sent: Any) -> None:
    call = chat.asked(json.dumps({"messages": [], "stream": True, "stream_options": options}).encode())
    event = b'data: {"choices":[],"usage":{}}\n\n'
    assert bool(call.voice.event(event, event_data(event), "usage")) is wants
    assert json.loads(call.upstream_body)["stream_options"] == sent


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"[]", None),
        (b"{", None),
        (b'{"messages":[]', None),
        (b"\xff\xfe", None),
        (b'{"model":"tiny"}', "messages"),
        (b'{"messages":"hi"}', "messages"),
        (b'{"messages":[],"stream":"yes"}', "stream"),
        (b'{"messages":[],"stream":1}', "stream"),
        (b'{"messages":[],"n":1000}', "n"),
        (b'{"messages":[],"seed":99999999999999999999}', "seed"),
        (b'{"messages":[],"temperature":1e999}', "temperature"),
    ],
)
def test_bad_requests_are_refused_by_name(body: bytes, param: str | None) -> None:
    with pytest.raises(Refusal) as refused:
        chat.asked(body)
    assert (refused.value.status, refused.value.param) == (400, param)


TEXT = st.text('ab{}"\\é,: ', max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["x", "logprobs", "temperature", 'é"', "include_reasoning"]), JSON), st.booleans()
)
def test_splice_changes_nothing_but_what_it_must(extra: dict[str, Any], ascii_only: bool) -> None:
    asked = extra | {"messages": [{"role": "user", "content": "}"}]}
    upstream = json.loads(chat.asked(json.dumps(asked, ensure_ascii=ascii_only).encode()).upstream_body)
    for key, value in asked.items():
        if key not in ("logprobs", "include_reasoning"):
            assert upstream[key] == value
    assert upstream["return_token_ids"] is True


def test_guided_requests_are_marked() -> None:
    def guided(**over: Any) -> bool:
        return chat.asked(json.dumps({"messages": []} | over).encode()).sampling.guided

    assert guided(response_format={"type": "json_object"})
    assert guided(tool_choice="required")
    assert guided(tool_choice={"type": "function", "function": {"name": "f"}})
    assert guided(structured_outputs={"regex": "a"})
    assert not guided(tool_choice="auto", response_format={"type": "text"})


def test_a_reply_that_is_none_is_said_to_be() -> None:
    assert read_reply(b"<html>").faults == ("unparsable_reply",)
    assert read_reply(b'{"choices":[{"token_ids":["a"]}]}').faults == ("unparsable_reply",)
    assert read_reply(b'{"choices":[{"token_ids":[-1]}]}').choices[0].faults == ("bad_token_ids",)
    assert read_reply(b'{"choices":[{"logprobs":{"content":[{}]}}]}').choices[0].faults == ("log_prob_missing",)


IDS = st.lists(st.integers(0, 2**32 - 1), max_size=3)


@given(IDS, st.sampled_from(["prompt_token_ids", '"prompt_token_ids":[7]', "]"]), st.booleans(), st.booleans())
def test_the_prompt_is_the_replys_own_whatever_else_looks_like_it(
    ids: list[int], text: str, nested: bool, last: bool
) -> None:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    body: dict[str, Any] = {"choices": [{"message": message, "token_ids": [1], "logprobs": None}]}
    if nested:
        body = {"kv_transfer_params": {"prompt_token_ids": [9]}} | body
    body = body | {"prompt_token_ids": ids} if last else {"prompt_token_ids": ids} | body
    for separators in ((",", ":"), (", ", ": ")):
        captured = read_reply(json.dumps(body, separators=separators).encode())
        assert captured.faults == ()
        assert json.loads(captured.prompt_json or b"null") == ids
        assert json.loads(captured.choices[0].reply or b"") == message
    del body["prompt_token_ids"]
    assert read_reply(json.dumps(body, separators=(",", ":")).encode()).prompt_json is None


def test_a_missing_log_prob_is_a_fault_and_not_a_number_of_its_own() -> None:
    content = [{"logprob": -0.5}, {"logprob": -9999.0}]
    reply = {"choices": [{"token_ids": [1, 2], "logprobs": {"content": content}}]}
    (choice,) = read_reply(json.dumps(reply).encode()).choices
    assert choice.faults == ("log_prob_missing",)
    assert choice.log_probs == pack_floats([-0.5, -9999.0])


@pytest.mark.parametrize("recording", [r for r in RECORDED if not r.streamed], ids=lambda recording: recording.name)
def test_a_whole_reply_as_a_stream_gives_the_same(recording: Recording) -> None:
    whole = read_reply(recording.reply)
    stream = ChatStream(len(whole.choices))
    marks = [stream.take(event_data(event) or b"") for event in as_events(recording.reply)]
    assert marks[-2:] == ["usage", "done"]
    assert stream.finished
    got = stream.captured()
    assert json.loads(got.prompt_json or b"null") == json.loads(whole.prompt_json or b"null")
    assert (got.usage, got.model, got.response_id) == (whole.usage, whole.model, whole.response_id)
    for mine, theirs in zip(got.choices, whole.choices, strict=True):
        assert (mine.response_ids, mine.log_probs) == (theirs.response_ids, theirs.log_probs)
        assert (mine.finish_reason, mine.stop_reason) == (theirs.finish_reason, theirs.stop_reason)
        message, said = json.loads(theirs.reply or b""), json.loads(mine.reply or b"")
        assert (said["content"] or None) == (message["content"] or None)
        assert len(said.get("tool_calls") or []) == len(message.get("tool_calls") or [])


def test_sglangs_own_record_of_the_tokens_is_read() -> None:
    meta = {"output_token_logprobs": [[-0.5, 7, None], [-0.25, 8, "x"]], "weight_version": "3"}
    message = {"role": "assistant", "content": "x"}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "prompt_token_ids": [1, 2], "meta_info": meta}
    captured = read_reply(json.dumps({"choices": [choice], "model": "m"}).encode())
    (found,) = captured.choices
    assert json.loads(captured.prompt_json or b"") == [1, 2]
    assert (found.response_ids, found.log_probs) == (pack_ids([7, 8]), pack_floats([-0.5, -0.25]))
    assert [(span.version, span.start, span.end) for span in found.versions] == [(3, 0, 2)]


@pytest.mark.parametrize("layers", [3, None])
@pytest.mark.parametrize("place", ["meta_info", "sglext"])
def test_sglangs_routed_experts_become_the_same_file_as_vllms(place: str, layers: int | None) -> None:
    experts = np.arange(4 * 3 * 2, dtype="<i4").reshape(4, 3, 2)
    said: dict[str, Any] = {"routed_experts": base64.b64encode(experts.tobytes()).decode()}
    if layers is not None:
        said["expert_ids_schema"] = {"num_layers": layers, "top_k": 2}
    message = {"role": "assistant", "content": "x"}
    choice = {"index": 0, "message": message, "token_ids": [3, 4, 5], "prompt_token_ids": [1, 2]}
    reply: dict[str, Any] = {"choices": [choice]}
    (choice if place == "meta_info" else reply)[place] = said
    (found,) = read_reply(json.dumps(reply).encode()).choices
    assert found.experts_layout == (4, layers)
    value = json.loads(found.routed_experts or b"")
    data, ref = flat_experts_ref(value, *found.experts_layout)
    read = np.load(io.BytesIO(data))
    assert (read.dtype, read.shape) == (np.uint8, (4, 3, 2) if layers else (4, 1, 6))
    assert read.ravel().tolist() == experts.ravel().tolist()
    assert experts_ref(base64.b64encode(data).decode())[1] == ref


@pytest.mark.parametrize(
    ("value", "tokens", "layers"), [("AAAA", 1, None), ("AAAAAA==", 2, None), ("AAAAAA==", 1, 2), ("", 1, 1), (5, 1, 1)]
)
def test_numbers_that_are_no_experts_of_these_tokens_are_wrong(value: Any, tokens: int, layers: int | None) -> None:
    with pytest.raises(ValueError, match=r"experts|buffer"):
        flat_experts_ref(value, tokens, layers)


def test_sglang_is_asked_in_its_own_words_and_never_for_a_stream() -> None:
    call = for_sglang(chat.asked(b'{"messages":[],"stream":true,"stream_options":{"include_usage":true}}'))
    sent = json.loads(call.upstream_body)
    assert (sent["return_prompt_token_ids"], sent["return_meta_info"], sent["logprobs"]) == (True, True, True)
    assert (sent["stream"], sent["stream_options"], call.stream) == (False, None, True)
