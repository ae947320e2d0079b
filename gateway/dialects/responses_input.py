"""The items of a responses request become the messages of a chat request.

Invariants:
- one turn of the assistant is one message: its reasoning, its text and all its calls, as chat templates expect them;
- a history that grew by an answer and its results gives the messages that it gave before, and more;
- instructions and the system and developer messages that lead are one system message, the role that all templates know.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from gateway.dialects.responses_shapes import INPUT, Tool, ToolNames, beyond, unseal
from gateway.dialects.values import as_list, as_object, as_text, optional_text, wrong
from gateway.replies import Refusal

Message = dict[str, Any]
Part = dict[str, Any]

_ROLES: Final = ("user", "assistant", "system", "developer")
_TEXTS: Final = ("input_text", "output_text", "text")


def read_messages(value: Any, instructions: Any, names: ToolNames, *, merge_system: bool = False) -> list[Message]:
    """Messages of a chat request; `value` is the member `input`, a string or a list of items. Raises Refusal(400).

    `merge_system`: system messages inside the conversation go to its head too.
    """
    history = _History(names, merge_system=merge_system)
    history.instruct(optional_text(instructions, "instructions"))
    if isinstance(value, str):
        history.say("user", value)
    elif value is not None:
        for index, item in enumerate(as_list(value, "input")):
            history.take(item, f"input[{index}]")
    messages = history.messages()
    if not messages:
        raise Refusal(400, "input is needed: a string or a list of items", param="input", code="missing_field")
    return messages


@dataclass(slots=True)
class _Turn:
    """What the assistant did before anyone else had a word."""

    thoughts: list[str] = field(default_factory=list)
    said: list[str | list[Part]] = field(default_factory=list)
    calls: list[Message] = field(default_factory=list)

    def message(self) -> Message:
        message: Message = {"role": "assistant", "content": self._content()}
        if self.thoughts:  # vLLM's name and SGLang's
            message["reasoning"] = message["reasoning_content"] = "\n".join(self.thoughts)
        return message | {"tool_calls": self.calls} if self.calls else message

    def _content(self) -> str | list[Part] | None:
        if not self.said:
            return None if self.calls else ""
        texts = [said for said in self.said if isinstance(said, str)]
        if len(texts) == len(self.said):
            return "".join(texts)
        return [part for said in self.said for part in ([_text_part(said)] if isinstance(said, str) else said)]


class _History:
    """Messages that grow item by item."""

    def __init__(self, names: ToolNames, *, merge_system: bool) -> None:
        self._names = names
        self._merges = merge_system
        self._leading: list[str | list[Part]] = []
        self._messages: list[Message] = []
        self._turn: _Turn | None = None  # the assistant's, while it may still grow

    def instruct(self, instructions: str | None) -> None:
        if instructions:
            self._leading.append(instructions)

    def take(self, item: Any, place: str) -> None:
        item = as_object(item, place)
        kind = item.get("type")
        if kind is None and "role" in item:
            kind = "message"
        match kind:
            case "message":
                self._take_message(item, place)
            case "reasoning":
                self._reason(_reasoning(item, place))
            case "function_call" | "custom_tool_call":
                self._call(_call(item, place, self._names))
            case "function_call_output" | "custom_tool_call_output":
                content = _content(item.get("output"), f"{place}.output", joins=True)
                self._end_turn()
                self._messages.append(
                    {
                        "role": "tool",
                        "tool_call_id": as_text(item.get("call_id"), f"{place}.call_id"),
                        "content": content,
                    }
                )
            case "item_reference" | None:
                raise beyond(place, f"{place} is a reference to an item: nothing is stored here, so send the item")
            case _:
                what = kind if isinstance(kind, str) else "no item"
                raise beyond(
                    f"{place}.type",
                    f"{place}.type is {what[:64]}, which an engine has not: leave it out, or say it in a message",
                )

    def _take_message(self, item: dict[str, Any], place: str) -> None:
        role, content = item.get("role"), item.get("content")
        if role not in _ROLES:
            raise wrong(f"{place}.role", f"one of {', '.join(_ROLES)}")
        if role == "assistant":
            said = "" if content is None else _content(content, f"{place}.content", joins=False)
            self._speak(said)
        else:
            self.say("user" if role == "user" else "system", _content(content, f"{place}.content"))

    def say(self, role: str, content: str | list[Part]) -> None:
        if role == "system" and (self._merges or (not self._messages and self._turn is None)):
            self._leading.append(content)
            return
        self._end_turn()
        self._messages.append({"role": role, "content": content})

    def _speak(self, said: str | list[Part]) -> None:
        if self._turn is not None and self._turn.said and not self._turn.calls:
            self._end_turn()  # text after text, with no call that waits, is another turn
        self._open_turn().said.append(said)

    def _reason(self, reasoning: str | None) -> None:
        if not reasoning:
            return
        if self._turn is not None and self._turn.said and not self._turn.calls:
            self._end_turn()
        turn = self._open_turn()
        if not turn.calls:
            # Reasoning upon reasoning: the earlier one is what a stream left that broke. The model never saw it.
            turn.thoughts.clear()
        turn.thoughts.append(reasoning)

    def _call(self, call: Message) -> None:
        self._open_turn().calls.append(call)

    def _open_turn(self) -> "_Turn":
        if self._turn is None:
            self._turn = _Turn()
        return self._turn

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._messages.append(self._turn.message())
            self._turn = None

    def messages(self) -> list[Message]:
        # Reasoning at the very end is of a stream that broke: the call is sent again, and the model thinks anew.
        if self._turn is not None and (self._turn.said or self._turn.calls):
            self._end_turn()
        return [*_system(self._leading), *self._messages]


def _system(leading: list[str | list[Part]]) -> list[Message]:
    pictured = any(part["type"] != "text" for content in leading if isinstance(content, list) for part in content)
    if len(leading) == 1 or pictured:
        return [{"role": "system", "content": content} for content in leading]
    texts = [
        content if isinstance(content, str) else "\n".join(part["text"] for part in content) for content in leading
    ]
    return [{"role": "system", "content": "\n\n".join(texts)}] if texts else []


# ---------------------------------------------------------------------------------------------------------------- items


def _call(item: dict[str, Any], place: str, names: ToolNames) -> Message:
    name = as_text(item.get("name"), f"{place}.name")
    namespace = optional_text(item.get("namespace"), f"{place}.namespace")
    if item["type"] == "custom_tool_call":
        tool = Tool(name, namespace, "custom")
        arguments = msgspec.json.encode({INPUT: as_text(item.get("input"), f"{place}.input")}).decode()
    else:
        tool = Tool(name, namespace)
        arguments = as_text(item.get("arguments"), f"{place}.arguments")
    return {
        "id": as_text(item.get("call_id"), f"{place}.call_id"),
        "type": "function",
        "function": {"name": names.flat(tool), "arguments": arguments},
    }


def _reasoning(item: dict[str, Any], place: str) -> str | None:
    """The text of a reasoning item: its content, else what this gateway sealed, else its summary."""
    for key in ("content", "encrypted_content", "summary"):
        value = item.get(key)
        if not value:
            continue
        if key == "encrypted_content":
            found = unseal(as_text(value, f"{place}.{key}"))
        else:
            parts = (as_object(part, f"{place}.{key}") for part in as_list(value, f"{place}.{key}"))
            found = "\n".join(as_text(part.get("text"), f"{place}.{key}.text") for part in parts)
        if found:
            return found
    return None


def _content(value: Any, place: str, *, joins: bool | None = None) -> str | list[Part]:
    """A message's content: a string for text alone.

    Several texts stay parts (`joins=None`: the engine puts them together as the model's template wants them), or are joined
    with line feeds (True: the output of a tool, a string in most templates) or with nothing (False: what a model said).
    """
    if isinstance(value, str):
        return value
    parts = [_part(part, f"{place}[{index}]") for index, part in enumerate(as_list(value, place))]
    if len(parts) == 1 or joins is not None or not parts:
        texts = [part["text"] for part in parts if part["type"] == "text"]
        if len(texts) == len(parts):
            return ("\n" if joins else "").join(texts)
    return parts


def _part(value: Any, place: str) -> Part:
    part = as_object(value, place)
    kind = part.get("type")
    if kind in _TEXTS:
        return _text_part(as_text(part.get("text"), f"{place}.text"))
    match kind:
        case "refusal":
            return _text_part(as_text(part.get("refusal"), f"{place}.refusal"))
        case "input_image" | "image_url":
            return _image(part, place)
        case "input_audio":
            audio = as_object(part.get("input_audio"), f"{place}.input_audio")
            return {"type": "input_audio", "input_audio": audio}
        case "input_file":
            raise beyond(f"{place}.type", f"{place} is a file, which an engine cannot read: send its text")
        case _:
            raise wrong(f"{place}.type", "input_text, input_image, input_audio, output_text or refusal")


def _text_part(said: str) -> Part:
    return {"type": "text", "text": said}


def _image(part: Part, place: str) -> Part:
    value = part.get("image_url")
    if value is None:
        raise beyond(f"{place}.image_url", f"{place}.image_url is needed: files are not stored here")
    image = dict(value) if isinstance(value, dict) else {"url": value}
    as_text(image.get("url"), f"{place}.image_url")
    detail = optional_text(part.get("detail"), f"{place}.detail")
    if detail is not None:
        image["detail"] = detail
    return {"type": "image_url", "image_url": image}
