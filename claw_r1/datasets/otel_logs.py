"""OpenTelemetry spans of model calls, by the GenAI semantic conventions, become facts.

Pure. Messages are taken from attributes (`gen_ai.input.messages`, or `gen_ai.prompt.0.content` and the like) or from events
(`gen_ai.user.message`, `gen_ai.choice`, `gen_ai.client.inference.operation.details`). A trajectory is a conversation
(`gen_ai.conversation.id`), else a trace. Spans that are no model call are passed over and counted.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from claw_r1.datasets.logs import (
    CallText,
    Fault,
    Json,
    Naming,
    Parsed,
    Place,
    ending,
    look_up,
    named_id,
    opening,
    reward_of,
    step_of,
)
from claw_r1.errors import InvalidRecord

CALLS: Final = ("chat", "text_completion", "generate_content")
"""`gen_ai.operation.name` of a model call."""
_INDEXED: Final = re.compile(r"gen_ai\.(prompt|completion)\.(\d+)\.(.+)")
_CALL_FIELD: Final = re.compile(r"tool_calls\.(\d+)\.(id|name|arguments)")
_MESSAGE_EVENT: Final = re.compile(r"gen_ai\.(system|user|assistant|tool)\.message")
_SAMPLING: Final = ("temperature", "top_p", "max_tokens", "seed")


class Span(NamedTuple):
    """What is read of a span."""

    trace_id: str
    span_id: str
    start: float | None
    end: float | None
    attributes: Json
    events: list[tuple[str, Json]]


class Talk(NamedTuple):
    """What a span says of its messages."""

    messages: list[Json]
    replies: list[Json]


def read_otel(document: Json, naming: Naming, now: float) -> Parsed:
    """The facts of one line: an export request (`resourceSpans`), or a span by itself. Raises InvalidRecord("unknown_form")."""
    parsed = Parsed()
    for raw in _spans(document):
        try:
            span = _span(raw)
            if not _is_call(span.attributes):
                parsed.skipped += 1
                continue
            facts = _facts(span, naming, now)
        except InvalidRecord as error:
            parsed.faults.append(Fault(error.reason, str(error)))
            continue
        # A form that nobody thought of costs its span alone.
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            parsed.faults.append(Fault("unreadable", f"{type(error).__name__}: {error}"))
            continue
        parsed.facts += facts.facts
        parsed.ends += facts.ends
    return parsed


# ---------------------------------------------------------------------------------------------------------------- spans


def _spans(document: Json) -> Iterator[Any]:
    if isinstance(groups := document.get("resourceSpans"), list):
        for group in groups:
            scopes = group.get("scopeSpans", []) if isinstance(group, dict) else []
            for scope in scopes:
                yield from scope.get("spans", []) if isinstance(scope, dict) else []
    elif "traceId" in document or "context" in document:
        yield document
    else:
        raise InvalidRecord("unknown_form", "it has neither `resourceSpans` nor is it a span")


def _span(raw: Any) -> Span:
    if not isinstance(raw, dict):
        raise InvalidRecord("bad_span", "a span is not an object")
    given = raw.get("context")
    context: Json = given if isinstance(given, dict) else {}
    trace = raw.get("traceId") or context.get("trace_id")
    own = raw.get("spanId") or context.get("span_id")
    if not isinstance(trace, str) or not isinstance(own, str):
        raise InvalidRecord("bad_span", "a span has no traceId or spanId")
    events = [
        (str(event.get("name")), _attributes(event.get("attributes")))
        for event in raw.get("events") or []
        if isinstance(event, dict)
    ]
    return Span(
        trace.removeprefix("0x"),
        own.removeprefix("0x"),
        _time(raw.get("startTimeUnixNano", raw.get("start_time"))),
        _time(raw.get("endTimeUnixNano", raw.get("end_time"))),
        _attributes(raw.get("attributes")),
        events,
    )


def _time(value: Any) -> float | None:
    """Seconds since the epoch, of nanoseconds (also as a text) or an ISO time."""
    try:
        if isinstance(value, str) and not value.isdigit():
            time = datetime.fromisoformat(value)
            return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
        return None if value is None else int(value) / 1e9
    except (TypeError, ValueError, OverflowError):
        return None


def _attributes(given: Any) -> Json:
    """Name → value, of OTLP's list of pairs or of a plain object."""
    if isinstance(given, dict):
        return given
    found: Json = {}
    for pair in given if isinstance(given, list) else ():
        if isinstance(pair, dict) and isinstance(pair.get("key"), str):
            found[pair["key"]] = _value(pair.get("value"))
    return found


