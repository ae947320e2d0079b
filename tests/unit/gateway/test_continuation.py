"""An answer that engines give up and go on with is the answer that one engine would have given."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claw_r1.codec import unpack_floats, unpack_ids
from claw_r1.events import VersionSpan
from gateway.calls.capture import Served
from gateway.calls.continuation import Parts, Seam, join_replies, next_request, tokens_so_far
from gateway.calls.relay import Relay
from gateway.dialects import chat, messages, responses
from gateway.dialects.base import Asked, Dialect
from gateway.dialects.captured import Captured, Choice
from gateway.dialects.chat_reply import read_reply

PROMPT = [7, 8, 9]
WORDS = ["The ", "sum ", "is ", "4", ".", " So ", "be ", "it"]
DIALECTS = [chat.dialect(), messages.MESSAGES, responses.RESPONSES]
BODIES: dict[str, dict[str, Any]] = {
    "chat": {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "hi"}]},
    "messages": {"model": "tiny", "stream": True, "max_tokens": 99, "messages": [{"role": "user", "content": "hi"}]},
    "responses": {"model": "tiny", "stream": True, "input": "hi"},
}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def an_asked(dialect: Dialect = DIALECTS[0], **over: Any) -> Asked:
    return dialect.read(json.dumps(BODIES[dialect.name] | over).encode(), "call", 1.0)


def a_reply(ids: list[int], *, prompt: list[int] = PROMPT, finish: str = "abort", **over: Any) -> dict[str, Any]:
    """A whole reply of the words with these numbers."""
    said = [WORDS[number] for number in ids]
    entries = [{"token": word, "logprob": -float(number), "bytes": []} for word, number in zip(said, ids, strict=True)]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "".join(said)},
        "logprobs": {"content": entries},
        "finish_reason": finish,
        "token_ids": ids,
    }
    counts = {"prompt_tokens": len(prompt), "completion_tokens": len(ids), "total_tokens": len(prompt) + len(ids)}
    reply = {"id": f"chatcmpl-{len(prompt)}", "created": len(prompt), "model": "tiny", "prompt_token_ids": prompt}
    return reply | {"choices": [choice | over], "usage": counts}


def a_stream(ids: list[int], *, prompt: list[int] = PROMPT, finish: str, with_last: bool) -> list[bytes]:
    """The same in chunks, of which the last one with tokens may be the one with the finish reason."""
    reply = a_reply(ids, prompt=prompt, finish=finish)
    base = {key: reply[key] for key in ("id", "created", "model")}
    entries = reply["choices"][0]["logprobs"]["content"]
    role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    chunks: list[dict[str, Any]] = [base | {"choices": [role], "prompt_token_ids": prompt}]
    for token, entry in zip(ids, entries, strict=True):
        part = {"delta": {"content": WORDS[token]}, "logprobs": {"content": [entry]}, "token_ids": [token]}
        chunks.append(base | {"choices": [{"index": 0, "finish_reason": None} | part]})
    if with_last and ids:
        chunks[-1]["choices"][0]["finish_reason"] = finish
    else:
        chunks.append(base | {"choices": [{"index": 0, "delta": {}, "token_ids": [], "finish_reason": finish}]})
    chunks.append(base | {"choices": [], "usage": reply["usage"]})
    return [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]


def texts(dialect: str, said: bytes) -> str:
    """The text that an agent reads from a stream."""
    events = [json.loads(line[6:]) for line in said.decode().splitlines() if line.startswith("data: {")]
    if dialect == "chat":
        return "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])
    kind = {"messages": "content_block_delta", "responses": "response.output_text.delta"}[dialect]
    deltas = [e["delta"] for e in events if e["type"] == kind]
    return "".join(d["text"] if isinstance(d, dict) else d for d in deltas)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@given(cuts=st.sets(st.integers(1, len(WORDS) - 1), max_size=3), with_last=st.booleans(), data=st.data())
@settings(deadline=None, max_examples=40)
def test_a_stream_that_was_given_up_is_one_stream(
    dialect: Dialect, cuts: set[int], with_last: bool, data: st.DataObject
) -> None:
    ids = list(range(len(WORDS)))
    relay = Relay(an_asked(dialect))
    said = b""
    borders = [0, *sorted(cuts), len(ids)]
    for start, end in itertools.pairwise(borders):
        last = end == len(ids)
        if start:
            captured = relay.captured()
            so_far = tokens_so_far(captured)
            assert so_far == PROMPT + ids[:start]
            request = next_request(an_asked(dialect), captured, relay.last, streamed=True, field="input_ids")
            assert json.loads(request or b"{}")["input_ids"] == so_far
            relay.resume(Seam(captured, so_far, relay.last))
        events = a_stream(
            ids[start:end], prompt=PROMPT + ids[:start], finish="stop" if last else "abort", with_last=with_last
        )
        whole = b"".join(events)
        cut = data.draw(st.integers(0, len(whole)))
        said += relay.feed(whole[:cut]) + relay.feed(whole[cut:])
        relay.close()
        assert relay.given_up is not last
    said += relay.held
    captured = relay.captured()
    (choice,) = captured.choices
    assert (relay.status, captured.aborted, choice.finish_reason) == ("complete", False, "stop")
    assert unpack_ids(choice.response_ids or b"").tolist() == ids
    assert unpack_floats(choice.log_probs or b"").tolist() == [-float(number) for number in ids]
    assert json.loads(choice.reply or b"") == {"role": "assistant", "content": "".join(WORDS)}
    counts = {"prompt_tokens": 3, "completion_tokens": len(ids), "total_tokens": 3 + len(ids)}
    assert captured.usage == counts
    assert json.loads(captured.prompt_json or b"") == PROMPT
    assert texts(dialect.name, said) == "".join(WORDS)
    assert b"abort" not in said
    assert said.count(b'"role"') == (dialect.name != "responses") or dialect.name == "responses"
    if dialect.name == "chat":
        assert {json.loads(line[6:])["id"] for line in said.splitlines() if line.startswith(b"data: {")} == {
            "chatcmpl-3"
        }


def test_a_stream_that_was_given_up_without_a_terminal_event_is_gone_on_with_live() -> None:
    relay = Relay(an_asked())
    relay.feed(b"".join(a_stream([0, 1], finish="abort", with_last=False)[:-1]) + b"data: half")
    relay.close()
    captured = relay.captured()
    relay.resume(Seam(captured, tokens_so_far(captured) or [], relay.last))
    events = a_stream([2, 3], prompt=[*PROMPT, 0, 1], finish="stop", with_last=False)
    assert texts("chat", relay.feed(b"".join(events[:3]))) == "is 4"


@given(cuts=st.sets(st.integers(1, len(WORDS) - 1), min_size=1, max_size=3))
def test_whole_replies_that_were_given_up_are_one_reply(cuts: set[int]) -> None:
    ids = list(range(len(WORDS)))
    borders = [0, *sorted(cuts), len(ids)]
    whole = b""
    for start, end in itertools.pairwise(borders):
        finish = "stop" if end == len(ids) else "abort"
        rest = json.dumps(a_reply(ids[start:end], prompt=PROMPT + ids[:start], finish=finish)).encode()
        joined = join_replies(whole, rest, read_reply(whole), read_reply(rest)) if whole else rest
        assert joined is not None
        whole = joined
    assert json.loads(whole) == a_reply(ids, finish="stop")


def test_sglangs_own_record_of_the_tokens_is_joined_too() -> None:
    def reply(ids: list[int], prompt: list[int], version: str, finish: str) -> bytes:
        meta = {"output_token_logprobs": [[-0.5, token, None] for token in ids], "weight_version": version}
        made = a_reply(ids, prompt=prompt, finish=finish, prompt_token_ids=prompt, meta_info=meta)
        del made["prompt_token_ids"]
        return json.dumps(made).encode()

    first, rest = reply([0, 1], PROMPT, "3", "abort"), reply([2], [*PROMPT, 0, 1], "4", "stop")
    joined = join_replies(first, rest, read_reply(first), read_reply(rest))
    captured = read_reply(joined or b"")
    assert captured.choices[0].versions == (
        VersionSpan(version=3, start=0, end=2),
        VersionSpan(version=4, start=2, end=3),
    )
    assert unpack_ids(captured.choices[0].response_ids or b"").tolist() == [0, 1, 2]
    assert json.loads(captured.prompt_json or b"") == PROMPT


@pytest.mark.parametrize(
    ("request_", "choice"),
    [
        ({"n": 2}, {}),
        ({"presence_penalty": 0.5}, {}),
        ({"repetition_penalty": 1.1}, {}),
        ({"response_format": {"type": "json_object"}}, {}),
        ({"tools": TOOLS, "tool_choice": "required"}, {}),
        ({"echo": True}, {}),
        ({"stop": ["is not"]}, {}),
        ({"max_tokens": 3}, {}),
        ({}, {"message": {"role": "assistant", "content": None, "reasoning": "The sum is "}}),
        ({}, {"message": {"role": "assistant", "content": "The sum is ", "reasoning": "I add"}}),
        ({}, {"message": {"role": "assistant", "content": "The sum \ufffd"}}),
        ({}, {"message": {"role": "assistant", "content": ""}}),
        ({}, {"token_ids": []}),
        ({}, {"token_ids": None}),
        ({}, {"routed_experts": "AAAA"}),
        ({"tools": TOOLS}, {"message": {"role": "assistant", "content": "The sum "}}),
        ({"tools": TOOLS}, {"message": {"role": "assistant", "content": "The sum is <"}}),
        ({"tools": TOOLS}, {"logprobs": None}),
    ],
)
def test_what_an_engine_cannot_go_on_with_seamlessly_is_not_asked_for(
    request_: dict[str, Any], choice: dict[str, Any]
) -> None:
    reply = json.dumps(a_reply([0, 1, 2], **choice)).encode()
    asked = an_asked(stream=False, **request_)
    assert next_request(asked, read_reply(reply), reply, streamed=False, field="input_ids") is None


def test_a_tool_call_that_has_begun_is_not_gone_on_with() -> None:
    said = {"role": "assistant", "content": 'The <tool_call>{"name"'}
    entries = [{"token": token, "logprob": -1.0} for token in ("The ", "<tool_call>", '{"name"')]
    reply = json.dumps(a_reply([0, 1, 2], message=said, logprobs={"content": entries})).encode()
    asked = an_asked(stream=False, tools=TOOLS)
    assert next_request(asked, read_reply(reply), reply, streamed=False, field="input_ids") is None
    without = an_asked(stream=False, tools=TOOLS, tool_choice="none")
    assert next_request(without, read_reply(reply), reply, streamed=False, field="input_ids") is not None


@pytest.mark.parametrize(("delta", "fits"), [({"content": "is "}, True), ({"content": "i"}, False), ({}, False)])
def test_in_a_stream_the_last_token_tells_whether_a_parser_holds_text_back(delta: dict[str, str], fits: bool) -> None:
    reply = json.dumps(a_reply([0, 1, 2])).encode()
    entry = {"token": "is ", "logprob": -1.0}
    last = json.dumps({"choices": [{"index": 0, "delta": delta, "logprobs": {"content": [entry]}, "token_ids": [2]}]})
    asked = an_asked(tools=TOOLS)
    request = next_request(asked, read_reply(reply), last.encode(), streamed=True, field="input_ids")
    assert (request is not None) is fits


def test_limits_are_what_is_left_and_the_seed_is_another() -> None:
    reply = json.dumps(a_reply([0, 1, 2])).encode()
    asked = an_asked(stream=False, max_tokens=10, min_tokens=2, seed=5, stop=["\n"], presence_penalty=0)
    request = next_request(asked, read_reply(reply), reply, streamed=False, field="kv_transfer_params") or b""
    sent = json.loads(request)
    assert sent["kv_transfer_params"] == {"prompt_token_ids": [7, 8, 9, 0, 1, 2]}
    assert (sent["max_tokens"], sent["min_tokens"], sent["seed"], sent["stop"]) == (7, 0, 8, ["\n"])
    assert sent["messages"] == BODIES["chat"]["messages"]


def test_an_answer_to_another_prompt_is_not_joined() -> None:
    first = json.dumps(a_reply([0, 1])).encode()
    for prompt in (PROMPT, [*PROMPT, 0], []):
        rest = json.dumps(a_reply([2], prompt=prompt, finish="stop")).encode()
        assert join_replies(first, rest, read_reply(first), read_reply(rest)) is None
    thinks = {"role": "assistant", "content": None, "reasoning": "is "}
    rest = json.dumps(a_reply([2], prompt=[*PROMPT, 0, 1], finish="stop", message=thinks)).encode()
    assert join_replies(first, rest, read_reply(first), read_reply(rest)) is None


@pytest.mark.parametrize("change", ["prompt", "no prompt", "no prompt and no tokens", "reasoning"])
def test_a_stream_that_does_not_go_on_is_torn(change: str) -> None:
    relay = Relay(an_asked())
    said = relay.feed(b"".join(a_stream([0, 1], finish="abort", with_last=True)))
    captured, last = relay.captured(), relay.last
    relay.resume(Seam(captured, tokens_so_far(captured) or [], last))
    prompt = PROMPT if change == "prompt" else [*PROMPT, 0, 1]
    tokens = [] if change == "no prompt and no tokens" else [2, 3]
    events = a_stream(tokens, prompt=prompt, finish="stop", with_last=True)
    if change.startswith("no prompt"):
        del events[0]
    if change == "reasoning":
        events[1] = events[1].replace(b'"content": "is "', b'"reasoning": "is "')
    said += relay.feed(b"".join(events))
    assert (relay.torn, relay.given_up, relay.done) == (True, True, True)
    relay.give_up()
    captured = relay.captured()
    assert captured.aborted
    assert unpack_ids(captured.choices[0].response_ids or b"").tolist() == [0, 1]
    assert texts("chat", said) == "The ", "what came with the end waits for the rest"


def test_each_part_has_the_version_that_its_engine_served() -> None:
    def captured(tokens: int, *spans: VersionSpan) -> Captured:
        return Captured(choices=[Choice(0, response_ids=bytes(4 * tokens), versions=spans)])

    parts = Parts()
    parts.add(captured(2), Served(3, 3), "a")
    parts.add(captured(2), Served(4, 4), "a")  # a try that brought nothing
    parts.add(captured(5), Served(3, 3), "b")
    parts.add(captured(6), Served(4, 5), "b")
    last = captured(9, VersionSpan(version=6, start=6, end=9))
    parts.add(last, Served(1, 1), "c")
    parts.label(last)
    spans = [(span.version, span.start, span.end) for span in last.choices[0].versions]
    assert spans == [(3, 0, 5), (None, 5, 6), (6, 6, 9)]
    assert [part["tokens"] for part in last.metadata["continued"]] == [2, 3, 1, 3]
