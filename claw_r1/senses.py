"""What a message of a conversation means, so that two writings of it are known as one.

Pure. Clients drop a reply's reasoning, write `null` for "", split text into parts and format a tool's arguments anew.
"""

import hashlib
from typing import Any

import msgspec


def sense(message: bytes | memoryview) -> bytes:
    """16 bytes for a message's role, text and tool calls: equal however a client writes them again."""
    try:
        return _digest(_meaning(msgspec.json.decode(message)))
    except (ValueError, OverflowError, RecursionError):  # what cannot be read means its own bytes
        return _digest(message.hex())


def _digest(meaning: Any) -> bytes:
    return hashlib.blake2b(msgspec.json.encode(meaning, order="deterministic"), digest_size=16).digest()


def _meaning(value: Any) -> Any:
    if not isinstance(value, dict):
        value = {"content": value}
    calls = value.get("tool_calls")
    return [
        value.get("role"),
        _text(value.get("content")),
        [_tool(call) for call in calls] if isinstance(calls, list) else [],
        value.get("tool_call_id"),
    ]


def _text(content: Any) -> Any:
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    return content or ""


def _tool(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments")
    try:
        return [function.get("name"), msgspec.json.decode(arguments)] if isinstance(arguments, str) else function
    except (msgspec.DecodeError, UnicodeDecodeError):
        return [function.get("name"), arguments]
