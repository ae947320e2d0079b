"""The task that every client plays: use the tool with a code, then say what the tool answered.

A driver is a small program around an unmodified client. It prints one JSON object; "text" is the client's last words.
"""

import argparse
import json
from typing import Any

MODEL = "tiny"
TASK = "TASK-c0de: use your tool once with the code c0de, then report the marker that it gives you."
DESCRIPTION = "Look up the marker that belongs to a code."
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"code": {"type": "string", "description": "the task's code"}},
    "required": ["code"],
    "additionalProperties": False,
}


def lookup(code: str) -> str:
    """Look up the marker that belongs to a code."""
    return f"marker-42-{code}"


def run_call(name: str, arguments: str) -> str:
    """What the tool `name` answers to its JSON arguments."""
    assert name == "lookup", name
    return lookup(**json.loads(arguments))


def read_arguments() -> argparse.Namespace:
    """base_url, api, key, and the flags stream, asynchronous, thinking, retries."""
    parser = argparse.ArgumentParser()
    parser.add_argument("base_url")
    parser.add_argument("--api", default="chat")
    parser.add_argument("--key", default="none")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--asynchronous", action="store_true")
    parser.add_argument("--thinking", action="store_true")
    parser.add_argument("--retries", type=int, default=2)
    return parser.parse_args()


def tell(text: str | None, **more: Any) -> None:
    """End a driver's run with what its client said."""
    print(json.dumps({"text": text, **more}))
