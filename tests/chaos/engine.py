"""A stand-in engine whose tokens follow from the messages: a reply in a history has the ids that it was sampled as."""

import asyncio
import hashlib
import json
import random
from typing import Any

from aiohttp import web

MODEL = "tiny"
USER, ASSISTANT, TOOL, SYSTEM, CALL, END = 1, 2, 3, 4, 5, 6
"""Ids that are no words."""
ROLES = {"user": USER, "assistant": ASSISTANT, "tool": TOOL, "system": SYSTEM}
WORDS = 50_000
TOKEN_S = 0.004
"""Seconds a token takes."""


def word_id(word: str) -> int:
    return 10 + int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little") % WORDS


def render(message: dict[str, Any]) -> list[int]:
    """The ids of a message, with its role before and an end behind."""
    words = str(message.get("content") or "").split()
    ids = [ROLES[message["role"]], *map(word_id, words)]
    for call in message.get("tool_calls") or ():
        ids += [CALL, word_id(call["function"]["name"]), *map(word_id, call["function"]["arguments"].split())]
    return [*ids, END]


def prompt_of(messages: list[dict[str, Any]]) -> list[int]:
    return [token for message in messages for token in render(message)] + [ASSISTANT]


class Engine:
    """Answers chat completions, some of them with calls of tools, a few with an error."""

    def __init__(self, seed: int, errors: float = 0.01) -> None:
        self._rng = random.Random(seed)
        self._errors = errors
        self.answered = 0

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if self._rng.random() < self._errors:
            return web.json_response({"error": {"message": "out of memory", "code": 500}}, status=500)
        message = self._reply(bool(body.get("tools")))
        prompt, response = prompt_of(body["messages"]), render(message)[1:]
        self.answered += 1
        if body.get("stream"):
            return await self._stream(request, message, prompt, response)
        await asyncio.sleep(TOKEN_S * len(response))
        return web.json_response(_whole(message, prompt, response))

    def _reply(self, tools: bool) -> dict[str, Any]:
        words = " ".join(f"w{self._rng.randrange(WORDS)}" for _ in range(self._rng.randint(4, 24)))
        if not tools or self._rng.random() < 0.5:
            return {"role": "assistant", "content": words}
        arguments = json.dumps({"query": words})
        call = {"id": f"call-{self._rng.getrandbits(48):x}", "type": "function"}
        return {
            "role": "assistant",
            "content": None,
            "tool_calls": [call | {"function": {"name": "look", "arguments": arguments}}],
        }

    async def _stream(
        self, request: web.Request, message: dict[str, Any], prompt: list[int], response: list[int]
    ) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await reply.prepare(request)
        for event in _chunks(message, prompt, response):
            await asyncio.sleep(TOKEN_S)
            await reply.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await reply.write(b"data: [DONE]\n\n")
        await reply.write_eof()
        return reply


def _base(kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": MODEL}


def _log_probs(many: int) -> dict[str, Any]:
    return {"content": [{"token": "t", "logprob": -0.5, "bytes": [116], "top_logprobs": []} for _ in range(many)]}


def _usage(prompt: list[int], response: list[int]) -> dict[str, int]:
    return {
        "prompt_tokens": len(prompt),
        "completion_tokens": len(response),
        "total_tokens": len(prompt) + len(response),
    }


def _finish(message: dict[str, Any]) -> str:
    return "tool_calls" if message.get("tool_calls") else "stop"


def _whole(message: dict[str, Any], prompt: list[int], response: list[int]) -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": message,
        "logprobs": _log_probs(len(response)),
        "finish_reason": _finish(message),
        "stop_reason": None,
        "token_ids": response,
        "weight_versions": [{"version": "1", "start": 0, "end": len(response)}],
    }
    return _base("chat.completion") | {
        "choices": [choice],
        "usage": _usage(prompt, response),
        "prompt_token_ids": prompt,
    }


def _chunks(message: dict[str, Any], prompt: list[int], response: list[int]) -> list[dict[str, Any]]:
    """A token an event; a call of a tool comes as a whole with its first token."""
    base = _base("chat.completion.chunk")
    opening = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    events: list[dict[str, Any]] = [base | {"choices": [opening], "prompt_token_ids": prompt}]
    words = str(message["content"] or "").split()
    calls = [call | {"index": n} for n, call in enumerate(message.get("tool_calls") or ())]
    for number, token in enumerate(response):
        delta: dict[str, Any] = {"tool_calls": calls} if calls and number == 0 else {}
        if number < len(words):
            delta = {"content": (" " if number else "") + words[number]}
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": _log_probs(1),
            "finish_reason": _finish(message) if number == len(response) - 1 else None,
            "token_ids": [token],
        }
        events.append(base | {"choices": [choice]})
    return [*events, base | {"choices": [], "usage": _usage(prompt, response)}]


class Serving:
    """The engine on a port, for the length of an async with block."""

    def __init__(self, engine: Engine, port: int) -> None:
        self.engine = engine
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        app = web.Application(client_max_size=2**24)
        app.add_routes([web.post("/v1/chat/completions", engine.chat), web.get("/v1/models", _models)])
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)

    async def __aenter__(self) -> "Serving":
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


async def _models(request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
