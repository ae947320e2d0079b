"""Logs of other programs become facts with ids that follow from what they say."""

import json
from typing import Any

import pytest

from claw_r1.datasets.logs import Naming
from claw_r1.datasets.openai_logs import read_openai
from claw_r1.datasets.otel_logs import read_otel
from claw_r1.errors import InvalidRecord
from claw_r1.events import GroupFact, Reward, Step, TrajectoryEnd, TrajectoryOpen

HELLO = [{"role": "user", "content": "hello"}]
NAMING = Naming("run")
SESSIONS = Naming(
    "run", trajectory="session", prompt="metadata.prompt", task="task", reward="score", reward_source="judge"
)


def steps(facts: list[GroupFact]) -> list[Step]:
    return [fact for fact in facts if isinstance(fact, Step)]


def read(value: bytes | None) -> Any:
    return None if value is None else json.loads(value)


def a_reply(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


# --------------------------------------------------------------------------------------------------------------- openai


def test_every_reply_of_a_conversation_is_a_step() -> None:
    line = {"messages": [*HELLO, a_reply("hi", weight=0), *HELLO, a_reply("again")], "tools": [], "metadata": {"a": 1}}
    found = read_openai(line, NAMING, 5.0)
    assert [type(fact) for fact in found.facts] == [TrajectoryOpen, Step, Step, TrajectoryEnd]
    first, second = steps(found.facts)
    assert (read(first.new_messages), read(first.reply), first.metadata) == (HELLO, a_reply("hi"), {"weight": 0})
    assert (len(read(second.new_messages)), second.step_index, second.request) == (3, 1, b'{"tools":[]}')
    assert first.capture.reasons == ("text_only",)
    assert (first.response_len, first.rollout_log_probs) == (0, None)
    again = read_openai(json.loads(json.dumps(line)), NAMING, 9.0)
    assert [fact.fact_id for fact in again.facts] == [fact.fact_id for fact in found.facts]
    other = read_openai(line | {"messages": [*HELLO, a_reply("no")]}, NAMING, 5.0)
    assert other.facts[0].prompt_uid == found.facts[0].prompt_uid
    assert steps(other.facts)[0].trajectory_uid != first.trajectory_uid


def test_a_request_and_its_response_are_steps_of_one_group() -> None:
    choices = [{"index": n, "message": a_reply(str(n)), "finish_reason": "stop"} for n in (0, 1)]
    response = {"id": "r", "model": "m-1", "created": 100, "choices": choices, "usage": {"completion_tokens": 3}}
    request = {"model": "m", "messages": HELLO, "temperature": 0.5, "max_tokens": 7}
    found = read_openai({"request": request, "response": json.dumps(response)}, NAMING, 5.0)
    one, two = steps(found.facts)
    assert (one.prompt_uid, one.trajectory_uid == two.trajectory_uid) == (two.prompt_uid, False)
    assert (one.model, one.finish_reason, one.usage, one.at) == ("m-1", "stop", {"completion_tokens": 3}, 100.0)
    assert (one.sampling.temperature, one.sampling.max_tokens) == (0.5, 7)
    assert read(one.request) == {"model": "m", "temperature": 0.5, "max_tokens": 7}
    batch = {"custom_id": "1", "request": {"body": request}, "response": {"status_code": 200, "body": response}}
    assert len(steps(read_openai(batch, NAMING, 5.0).facts)) == 2


def test_fields_name_trajectories_prompts_tasks_and_rewards() -> None:
    lines = [
        {"messages": [*HELLO, a_reply(str(n))], "session": "s 1", "task": 7, "score": n, "metadata": {"prompt": "p1"}}
        for n in (0, 1)
    ]
    found = [read_openai(line, SESSIONS, 5.0) for line in lines]
    facts = [fact for parsed in found for fact in parsed.facts]
    assert {fact.prompt_uid for fact in facts} == {"p1"}
    assert len({step.trajectory_uid for step in steps(facts)}) == 1
    assert len({step.step_id for step in steps(facts)}) == 2
    assert not any(isinstance(fact, TrajectoryEnd) for fact in facts)
    assert len({end.fact_id for parsed in found for end in parsed.ends}) == 1
    rewards = [fact for fact in facts if isinstance(fact, Reward)]
    assert [(r.value, r.source, r.step_id) for r in rewards] == [
        (float(n), "judge", step.step_id) for n, step in enumerate(steps(facts))
    ]
    assert next(fact.task_id for fact in facts if isinstance(fact, TrajectoryOpen)) == "7"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"prompt": "a", "completion": "b"}, "unknown_form"),
        ({"messages": []}, "bad_messages"),
        ({"messages": [{"content": "a"}]}, "bad_messages"),
        ({"messages": HELLO}, "no_reply"),
        ({"request": {"messages": HELLO}, "response": {"choices": []}}, "no_reply"),
        ({"request": {"messages": HELLO}, "response": {"choices": [{"text": "a"}]}}, "no_reply"),
        ({"messages": [*HELLO, a_reply("a")], "session": "s", "score": "x"}, "bad_reward"),
        ({"messages": [*HELLO, a_reply("a")], "session": "s", "score": float("nan")}, "bad_reward"),
    ],
)
def test_what_is_no_call_is_refused_with_a_reason(line: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRecord) as refused:
        read_openai(line, SESSIONS, 5.0)
    assert refused.value.reason == reason


