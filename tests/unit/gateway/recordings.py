"""The recorded exchanges of a real engine, as tests read them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "golden" / "vllm"


@dataclass(frozen=True)
class Recording:
    """One chat exchange: the request as sent, and the reply's bytes."""

    name: str
    request: bytes
    status: int
    content_type: str
    reply: bytes
    streamed: bool

    def chunks(self) -> list[dict[str, Any]]:
        """The stream's JSON, read the plain way."""
        lines = [line[6:] for line in self.reply.decode().split("\n") if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    def whole(self) -> dict[str, Any]:
        reply: dict[str, Any] = json.loads(self.reply)
        return reply


def recordings(path: str = "/v1/chat/completions") -> Iterator[Recording]:
    """Every exchange with an API of the engine that has a request body."""
    for file in sorted(FOLDER.glob("*.json")):
        recorded = json.loads(file.read_text("utf-8"))
        request, response = recorded["request"], recorded["response"]
        if request.get("path") != path or not isinstance(request.get("body"), dict):
            continue
        streamed = "body_file" in response
        reply = (
            (file.parent / response["body_file"]).read_bytes() if streamed else json.dumps(response["body"]).encode()
        )
        content_type = response["headers"]["content-type"]
        body = json.dumps(request["body"]).encode()
        yield Recording(file.stem, body, response["status"], content_type, reply, streamed)


def completed(path: str = "/v1/chat/completions") -> list[Recording]:
    return [recording for recording in recordings(path) if recording.status == 200]
