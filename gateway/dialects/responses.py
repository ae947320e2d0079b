"""A responses request becomes a chat request, because engines return token ids for chat alone.

Invariants:
- nothing is stored: what needs a stored response is refused, and so is what an engine cannot do at all;
- tools that no engine runs are left out where functions stand beside them, and refused where they stand alone;
- members that the API does not know go on to the engine with their bytes.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw

from gateway.dialects import chat
from gateway.dialects.base import Asked, Dialect
from gateway.dialects.fields import asks_to_stream, join, member, model_of, raw_bytes, read_members
from gateway.dialects.responses_events import error_event
from gateway.dialects.responses_input import read_messages
from gateway.dialects.responses_reply import Question, ResponsesVoice
from gateway.dialects.responses_shapes import INPUT, Tool, ToolNames, beyond
from gateway.dialects.values import (
    as_list,
    as_object,
    as_text,
    invalid,
    optional_flag,
    optional_integer,
    optional_number,
    optional_text,
    wrong,
)

_KNOWN: Final = frozenset(
    {
        *("background", "background_options", "client_metadata", "context_management", "conversation", "include"),
        *("input", "instructions", "max_output_tokens", "max_tool_calls", "metadata", "moderation"),
        *("parallel_tool_calls", "previous_response_id", "prompt", "prompt_cache_key", "prompt_cache_options"),
        *("prompt_cache_retention", "reasoning", "safety_identifier", "service_tier", "store", "stream"),
        *(
            "stream_options",
            "temperature",
            "text",
            "tool_choice",
            "tools",
            "top_logprobs",
            "top_p",
            "truncation",
            "user",
        ),
    }
)
"""Members of the API, which are translated, echoed or of no use to an engine; the others go on."""
_REFUSED: Final = {
    "previous_response_id": "nothing is stored here: send the earlier items in `input` instead",
    "conversation": "nothing is stored here: send the conversation's items in `input` instead",
    "prompt": "no prompt templates are stored here: send their text in `instructions` or `input` instead",
}
_ECHOED: Final = ("instructions", "metadata", "max_tool_calls", "user", "prompt_cache_key", "safety_identifier")
_LOG_PROBS: Final = "message.output_text.logprobs"
_SEALED: Final = "reasoning.encrypted_content"


def dialect(*, merge_system: bool = False) -> Dialect:
    """OpenAI's Responses. `merge_system`: for chat templates that take a system message at the head only."""
    return Dialect(
        name="responses",
        read=lambda body, call_id, at: read(body, call_id, at, merge_system=merge_system),
        refusal=lambda refusal: refusal.body,
        break_off=lambda refusal: error_event(refusal.kind, refusal.message, refusal.code, refusal.param),
    )


def read(body: bytes, call_id: str, at: float, *, merge_system: bool = False) -> Asked:
    """The call in a responses request, as a chat request. `at`: seconds since the epoch. Raises Refusal(400)."""
    asked = read_members(body)
    _refuse_what_is_stored(asked)
    names = ToolNames()
    tools = _tools(member(asked, "tools"), names)
    tools, choice = _choice(member(asked, "tool_choice"), tools, names)
    include = _include(member(asked, "include"))
    request: dict[str, Any] = {
        "model": optional_text(member(asked, "model"), "model"),
        "messages": read_messages(
            member(asked, "input"), member(asked, "instructions"), names, merge_system=merge_system
        ),
        "stream": asks_to_stream(asked) or None,
        "max_completion_tokens": optional_integer(member(asked, "max_output_tokens"), "max_output_tokens", 1),
        "temperature": optional_number(member(asked, "temperature"), "temperature"),
        "top_p": optional_number(member(asked, "top_p"), "top_p"),
        "response_format": _response_format(member(asked, "text")),
        "reasoning_effort": _effort(member(asked, "reasoning")),
        "user": optional_text(member(asked, "user"), "user"),
    }
    parallel = optional_flag(member(asked, "parallel_tool_calls"), "parallel_tool_calls")
    if tools:
        request |= {"tools": list(tools.values()), "tool_choice": choice, "parallel_tool_calls": parallel}
    top = optional_integer(member(asked, "top_logprobs"), "top_logprobs", 0)
    if _LOG_PROBS in include:
        request |= {"logprobs": True, "top_logprobs": top or 0}
    question = Question(
        call_id=call_id,
        created_at=int(at),
        model=model_of(asked),
        echo=_echo(asked),
        names=names,
        log_probs=_LOG_PROBS in include,
        seals=_SEALED in include,
        shows_reasoning=raw_bytes(asked, "include_reasoning") != b"false",
    )
    return chat.asked(_encode(asked, request), dialect="responses", voice=ResponsesVoice(question))


