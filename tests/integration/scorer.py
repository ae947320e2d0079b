"""An engine as vLLM speaks: prompt log-probs, scores, pooled vectors, classes, and a judge that says what it is told to."""

import json
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web


@dataclass
class Scorer:
    """`faults` are statuses that it answers first; `words` are what the judge says, the last of them for ever."""

    port: int = 0
    faults: list[int] = field(default_factory=list)
    words: list[str] = field(default_factory=lambda: ["Score: 7"])
    asked: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    replies: dict[str, Any] = field(default_factory=dict)
    """Path → what is answered instead."""
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @staticmethod
    def log_prob(token: int, position: int) -> float:
        return -token / 64 - position / 1024

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.add_routes([web.post("/{path:.*}", self._answer)])
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        if self.faults:
            return web.json_response({"error": "no"}, status=self.faults.pop(0))
        self.asked.append(body)
        self.paths.append(request.path)
        self.keys.append(request.headers.get("authorization"))
        return web.json_response(self.replies.get(request.path) or self._say(request.path, body))

    def _say(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        match path:
            case "/score":
                return {"object": "list", "data": [{"index": 0, "object": "score", "score": 0.75}]}
            case "/pooling":
                return {"object": "list", "data": [{"index": 0, "object": "pooling", "data": [[0.1], [0.2], [0.5]]}]}
            case "/classify":
                return {"data": [{"index": 0, "label": "good", "probs": [0.9, 0.1], "num_classes": 2}]}
            case "/v1/chat/completions":
                words = self.words.pop(0) if len(self.words) > 1 else self.words[0]
                message = {"role": "assistant", "content": words}
                return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        ids = body["prompt"]
        told = [
            {str(token): {"logprob": self.log_prob(token, position), "rank": 1, "decoded_token": "x"}}
            for position, token in enumerate(ids)
        ]
        return {"choices": [{"index": 0, "text": "x", "prompt_logprobs": [None, *told[1:]]}]}