def _value(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    for name in ("stringValue", "boolValue", "doubleValue", "bytesValue"):
        if name in given:
            return given[name]
    if "intValue" in given:
        return int(given["intValue"])
    if "arrayValue" in given:
        return [_value(one) for one in given["arrayValue"].get("values", [])]
    if "kvlistValue" in given:
        return _attributes(given["kvlistValue"].get("values"))
    return None


def _is_call(attributes: Json) -> bool:
    operation = attributes.get("gen_ai.operation.name")
    if operation is None:
        return "gen_ai.request.model" in attributes or "gen_ai.response.model" in attributes
    return operation in CALLS


# ---------------------------------------------------------------------------------------------------------------- facts


def _facts(span: Span, naming: Naming, now: float) -> Parsed:
    said = dict(span.attributes)
    for name, attributes in span.events:
        if name == "gen_ai.client.inference.operation.details":
            said |= attributes
    talk = _talk(said, span.events)
    if not talk.messages:
        raise InvalidRecord("no_messages", f"span {span.span_id} says no messages: the program did not record content")
    if not talk.replies:
        raise InvalidRecord("no_reply", f"span {span.span_id} says no reply")
    place = _place(span, said, naming)
    at = span.start or now
    metadata = {"imported": "otel", "trace_id": span.trace_id}
    parsed = Parsed([opening(place, naming, task_id=look_up(said, naming.task), metadata=metadata, at=at)])
    finishes = said.get("gen_ai.response.finish_reasons")
    for number, reply in enumerate(talk.replies):
        finish = reply.pop("finish_reason", None) or (
            finishes[number] if isinstance(finishes, list) and number < len(finishes) else None
        )
        call = CallText(
            messages=talk.messages,
            reply=reply,
            request=_request(said),
            model=said.get("gen_ai.response.model") or said.get("gen_ai.request.model"),
            finish_reason=None if finish is None else str(finish),
            usage=_usage(said),
            choice=number,
            received=span.start,
            done=span.end,
            metadata={"span_id": span.span_id},
            name=f"{span.span_id}.{number}",
        )
        step = step_of(place, naming, call, at)
        parsed.facts.append(step)
        if number == 0:
            parsed.facts += _rewards(place, span, step.step_id, at)
    value = look_up(said, naming.reward)
    if value is not None:
        parsed.facts.append(reward_of(place, value, naming.reward_source, at, step_id=step.step_id))
    parsed.ends.append(ending(place, at))
    return parsed


def _place(span: Span, said: Json, naming: Naming) -> Place:
    named = look_up(said, naming.trajectory) or said.get("gen_ai.conversation.id") or span.trace_id
    trajectory = named_id(named)
    prompt = named_id(look_up(said, naming.prompt), "import-prompt", naming.run_id, trajectory)
    return Place(naming.run_id, prompt, trajectory)


def _rewards(place: Place, span: Span, step_id: str, at: float) -> Iterator[Any]:
    """Of events `gen_ai.evaluation.result`: scores of the call."""
    for name, attributes in span.events:
        if name == "gen_ai.evaluation.result" and "gen_ai.evaluation.score.value" in attributes:
            source = named_id(attributes.get("gen_ai.evaluation.name"), "evaluation")
            yield reward_of(place, attributes["gen_ai.evaluation.score.value"], source, at, step_id=step_id)


def _request(said: Json) -> Json:
    request: Json = {name: said[f"gen_ai.request.{name}"] for name in _SAMPLING if f"gen_ai.request.{name}" in said}
    if (model := said.get("gen_ai.request.model")) is not None:
        request["model"] = model
    if isinstance(tools := _decoded(said.get("gen_ai.tool.definitions")), list):
        request["tools"] = tools
    return request


def _usage(said: Json) -> Json | None:
    names = {"prompt_tokens": "gen_ai.usage.input_tokens", "completion_tokens": "gen_ai.usage.output_tokens"}
    found = {name: said[key] for name, key in names.items() if isinstance(said.get(key), int)}
    return found or None


# ------------------------------------------------------------------------------------------------------------- messages


def _talk(said: Json, events: Sequence[tuple[str, Json]]) -> Talk:
    """From whichever of the conventions' ways the span speaks."""
    given = _decoded(said.get("gen_ai.input.messages"))
    if isinstance(given, list):
        system = _decoded(said.get("gen_ai.system_instructions"))
        first = [{"role": "system", "content": _texts(system)}] if isinstance(system, list) and system else []
        messages = [made for one in given for made in _of_parts(one)]
        outputs = _decoded(said.get("gen_ai.output.messages"))
        replies = [made for one in outputs if isinstance(outputs, list) for made in _of_parts(one)] if outputs else []
        return Talk([*first, *messages], replies)
    indexed = _indexed(said)
    if indexed.messages:
        return indexed
    return _of_events(events, said)


def _decoded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (ValueError, RecursionError):
        return value


def _texts(parts: Sequence[Any]) -> str:
    return "".join(str(part.get("content", "")) if isinstance(part, dict) else str(part) for part in parts)


def _of_parts(given: Any) -> Iterator[Json]:
    """A message of parts as chat messages: answers of tools are messages of their own."""
    if not isinstance(given, dict):
        raise InvalidRecord("bad_messages", "a message is not an object")
    role = str(given.get("role", "user"))
    parts = given.get("parts")
    if not isinstance(parts, list):
        yield {**given, "role": role}
        return
    made: Json = {"role": role, "content": ""}
    other: list[Json] = []
    for part in parts:
        match part:
            case {"type": "text", "content": content}:
                made["content"] += str(content)
            case {"type": "reasoning", "content": content}:
                made["reasoning_content"] = made.get("reasoning_content", "") + str(content)
            case {"type": "tool_call", "name": name}:
                made.setdefault("tool_calls", []).append(_tool_call(part.get("id"), name, part.get("arguments")))
            case {"type": "tool_call_response"}:
                answer = part.get("response", part.get("result"))
                text = answer if isinstance(answer, str) else msgspec.json.encode(answer).decode()
                other.append({"role": "tool", "tool_call_id": part.get("id"), "content": text})
            case _:
                made.setdefault("parts", []).append(part)
    if "finish_reason" in given:
        made["finish_reason"] = given["finish_reason"]
    if made["content"] or made.keys() - {"role", "content", "finish_reason"} or not other:
        yield made
    yield from other


def _tool_call(call_id: Any, name: Any, arguments: Any) -> Json:
    text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments or {}).decode()
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}


