"""What Anthropic promises of a message's event stream, written down as a reader that takes nothing else."""

import json
from typing import Any

PIECES = {
    "text": {"text_delta": "text"},
    "thinking": {"thinking_delta": "thinking", "signature_delta": "signature"},
    "tool_use": {"input_json_delta": "partial_json"},
}
REASONS = {"end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"}


def events(stream: bytes) -> list[tuple[str, dict[str, Any]]]:
    """(name, data) of each event; every event has exactly the two lines that Anthropic sends."""
    assert stream == b"" or stream.endswith(b"\n\n")
    found = []
    for event in stream.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        read = json.loads(data[6:])
        assert read["type"] == name[7:]
        found.append((name[7:], read))
    return found


def read_message(stream: bytes) -> dict[str, Any]:
    """The message that a whole stream builds. Raises AssertionError at the first thing that is not in order."""
    (first, started), *rest = events(stream)
    assert first == "message_start"
    message = started["message"]
    check_message(message, ended=False)
    assert message["content"] == []
    content: list[dict[str, Any]] = []
    inputs: dict[int, str] = {}
    block: dict[str, Any] | None = None
    names = [name for name, _ in rest]
    assert names[-2:] == ["message_delta", "message_stop"]
    for name, data in rest[:-2]:
        if name == "content_block_start":
            assert block is None, "a block begins inside another"
            assert data["index"] == len(content)
            block = data["content_block"]
            assert _is_empty(block)
            content.append(block)
        else:
            assert block is not None, "outside of a block"
            assert data["index"] == len(content) - 1
            if name == "content_block_delta":
                _add(block, data["delta"], inputs, data["index"])
            else:
                assert name == "content_block_stop"
                block = None
    assert block is None, "the last block has no end"
    for index, text in inputs.items():
        content[index]["input"] = _input(text)
    ending = rest[-2][1]
    usage = {**message["usage"], **ending["usage"]}
    message = {**message, **ending["delta"], "content": content, "usage": usage}
    check_message(message, ended=True)
    return message


def check_message(message: dict[str, Any], *, ended: bool) -> None:
    """What every message has."""
    assert message["id"].startswith("msg_")
    assert (message["type"], message["role"]) == ("message", "assistant")
    assert isinstance(message["model"], str)
    assert message["stop_reason"] in REASONS if ended else message["stop_reason"] is None
    assert (message["stop_sequence"] is not None) == (message["stop_reason"] == "stop_sequence")
    for key in ("input_tokens", "output_tokens"):
        assert isinstance(message["usage"][key], int)
    assert message["content"] or not ended
    for block in message["content"]:
        if block["type"] == "tool_use":
            assert block["id"]
            assert isinstance(block["input"], dict)
        if block["type"] == "thinking":
            assert block["signature"]


def _is_empty(block: dict[str, Any]) -> bool:
    if block["type"] == "tool_use":
        return bool(block["id"]) and block["input"] == {}
    return all(value == "" for key, value in block.items() if key != "type")


def _add(block: dict[str, Any], delta: dict[str, Any], inputs: dict[int, str], index: int) -> None:
    key = PIECES[block["type"]][delta["type"]]
    assert isinstance(delta[key], str)
    assert delta[key], "a delta says something"
    if delta["type"] == "input_json_delta":
        inputs[index] = inputs.get(index, "") + delta[key]
    elif delta["type"] == "signature_delta":
        block[key] = delta[key]
    else:
        assert not block.get("signature"), "nothing is thought after the signature"
        block[key] += delta[key]


def _input(text: str) -> Any:
    try:
        read = json.loads(text)
    except ValueError:
        return {"INVALID_JSON": text}
    return read if isinstance(read, dict) else {"INVALID_JSON": text}