def _encode(asked: Mapping[str, Raw], request: Mapping[str, Any]) -> bytes:
    translated = {key: Raw(_json(value, key)) for key, value in request.items() if value is not None}
    extra = {key: raw for key, raw in asked.items() if key not in _KNOWN and key != "model"}
    return join({**extra, **translated})


def _json(value: Any, place: str) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (RecursionError, ValueError, OverflowError) as error:
        raise invalid(place, f"cannot be sent on: {error}") from error


def _refuse_what_is_stored(asked: Mapping[str, Raw]) -> None:
    for field, why in _REFUSED.items():
        if raw_bytes(asked, field) not in (None, b"null"):
            raise beyond(field, why)
    if optional_flag(member(asked, "background"), "background"):
        raise beyond("background", "responses are not kept: ask without `background`, and stream if it takes long")
    optional_flag(member(asked, "store"), "store")
    if raw_bytes(asked, "n") not in (None, b"null", b"1"):
        raise beyond("n", "a response has one answer: ask several times instead of with `n`")


def _include(value: Any) -> frozenset[str]:
    if value is None:
        return frozenset()
    return frozenset(as_text(entry, f"include[{index}]") for index, entry in enumerate(as_list(value, "include")))


def _effort(value: Any) -> str | None:
    if value is None:
        return None
    return optional_text(as_object(value, "reasoning").get("effort"), "reasoning.effort")


