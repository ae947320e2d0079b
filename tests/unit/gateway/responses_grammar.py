"""The grammar of a response's events: every event is checked against the ones before it, and they add up to a response."""

import json
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

_EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
TERMINAL = ("response.completed", "response.incomplete", "response.failed")
_DELTAS = {
    "response.output_text": ("message", "output_text", "text"),
    "response.reasoning_text": ("reasoning", "reasoning_text", "text"),
    "response.function_call_arguments": ("function_call", None, "arguments"),
    "response.custom_tool_call_input": ("custom_tool_call", None, "input"),
}


def events_of(stream: bytes) -> list[dict[str, Any]]:
    """The events, each with its name equal to its type."""
    events = []
    for event in stream.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        events.append(value)
    return events


def response_of(stream: bytes, *, ended: bool = True) -> dict[str, Any]:
    """The response that the events add up to. `ended`: whether a terminal event is due."""
    events = events_of(stream)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    terminal = [event["type"] in TERMINAL for event in events]
    assert terminal == [False] * (len(events) - 1) + [ended]
    for event in events:
        if event["type"] != "error":
            _EVENT.validate_python(event)
    grammar = _Grammar(events[0]["response"])
    assert events[1]["response"] == events[0]["response"]
    for event in events[2:]:
        grammar.take(event)
    return grammar.response


class _Grammar:
    def __init__(self, created: dict[str, Any]) -> None:
        assert created["status"] == "in_progress"
        assert created["output"] == []
        assert created["usage"] is None
        self.response: dict[str, Any] = {**created, "output": []}
        self._open: dict[str, Any] | None = None
        self._part: dict[str, Any] | None = None
        self._said = False

    def take(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "error":
            assert event["error"]["message"] == event["message"]
        elif kind in TERMINAL:
            self._end(event["response"], kind.removeprefix("response."))
        elif kind == "response.output_item.added":
            self._add(event)
        elif kind == "response.output_item.done":
            self._finish(event)
        else:
            self._grow(event)

    def _add(self, event: dict[str, Any]) -> None:
        assert self._open is None
        item = event["item"]
        assert event["output_index"] == len(self.response["output"])
        assert item["status"] == "in_progress"
        assert item["id"] not in [other["id"] for other in self.response["output"]]
        assert not item.get("content")
        assert not item.get("arguments")
        assert not item.get("input")
        self._open = item
        self._part = None
        self._said = False

    def _grow(self, event: dict[str, Any]) -> None:
        item = self._open
        assert item is not None
        assert event["item_id"] == item["id"]
        assert event["output_index"] == len(self.response["output"])
        kind = event["type"]
        if kind == "response.content_part.added":
            assert self._part is None
            assert event["content_index"] == len(item["content"])
            self._part = event["part"]
            assert self._part["text"] == ""
            return
        if kind == "response.content_part.done":
            assert self._said
            assert self._part is not None
            assert event["content_index"] == len(item["content"])
            assert event["part"]["text"] == self._part["text"]
            item["content"].append(event["part"])
            self._part = None
            return
        name, _, step = kind.rpartition(".")
        item_type, part_type, field = _DELTAS[name]
        assert item["type"] == item_type
        holder = item if part_type is None else self._part
        assert holder is not None
        assert not self._said
        if part_type is not None:
            assert holder["type"] == part_type
            assert event["content_index"] == 0
        if step == "delta":
            assert event["delta"]
            holder[field] += event["delta"]
        else:
            assert step == "done"
            assert event[field] == holder[field]
            self._said = True

    def _finish(self, event: dict[str, Any]) -> None:
        item = self._open
        assert item is not None
        assert self._said
        assert self._part is None
        assert event["output_index"] == len(self.response["output"])
        done = event["item"]
        assert done["status"] in ("completed", "incomplete")
        added = ("status", "encrypted_content")
        assert {k: v for k, v in done.items() if k not in added} == {k: v for k, v in item.items() if k not in added}
        self.response["output"].append(done)
        self._open = None

    def _end(self, final: dict[str, Any], status: str) -> None:
        Response.model_validate(final)
        assert final["status"] == status
        assert (final["error"] is None) == (status != "failed")
        assert (final["incomplete_details"] is None) == (status != "incomplete")
        if status == "failed":
            assert final["output"][: len(self.response["output"])] == self.response["output"]
        else:
            assert self._open is None
            assert final["output"] == self.response["output"]
        same = self.response.keys() - {"status", "output", "usage", "error", "incomplete_details", "model"}
        assert {key: final[key] for key in same} == {key: self.response[key] for key in same}
        self.response = final