# ----------------------------------------------------------------------------------------------------------------- otel


def otlp(attributes: dict[str, Any], *events: tuple[str, dict[str, Any]], **over: Any) -> dict[str, Any]:
    """A span as OTLP's JSON says it."""

    def value(given: Any) -> dict[str, Any]:
        match given:
            case bool():
                return {"boolValue": given}
            case int():
                return {"intValue": str(given)}
            case float():
                return {"doubleValue": given}
            case list():
                return {"arrayValue": {"values": [value(one) for one in given]}}
            case dict():
                return {"kvlistValue": {"values": pairs(given)}}
        return {"stringValue": given}

    def pairs(given: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"key": key, "value": value(one)} for key, one in given.items()]

    head = {"traceId": "a" * 32, "spanId": "b" * 16, "name": "chat m"}
    times = {"startTimeUnixNano": "1000000000", "endTimeUnixNano": "2000000000"}
    told = [{"name": name, "attributes": pairs(of)} for name, of in events]
    return head | times | {"attributes": pairs(attributes), "events": told} | over


def exported(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": list(spans)}]}]}


BASE = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "m",
    "gen_ai.request.temperature": 0.5,
    "gen_ai.usage.input_tokens": 4,
    "gen_ai.usage.output_tokens": 2,
    "gen_ai.response.finish_reasons": ["stop"],
}
ASKED = {"role": "user", "parts": [{"type": "text", "content": "hello"}]}
CALLED = {"type": "tool_call", "id": "c", "name": "look", "arguments": {"at": 1}}
ANSWERED = {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c", "response": "seen"}]}
SAID = {"role": "assistant", "parts": [{"type": "reasoning", "content": "hm"}, {"type": "text", "content": "hi"}]}
CHAT = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hello"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "seen"},
]


@pytest.mark.parametrize("as_text", [True, False], ids=["texts", "values"])
def test_messages_in_attributes(as_text: bool) -> None:
    given = [ASKED, {"role": "assistant", "parts": [CALLED]}, ANSWERED]
    outputs = [{**SAID, "finish_reason": "length"}]
    system = [{"type": "text", "content": "be kind"}]
    wrap = json.dumps if as_text else lambda value: value
    more = {
        "gen_ai.input.messages": wrap(given),
        "gen_ai.output.messages": wrap(outputs),
        "gen_ai.system_instructions": wrap(system),
    }
    found = read_otel(exported(otlp(BASE | more)), NAMING, 9.0)
    (step,) = steps(found.facts)
    assert read(step.new_messages) == CHAT
    assert read(step.reply) == {"role": "assistant", "content": "hi", "reasoning_content": "hm"}
    assert (step.finish_reason, step.model, step.sampling.temperature) == ("length", "m", 0.5)
    assert step.usage == {"prompt_tokens": 4, "completion_tokens": 2}
    assert (step.timings.received, step.timings.done, step.trajectory_uid) == (1.0, 2.0, "a" * 32)
    assert [end.trajectory_uid for end in found.ends] == ["a" * 32]