def _response_format(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    value = as_object(value, "text").get("format")
    if value is None:
        return None
    format_ = as_object(value, "text.format")
    match format_.get("type"):
        case "text":
            return None
        case "json_object":
            return {"type": "json_object"}
        case "json_schema":
            as_object(format_.get("schema"), "text.format.schema")
            optional_text(format_.get("name"), "text.format.name")
            kept = {key: format_[key] for key in ("description", "schema", "strict") if format_.get(key) is not None}
            return {"type": "json_schema", "json_schema": {"name": format_.get("name") or "response", **kept}}
        case _:
            raise wrong("text.format.type", "text, json_object or json_schema")


# ---------------------------------------------------------------------------------------------------------------- tools


def _tools(value: Any, names: ToolNames) -> dict[str, dict[str, Any]]:
    """Name → function of the chat request. Raises Refusal(400) if there are tools and no engine can call any."""
    functions: dict[str, dict[str, Any]] = {}
    left_out: list[str] = []
    given = [] if value is None else as_list(value, "tools")
    for index, tool in enumerate(given):
        place = f"tools[{index}]"
        tool = as_object(tool, place)
        if tool.get("type") != "namespace":
            _add(tool, None, place, names, functions, left_out)
            continue
        namespace = as_text(tool.get("name"), f"{place}.name")
        for inner_index, inner in enumerate(as_list(tool.get("tools"), f"{place}.tools")):
            inner_place = f"{place}.tools[{inner_index}]"
            _add(as_object(inner, inner_place), namespace, inner_place, names, functions, left_out)
    if left_out and not functions:
        kinds = ", ".join(sorted(set(left_out)))
        raise beyond("tools", f"no engine runs these tools here: {kinds[:256]}; give functions, or no tools")
    return functions


def _add(
    tool: dict[str, Any],
    namespace: str | None,
    place: str,
    names: ToolNames,
    functions: dict[str, dict[str, Any]],
    left_out: list[str],
) -> None:
    kind = as_text(tool.get("type"), f"{place}.type")
    if kind not in ("function", "custom") or optional_flag(tool.get("defer_loading"), f"{place}.defer_loading"):
        left_out.append(kind)
        return
    spec = tool
    if kind == "function" and "name" not in tool and "function" in tool:  # the chat API's form
        spec = as_object(tool["function"], f"{place}.function")
    name = as_text(spec.get("name"), f"{place}.name")
    flat = names.add(Tool(name, namespace, "custom" if kind == "custom" else "function"))
    function = {"name": flat, **(_custom(spec, place) if kind == "custom" else _function(spec, place))}
    functions[flat] = {"type": "function", "function": function}


def _function(spec: dict[str, Any], place: str) -> dict[str, Any]:
    optional_text(spec.get("description"), f"{place}.description")
    optional_flag(spec.get("strict"), f"{place}.strict")
    if spec.get("parameters") is not None:
        as_object(spec["parameters"], f"{place}.parameters")
    return {key: spec[key] for key in ("description", "parameters", "strict") if spec.get(key) is not None}


def _custom(spec: dict[str, Any], place: str) -> dict[str, Any]:
    """A tool that takes free text, as a function of one string; a grammar is told to the model and not enforced."""
    description = optional_text(spec.get("description"), f"{place}.description") or ""
    if spec.get("format") is not None:
        form = as_object(spec["format"], f"{place}.format")
        if form.get("type") == "grammar":
            syntax = as_text(form.get("syntax"), f"{place}.format.syntax")
            definition = as_text(form.get("definition"), f"{place}.format.definition")
            description = f"{description}\n\n`{INPUT}` follows this {syntax} grammar:\n{definition}".strip()
    argument = {"type": "string", "description": "The tool's input, as it is."}
    parameters = {"type": "object", "properties": {INPUT: argument}, "required": [INPUT], "additionalProperties": False}
    return {"description": description, "parameters": parameters} if description else {"parameters": parameters}


def _choice(
    value: Any, tools: dict[str, dict[str, Any]], names: ToolNames
) -> tuple[dict[str, dict[str, Any]], str | dict[str, Any] | None]:
    """The tools that may be called, and the chat request's tool_choice. Raises Refusal(400)."""
    if value is None or value in ("auto", "none"):
        return tools, value
    if value == "required":
        if not tools:
            raise invalid("tool_choice", "is required, and there are no tools")
        return tools, value
    choice = as_object(value, "tool_choice")
    match choice.get("type"):
        case "function" | "custom":
            flat = _chosen(choice, "tool_choice", names)
            return tools, {"type": "function", "function": {"name": flat}}
        case "allowed_tools":
            mode = choice.get("mode")
            if mode not in ("auto", "required"):
                raise wrong("tool_choice.mode", "auto or required")
            allowed: set[str] = set()
            for index, entry in enumerate(as_list(choice.get("tools"), "tool_choice.tools")):
                entry = as_object(entry, f"tool_choice.tools[{index}]")
                if entry.get("type") in ("function", "custom"):
                    allowed.add(_chosen(entry, f"tool_choice.tools[{index}]", names))
            if not allowed:
                raise beyond("tool_choice.tools", "tool_choice.tools names no tool that an engine can call")
            return {flat: tool for flat, tool in tools.items() if flat in allowed}, mode
        case str(kind):
            raise beyond("tool_choice", f"no engine runs {kind[:64]} here: choose a function, auto, none or required")
        case _:
            raise wrong("tool_choice", "auto, none, required or an object with a type")


def _chosen(choice: dict[str, Any], place: str, names: ToolNames) -> str:
    kind: Any = choice["type"]
    name = choice.get("name")
    if name is None and isinstance(choice.get("function"), dict):  # the chat API's form
        name = choice["function"].get("name")
    tool = Tool(as_text(name, f"{place}.name"), optional_text(choice.get("namespace"), f"{place}.namespace"), kind)
    if tool not in names:
        raise invalid(f"{place}.name", f"names {tool.name[:64]}, which is not among the tools")
    return names.flat(tool)


# ----------------------------------------------------------------------------------------------------------------- echo


def _echo(asked: Mapping[str, Raw]) -> bytes:
    """What a response repeats of its request: members of a JSON object, without the braces. Raises Refusal(400)."""
    as_object(member(asked, "metadata") or {}, "metadata")
    optional_integer(member(asked, "max_tool_calls"), "max_tool_calls", 0)
    said: dict[str, Any] = {field: member(asked, field) for field in _ECHOED}
    for field in ("temperature", "top_p", "top_logprobs", "max_output_tokens", "reasoning"):
        said[field] = member(asked, field)
    parallel = member(asked, "parallel_tool_calls")
    said |= {
        "background": False,
        "parallel_tool_calls": True if parallel is None else parallel,
        "previous_response_id": None,
        "prompt": None,
        "service_tier": "default",
        "store": False,
        "text": member(asked, "text") or {"format": {"type": "text"}},
        "tool_choice": member(asked, "tool_choice") or "auto",
        "tools": [_shown(tool) for tool in member(asked, "tools") or ()],
        "truncation": "disabled",
    }
    return _json(said, "tools")[1:-1]


def _shown(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool with the members that clients expect in a function."""
    return {"description": None, "parameters": None, "strict": None, **tool} if tool["type"] == "function" else tool


RESPONSES: Final = dialect()
