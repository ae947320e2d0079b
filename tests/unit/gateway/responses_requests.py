"""Requests to Responses: small parts of them, and what real clients sent, as it was recorded."""

import json
from typing import Any

from tests.unit.gateway.recordings import FOLDER

CLIENTS = FOLDER.parent / "clients"
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}, "strict": True}
USER = {"role": "user", "content": "Hi"}


def call(call_id: str = "c1", name: str = "f", arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, "id": "fc_1"}


def output(call_id: str = "c1", value: Any = "42") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": value}


def recorded(name: str) -> list[dict[str, Any]]:
    recorded = json.loads((CLIENTS / f"{name}.json").read_text("utf-8"))
    return [_readable(call["body"]) for call in recorded["calls"]]


def _readable(body: dict[str, Any]) -> dict[str, Any]:
    """The body with the tools that the recording cut short written out."""
    tools = []
    for tool in body.get("tools", []):
        if "_type" in tool:
            tool = {"type": tool["_type"], "name": tool["_tool"]}
        if tool["type"] == "namespace":
            tool["tools"] = [{"type": "function", "name": "spawn"}]
        tools.append(tool)
    return {**body, "tools": tools}


RECORDED_CLIENTS = sorted(
    path.stem for path in CLIENTS.glob("*.json") if json.loads(path.read_text("utf-8"))["dialect"] == "responses"
)