def test_messages_in_one_event_for_all() -> None:
    details = {"gen_ai.input.messages": json.dumps([ASKED]), "gen_ai.output.messages": json.dumps([SAID])}
    found = read_otel(exported(otlp(BASE, ("gen_ai.client.inference.operation.details", details))), NAMING, 9.0)
    (step,) = steps(found.facts)
    assert (read(step.new_messages), step.finish_reason) == (HELLO, "stop")


def test_an_event_a_message() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}
    events: list[tuple[str, dict[str, Any]]] = [
        ("gen_ai.system.message", {"content": "be kind"}),
        ("gen_ai.user.message", {"content": "hello"}),
        ("gen_ai.assistant.message", {"tool_calls": [call]}),
        ("gen_ai.tool.message", {"content": "seen", "id": "c"}),
        ("gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}),
    ]
    (step,) = steps(read_otel(exported(otlp(BASE, *events)), NAMING, 9.0).facts)
    assert read(step.new_messages) == CHAT
    assert read(step.reply) == a_reply("hi")


def test_messages_in_numbered_attributes() -> None:
    told = {
        "gen_ai.prompt.0.role": "system",
        "gen_ai.prompt.0.content": "be kind",
        "gen_ai.prompt.1.role": "user",
        "gen_ai.prompt.1.content": "hello",
        "gen_ai.prompt.2.role": "assistant",
        "gen_ai.prompt.2.tool_calls.0.id": "c",
        "gen_ai.prompt.2.tool_calls.0.name": "look",
        "gen_ai.prompt.2.tool_calls.0.arguments": '{"at":1}',
        "gen_ai.prompt.3.role": "tool",
        "gen_ai.prompt.3.tool_call_id": "c",
        "gen_ai.prompt.3.content": "seen",
        "gen_ai.completion.0.role": "assistant",
        "gen_ai.completion.0.content": "hi",
        "gen_ai.completion.0.finish_reason": "stop",
    }
    (step,) = steps(read_otel(exported(otlp(BASE | told)), NAMING, 9.0).facts)
    assert read(step.new_messages) == CHAT
    assert (read(step.reply), step.finish_reason) == (a_reply("hi"), "stop")


def test_a_span_by_itself_with_a_conversation_and_a_score() -> None:
    span = {
        "name": "chat m",
        "context": {"trace_id": "0x" + "c" * 32, "span_id": "0x" + "d" * 16},
        "start_time": "2026-01-31T12:00:00Z",
        "end_time": "2026-01-31T12:00:01Z",
        "attributes": {
            **BASE,
            "gen_ai.conversation.id": "talk-1",
            "gen_ai.input.messages": json.dumps([ASKED]),
            "gen_ai.output.messages": json.dumps([SAID]),
        },
        "events": [
            {
                "name": "gen_ai.evaluation.result",
                "attributes": {"gen_ai.evaluation.name": "kindness", "gen_ai.evaluation.score.value": 0.75},
            }
        ],
    }
    found = read_otel(span, NAMING, 9.0)
    (step,) = steps(found.facts)
    assert (step.trajectory_uid, step.timings.received) == ("talk-1", 1769860800.0)
    assert [(f.source, f.value) for f in found.facts if isinstance(f, Reward)] == [("kindness", 0.75)]
    assert step.metadata == {"span_id": "d" * 16}


def test_spans_that_are_no_call_are_counted_and_bad_ones_told() -> None:
    tool = otlp({"gen_ai.operation.name": "execute_tool"})
    plain = otlp({"http.method": "GET"})
    silent = otlp(BASE)
    mute = otlp(BASE | {"gen_ai.input.messages": json.dumps([ASKED])})
    nameless = otlp(BASE, traceId=None)
    found = read_otel(exported(tool, plain, silent, mute, nameless), NAMING, 9.0)
    assert (found.skipped, found.facts) == (2, [])
    assert [fault.reason for fault in found.faults] == ["no_messages", "no_reply", "bad_span"]
    with pytest.raises(InvalidRecord, match="neither"):
        read_otel({"resourceLogs": []}, NAMING, 9.0)
