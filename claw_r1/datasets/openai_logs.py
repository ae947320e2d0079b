"""Lines of OpenAI's formats become facts: conversations (`messages`), and requests with their responses.

Pure. Of a conversation every message of the assistant is a step, whose prompt is what stands before it. Each choice of a
response is a step; where no field names the trajectory, each is a trajectory of its own, and those of one prompt are a group.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from claw_r1.datasets.logs import (
    CallText,
    Json,
    Naming,
    Parsed,
    Place,
    canonical,
    ending,
    look_up,
    named_id,
    opening,
    reward_of,
    step_of,
)
from claw_r1.errors import InvalidRecord

_BODY = ("messages", "metadata")
"""Fields of a request that are stored by themselves."""


def read_openai(document: Json, naming: Naming, now: float) -> Parsed:
    """The facts of one line. Raises InvalidRecord with reason unknown_form, no_reply, bad_messages or bad_reward."""
    request, response = _body(document.get("request")), _body(document.get("response"))
    if request is not None and response is not None:
        return _call(document, request, response, naming, now)
    if isinstance(document.get("messages"), list):
        return _conversation(document, naming, now)
    raise InvalidRecord("unknown_form", "it has neither `messages` nor `request` and `response`")


def _body(value: Any) -> Json | None:
    """An object, also as a JSON text, and what is in its `body`."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, dict) and isinstance(value.get("body"), dict | str):
        return _body(value["body"])
    return value if isinstance(value, dict) else None


def _checked(messages: Any) -> list[Json]:
    if not isinstance(messages, list) or not messages:
        raise InvalidRecord("bad_messages", "`messages` is no list of messages")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidRecord("bad_messages", f"messages.{number} has no role")
    return messages


def _conversation(document: Json, naming: Naming, now: float) -> Parsed:
    messages = _checked(document["messages"])
    replies = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not replies:
        raise InvalidRecord("no_reply", "no message is the assistant's")
    request: Json = {name: document[name] for name in ("tools", "functions", "parallel_tool_calls") if name in document}
    content = canonical([messages, request])
    before = messages[: replies[0]]
    place = _place(document, naming, prompt=canonical([before, request.get("tools")]), content=content)
    model = document.get("model")
    calls = [
        CallText(
            messages=messages[:number],
            reply=_reply(messages[number]),
            request=request,
            model=model if isinstance(model, str) else None,
            index=index if naming.trajectory is None else None,
            metadata={"weight": messages[number]["weight"]} if "weight" in messages[number] else {},
        )
        for index, number in enumerate(replies)
    ]
    return _parsed(document, place, calls, naming, now)


def _reply(message: Json) -> Json:
    return {name: value for name, value in message.items() if name != "weight"}


def _call(document: Json, request: Json, response: Json, naming: Naming, now: float) -> Parsed:
    messages = _checked(request.get("messages"))
    choices = response.get("choices")
    if not isinstance(choices, list) or not choices:
        raise InvalidRecord("no_reply", "the response has no choices")
    rest = {name: value for name, value in request.items() if name not in _BODY}
    prompt = canonical([messages, rest.get("tools")])
    parsed = Parsed()
    for place, call in _choices(document, messages, rest, response, naming, prompt):
        found = _parsed(document, place, [call], naming, now)
        parsed.facts += found.facts
        parsed.ends += found.ends
    return parsed


def _choices(
    document: Json, messages: Sequence[Json], rest: Json, response: Json, naming: Naming, prompt: bytes
) -> Iterator[tuple[Place, CallText]]:
    for number, choice in enumerate(response["choices"]):
        reply = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(reply, dict) or not isinstance(reply.get("role"), str):
            raise InvalidRecord("no_reply", f"choices.{number} has no message")
        index = choice.get("index", number)
        model, usage, finish = (
            response.get("model") or rest.get("model"),
            response.get("usage"),
            choice.get("finish_reason"),
        )
        content = canonical([messages, rest, reply, index, response.get("id")])
        yield (
            _place(document, naming, prompt=prompt, content=content),
            CallText(
                messages=messages,
                reply=reply,
                request=rest,
                model=model if isinstance(model, str) else None,
                finish_reason=finish if isinstance(finish, str) else None,
                usage=usage if isinstance(usage, dict) else None,
                choice=index if isinstance(index, int) else number,
                received=_time(response.get("created")),
                name=f"{response['id']}.{index}" if isinstance(response.get("id"), str) else None,
            ),
        )


def _place(document: Json, naming: Naming, *, prompt: bytes, content: bytes) -> Place:
    run = naming.run_id
    named_prompt, named = look_up(document, naming.prompt), look_up(document, naming.trajectory)
    # Lines of one trajectory have other messages each: its name, and not its content, says the group.
    said = (named,) if named is not None else (prompt,)
    prompt_uid = named_id(named_prompt, "import-prompt", run, *said)
    return Place(run, prompt_uid, named_id(named, "import", run, prompt_uid, content))


def _parsed(document: Json, place: Place, calls: Sequence[CallText], naming: Naming, now: float) -> Parsed:
    at = (
        next((call.received for call in calls if call.received is not None), None)
        or _time(document.get("created"))
        or now
    )
    given = document.get("metadata")
    metadata = {"imported": "openai"} | (given if isinstance(given, dict) else {})
    parsed = Parsed([opening(place, naming, task_id=look_up(document, naming.task), metadata=metadata, at=at)])
    parsed.facts += [step_of(place, naming, call, at) for call in calls]
    value = look_up(document, naming.reward)
    several = look_up(document, naming.trajectory) is not None
    if value is not None:
        # Of several lines of a trajectory each scores its own call.
        step_id = parsed.facts[-1].step_id if several and hasattr(parsed.facts[-1], "step_id") else None
        parsed.facts.append(reward_of(place, value, naming.reward_source, at, step_id=step_id))
    end = ending(place, at)
    if several:
        parsed.ends.append(end)
    else:
        parsed.facts.append(end)
    return parsed


def _time(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 8e9 else None
