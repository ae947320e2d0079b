"""The messages of an Anthropic request become those of a chat request, as vLLM's own /v1/messages turns them.

Where it is not vLLM's way, the reason stands at the place. The main differences: results of tools come first, then all else
of their message, so that they follow the calls; texts of the assistant are joined without a line break, as they were sampled.

Invariants: a message gives the same chat messages whatever follows it, so that a longer conversation extends a shorter one;
blocks that an engine cannot read are refused, never dropped, but for what is opaque by nature (redacted thinking).
"""

import json
from typing import Any, Final

from gateway.dialects.values import (
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

Message = dict[str, Any]
Part = dict[str, Any]

BILLING: Final = "x-anthropic-billing-header"
"""So begins a block of Claude Code that differs from session to session: it would keep equal prompts from being equal."""


def read_messages(body: dict[str, Any], *, merge_system: bool) -> list[Message]:
    """Chat messages. `merge_system`: system messages inside the conversation go to its head. Raises Refusal(400)."""
    system = _system_texts(body.get("system"), "system")
    chat: list[Message] = []
    for index, message in enumerate(as_list(need(body, "messages", ""), "messages")):
        where = f"messages[{index}]"
        given = as_object(message, where)
        role = text_of(given, "role", where)
        content = need(given, "content", where)
        if role == "system":
            text = _inline_system(content, below(where, "content"))
            if text and merge_system:
                system.append(text)
            elif text:
                chat.append({"role": "system", "content": text})
        elif role == "user":
            chat.extend(_user(content, below(where, "content")))
        elif role == "assistant":
            chat.append(_assistant(content, below(where, "content")))
        else:
            raise wrong(f"{where}.role", "user, assistant or system")
    if not chat:
        raise wrong("messages", "a list with at least one message that says something")
    return [{"role": "system", "content": "".join(system)}, *chat] if system else chat


# -------------------------------------------------------------------------------------------------------------- system


def _system_texts(system: object, where: str) -> list[str]:
    if system is None:
        return []
    if isinstance(system, str):
        return [system] if system else []
    texts = []
    for index, block in enumerate(as_list(system, where)):
        at = f"{where}[{index}]"
        given = as_object(block, at)
        if text_of(given, "type", at) != "text":
            raise unsupported(f"{at}.type", "a system prompt holds text blocks only")
        text = text_of(given, "text", at)
        if text and not text.startswith(BILLING):
            texts.append(text)
    return texts


def _inline_system(content: object, where: str) -> str:
    """A system message inside the conversation; the blocks that change the tools are read with the tools."""
    if isinstance(content, str):
        return "" if content.startswith(BILLING) else content
    blocks = as_list(content, where)
    changes = ("tool_addition", "tool_removal")
    said = [block for block in blocks if not (isinstance(block, dict) and block.get("type") in changes)]
    return "".join(_system_texts(said, where))


# ---------------------------------------------------------------------------------------------------------------- user


def _user(content: object, where: str) -> list[Message]:
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    results: list[Message] = []
    pictures: list[Part] = []
    parts: list[Part] = []
    for index, block in enumerate(as_list(content, where)):
        at = f"{where}[{index}]"
        given = as_object(block, at)
        if text_of(given, "type", at) == "tool_result":
            text, images = _tool_result(given, at)
            results.append({"role": "tool", "tool_call_id": text_of(given, "tool_use_id", at), "content": text})
            pictures.extend(images)
        else:
            parts.extend(_parts(given, at))
    said = _joined([*pictures, *parts])
    return results if said is None else [*results, {"role": "user", "content": said}]


def _joined(parts: list[Part]) -> str | list[Part] | None:
    """A single text as a string: it is then the same whether the agent sent it as a string or as a list."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        text: str = parts[0]["text"]
        return text
    return parts or None


def _tool_result(block: dict[str, Any], where: str) -> tuple[str, list[Part]]:
    """Its text, and its images: a chat's tool message holds text only, so they go to the user message after it."""
    content = block.get("content")
    if content is None or isinstance(content, str):
        text, images = content or "", []
    else:
        parts: list[Part] = []
        for index, part in enumerate(as_list(content, f"{where}.content")):
            at = f"{where}.content[{index}]"
            parts.extend(_parts(as_object(part, at), at))
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        images = [part for part in parts if part["type"] != "text"]
    if not text and block.get("is_error") is True:
        text = "error"  # the text is the only place where a chat can say so
    return text, images


def _parts(block: dict[str, Any], where: str) -> list[Part]:
    """What a block says, as parts of a chat message."""
    kind = text_of(block, "type", where)
    if kind == "text":
        return _text(text_of(block, "text", where))
    if kind == "image":
        return [{"type": "image_url", "image_url": {"url": _image_url(block, where)}}]
    if kind == "document":
        return _document(block, where)
    if kind == "search_result":
        head = [text_of(block, key, where) for key in ("title", "source")]
        content = as_list(need(block, "content", where), f"{where}.content")
        texts = [text_of(as_object(part, at), "text", at) for part, at in _numbered(content, f"{where}.content")]
        return _text("\n".join([*head, *texts]))
    if kind == "tool_reference":
        return _text(text_of(block, "tool_name", where))
    raise unsupported(f"{where}.type", f"a block of type {kind[:80]!r} cannot be sent to an engine here")


def _numbered(values: list[Any], where: str) -> list[tuple[Any, str]]:
    return [(value, f"{where}[{index}]") for index, value in enumerate(values)]


def _text(text: str) -> list[Part]:
    return [{"type": "text", "text": text}] if text else []


def _image_url(block: dict[str, Any], where: str) -> str:
    source = as_object(need(block, "source", where), f"{where}.source")
    kind = text_of(source, "type", f"{where}.source")
    if kind == "url":
        return text_of(source, "url", f"{where}.source")
    if kind == "base64":
        media_type = text_of(source, "media_type", f"{where}.source")
        return f"data:{media_type};base64,{text_of(source, 'data', f'{where}.source')}"
    raise unsupported(f"{where}.source.type", f"an image of source {kind[:80]!r}: send base64 or a url")


def _document(block: dict[str, Any], where: str) -> list[Part]:
    """A document's text with its title and context before it. An engine reads no PDF."""
    source = as_object(need(block, "source", where), f"{where}.source")
    kind = text_of(source, "type", f"{where}.source")
    head = [as_text(block[key], f"{where}.{key}") for key in ("title", "context") if block.get(key) is not None]
    if kind == "text":
        return _text("\n".join([*head, text_of(source, "data", f"{where}.source")]))
    if kind == "content":
        content = need(source, "content", f"{where}.source")
        if isinstance(content, str):
            return _text("\n".join([*head, content]))
        parts = _text("\n".join(head))
        for part, at in _numbered(as_list(content, f"{where}.source.content"), f"{where}.source.content"):
            given = as_object(part, at)
            if text_of(given, "type", at) not in ("text", "image"):
                raise wrong(f"{at}.type", "text or image")
            parts.extend(_parts(given, at))
        return parts
    raise unsupported(f"{where}.source.type", f"a document of source {kind[:80]!r}: send its text")


# ----------------------------------------------------------------------------------------------------------- assistant


def _assistant(content: object, where: str) -> Message:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(as_list(content, where)):
        at = f"{where}[{index}]"
        given = as_object(block, at)
        kind = text_of(given, "type", at)
        if kind == "text":
            texts.append(text_of(given, "text", at))
        elif kind == "thinking":
            thoughts.append(text_of(given, "thinking", at))
        elif kind == "tool_use":
            calls.append(_tool_call(given, at))
        elif kind != "redacted_thinking":
            raise unsupported(f"{at}.type", f"a block of type {kind[:80]!r} cannot be sent to an engine here")
    message: Message = {"role": "assistant", "content": "".join(texts)}
    if any(thoughts):
        # vLLM reads `reasoning`, SGLang (and old versions of vLLM) `reasoning_content`.
        message["reasoning"] = message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _tool_call(block: dict[str, Any], where: str) -> dict[str, Any]:
    given = as_object(member(block, "input", {}), f"{where}.input")
    return {
        "id": text_of(block, "id", where),
        "type": "function",
        "function": {"name": text_of(block, "name", where), "arguments": _arguments(given)},
    }


def _arguments(given: dict[str, Any]) -> str:
    """JSON with ", " and ": ", as vLLM's own translation writes it; other than there, characters stay themselves.

    The text that was sampled is gone: the agent sends a value. This is the form in which models mostly write it, and most
    templates read it as a value anyway.
    """
    return json.dumps(given, ensure_ascii=False)