def _indexed(said: Json) -> Talk:
    """Of attributes such as `gen_ai.prompt.0.role`."""
    sides: dict[str, dict[int, Json]] = {"prompt": {}, "completion": {}}
    for key, value in said.items():
        if (match := _INDEXED.fullmatch(key)) is None:
            continue
        side, number, name = match[1], int(match[2]), match[3]
        message = sides[side].setdefault(number, {})
        if (call := _CALL_FIELD.fullmatch(name)) is not None:
            message.setdefault("calls", {}).setdefault(int(call[1]), {})[call[2]] = value
        else:
            message[name] = value
    return Talk(
        [_of_index(sides["prompt"][number], "user") for number in sorted(sides["prompt"])],
        [_of_index(sides["completion"][number], "assistant") for number in sorted(sides["completion"])],
    )


def _of_index(given: Json, role: str) -> Json:
    made: Json = {"role": str(given.get("role", role)), "content": given.get("content", "")}
    for name in ("tool_call_id", "finish_reason"):
        if name in given:
            made[name] = given[name]
    if calls := given.get("calls"):
        made["tool_calls"] = [
            _tool_call(c.get("id"), c.get("name"), c.get("arguments")) for _, c in sorted(calls.items())
        ]
    return made


def _of_events(events: Sequence[tuple[str, Json]], said: Json) -> Talk:
    """One event a message, or one for all of a side."""
    messages: list[Json] = []
    replies: list[Json] = []
    for name, attributes in events:
        if (match := _MESSAGE_EVENT.fullmatch(name)) is not None:
            messages.append(_of_event(attributes, match[1]))
        elif name == "gen_ai.choice":
            told = _decoded(attributes.get("message"))
            reply = _of_event(told if isinstance(told, dict) else attributes, "assistant")
            if "finish_reason" in attributes:
                reply["finish_reason"] = attributes["finish_reason"]
            replies.append(reply)
        elif name in ("gen_ai.content.prompt", "gen_ai.content.completion"):
            side = messages if name.endswith("prompt") else replies
            given = _decoded(attributes.get("gen_ai.prompt" if name.endswith("prompt") else "gen_ai.completion"))
            side += [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    for key, side in (("gen_ai.prompt", messages), ("gen_ai.completion", replies)):
        given = _decoded(said.get(key))
        if not side and isinstance(given, list):
            side += [one for one in given if isinstance(one, dict)]
    return Talk(messages, replies)


def _of_event(attributes: Mapping[str, Any], role: str) -> Json:
    made: Json = {"role": str(attributes.get("role", role)), "content": _decoded_text(attributes.get("content"))}
    calls = _decoded(attributes.get("tool_calls"))
    if isinstance(calls, list):
        made["tool_calls"] = calls
    if role == "tool" and attributes.get("id") is not None:
        made["tool_call_id"] = attributes["id"]
    return made


def _decoded_text(content: Any) -> Any:
    return "" if content is None else content
