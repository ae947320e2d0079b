"""The tools of an Anthropic request become functions that an engine can offer to the model.

Invariants: what an engine cannot run (tools that Anthropic hosts or whose schema only its models know) is left out where
functions stand beside it, and refused where none does; the order of the functions is the order of the tools.
"""

from collections.abc import Iterator
from typing import Any

from gateway.dialects.values import (
    as_flag,
    as_list,
    as_object,
    as_text,
    below,
    member,
    need,
    text_of,
    unsupported,
    wrong,
)

Tools = list[dict[str, Any]]


def read_tools(body: dict[str, Any]) -> Tools:
    """Functions in the form of a chat request; none if the request has no tools. Raises Refusal(400).

    A tool with `defer_loading` is offered only if a tool_reference or a tool_addition in the messages brings it in; a
    tool_removal takes one away. Chat knows one list of tools, so what holds is the state at the end of the messages.
    """
    tools = as_list(member(body, "tools", []), "tools")
    declared: dict[str, dict[str, Any]] = {}
    deferred: set[str] = set()
    removed: set[str] = set()
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        function = _function(as_object(tool, where), where)
        if function is not None:
            declared[function["name"]] = function
            if tool.get("defer_loading") is not None and as_flag(tool["defer_loading"], f"{where}.defer_loading"):
                deferred.add(function["name"])
    for change, where in _changes(body.get("messages")):
        _apply(change, where, declared, deferred, removed)
    offered = [function for name, function in declared.items() if name not in deferred | removed]
    if tools and not offered and not removed:
        raise unsupported(
            "tools", "none of them is a function that the engine can offer: hosted and deferred tools are not run here"
        )
    return [{"type": "function", "function": function} for function in offered]


def _function(tool: dict[str, Any], where: str) -> dict[str, Any] | None:
    kind = tool.get("type")
    if kind is not None and as_text(kind, f"{where}.type") != "custom":
        return None
    name = text_of(tool, "name", where)
    if not name:
        raise wrong(f"{where}.name", "a name")
    schema = as_object(need(tool, "input_schema", where), f"{where}.input_schema")
    function: dict[str, Any] = {"name": name}
    if tool.get("description") is not None:
        function["description"] = as_text(tool["description"], f"{where}.description")
    function["parameters"] = schema if "type" in schema else {"type": "object", **schema}
    if tool.get("strict") is not None:
        function["strict"] = as_flag(tool["strict"], f"{where}.strict")
    return function


def _changes(messages: object) -> Iterator[tuple[dict[str, Any], str]]:
    """Blocks that change the tools; what is wrong with the messages is said where they are read."""
    for at, message in enumerate(messages if isinstance(messages, list) else ()):
        blocks = message.get("content") if isinstance(message, dict) else None
        for index, block in enumerate(blocks if isinstance(blocks, list) else ()):
            if not isinstance(block, dict):
                continue
            where = f"messages[{at}].content[{index}]"
            if block.get("type") in ("tool_addition", "tool_removal"):
                yield block, where
            elif block.get("type") == "tool_result" and isinstance(block.get("content"), list):
                for inner, part in enumerate(block["content"]):
                    if isinstance(part, dict) and part.get("type") == "tool_reference":
                        yield part, f"{where}.content[{inner}]"


def _apply(
    change: dict[str, Any],
    where: str,
    declared: dict[str, dict[str, Any]],
    deferred: set[str],
    removed: set[str],
) -> None:
    if change["type"] == "tool_reference":
        deferred.discard(text_of(change, "tool_name", where))
        return
    inner = below(where, "tool")
    tool = as_object(need(change, "tool", where), inner)
    kind = text_of(tool, "type", inner)
    if kind == "tool_reference":
        name = text_of(tool, "name", inner)
    elif kind == "tool_definition" and change["type"] == "tool_addition":
        at = f"{inner}.definition"
        function = _function(as_object(need(tool, "definition", inner), at), at)
        if function is None:
            return
        name = function["name"]
        declared[name] = function
    else:
        raise unsupported(f"{inner}.type", f"{kind[:80]!r} is not known here")
    if change["type"] == "tool_removal":
        removed.add(name)
    else:
        deferred.discard(name)
        removed.discard(name)


def read_tool_choice(choice: object, tools: Tools) -> dict[str, Any]:
    """The members of a chat request that say what `tool_choice` says. Raises Refusal(400)."""
    if choice is None:
        return {}
    asked = as_object(choice, "tool_choice")
    kind = text_of(asked, "type", "tool_choice")
    said: dict[str, Any] = {}
    if asked.get("disable_parallel_tool_use") is not None:
        alone = as_flag(asked["disable_parallel_tool_use"], "tool_choice.disable_parallel_tool_use")
        if alone and tools:
            said["parallel_tool_calls"] = False
    if kind in ("auto", "none"):
        if tools:  # an engine refuses the choice where there is nothing to choose
            said["tool_choice"] = kind
    elif kind == "any":
        if not tools:
            raise wrong("tool_choice.type", "auto or none where there is no tool")
        said["tool_choice"] = "required"
    elif kind == "tool":
        name = text_of(asked, "name", "tool_choice")
        if not any(tool["function"]["name"] == name for tool in tools):
            raise wrong("tool_choice.name", "the name of one of the functions in tools")
        said["tool_choice"] = {"type": "function", "function": {"name": name}}
    else:
        raise wrong("tool_choice.type", "auto, any, tool or none")
    return said
