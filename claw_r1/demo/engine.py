"""The demo's inference engine: vLLM's chat API over HTTP, answered by the small policy, with weights that a trainer pushes.

Invariants: weights change as a whole, between two tokens; versions only rise. One process, one loop: sampling takes well
under a millisecond, so it happens on the loop.
"""

import argparse
import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
import numpy as np

from claw_r1.demo import completions, policy, streaming
from claw_r1.demo.completions import ApiError, ChatRequest, Envelope, Generation

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MODEL: Final = "claw-demo"
# The vLLM whose chat API this is: clients that probe the version learn that weight versions come per span.
API_VERSION: Final = "0.33.0+claw.demo"
MAX_BODY: Final = 8 * 1024 * 1024
JSON: Final = b"application/json"

_encode = msgspec.json.Encoder().encode
_log = logging.getLogger("claw.engine")


class ClientGone(Exception):
    """The client closed the connection before its request was whole."""


@dataclass(slots=True)
class Engine:
    """The model that is served: the current weights, the source of chance, and how long a token takes (seconds)."""

    weights: policy.Weights
    rng: np.random.Generator
    model: str = MODEL
    token_delay: float = 0.0
    record: Path | None = None
    """Where every answered request is written down, a line each, with the ids as they were sampled."""
    started: int = field(default_factory=lambda: int(time.time()))

    def update(self, data: bytes, version: int) -> None:
        """Serve other weights from the next token on. Raises ApiError, and keeps the old ones, if they do not fit."""
        if version <= self.weights.version:
            message = f"version {version} is not above {self.weights.version}, which is served: versions only rise"
            raise ApiError(message, param="version", kind="ConflictError", status=409)
        try:
            weights = policy.weights_from_bytes(data)
        except ValueError as error:
            raise ApiError(str(error)) from error
        self.weights = policy.Weights(version, weights.table, weights.taste)
        _log.info("weights updated", extra={"version": version})

    def prepare(self, body: bytes) -> tuple[ChatRequest, list[int], list[Generation]]:
        request = completions.parse_request(body, self.model)
        prompt = completions.prompt_of(request)
        return request, prompt, completions.begin(request, prompt, self.rng)

    def write_down(self, body: bytes, envelope: Envelope, prompt: list[int], generations: list[Generation]) -> None:
        if self.record is not None:
            reply = completions.completion(envelope, prompt, generations)
            with self.record.open("ab", buffering=0) as file:
                file.write(_encode({"id": reply["id"], "request": msgspec.Raw(body), "reply": reply}) + b"\n")

    def envelope(self, request_id: str | None) -> Envelope:
        return Envelope(request_id or uuid.uuid4().hex[:16], int(time.time()), self.model)

    def complete(self, body: bytes, request_id: str | None = None) -> dict[str, Any]:
        """The whole answer at once, without a server."""
        _, prompt, generations = self.prepare(body)
        for generation in generations:
            while generation.finish_reason is None:
                generation.advance(self.weights)
        return completions.completion(self.envelope(request_id), prompt, generations)


def model_list(engine: Engine) -> dict[str, Any]:
    permission = {
        "id": f"modelperm-{engine.started:016x}",
        "object": "model_permission",
        "created": engine.started,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    model = {
        "id": engine.model,
        "object": "model",
        "created": engine.started,
        "owned_by": "claw-r1",
        "root": engine.model,
        "parent": None,
        "max_model_len": completions.MAX_MODEL_LEN,
        "permission": [permission],
    }
    return {"object": "list", "data": [model]}


async def _respond(send: Send, status: int, body: bytes, content_type: bytes = JSON) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers if body else headers[1:]})
    await send({"type": "http.response.body", "body": body})


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY:
            raise ApiError(f"the body is over {MAX_BODY} bytes", kind="PayloadTooLarge", status=413)
        parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts)


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


class Application:
    """The engine as an ASGI application."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.routes: dict[str, dict[str, Callable[[Scope, Receive, Send], Awaitable[None]]]] = {
            "/v1/chat/completions": {"POST": self.chat},
            "/v1/models": {"GET": self.models},
            "/health": {"GET": self.health},
            "/version": {"GET": self.version},
            "/weight_info": {"GET": self.weight_info},
            "/update_weights": {"POST": self.update_weights},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        methods = self.routes.get(scope["path"])
        if methods is None:
            await _respond(send, 404, b'{"detail":"Not Found"}')
        elif scope["method"] not in methods:
            await _respond(send, 405, b'{"detail":"Method Not Allowed"}')
        else:
            try:
                await methods[scope["method"]](scope, receive, send)
            except ApiError as error:
                await _respond(send, error.status, _encode(error.body))
            except ClientGone:
                _log.info("client gone before its request was read")

    async def health(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _respond(send, 200, b"")

    async def version(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _respond(send, 200, _encode({"version": API_VERSION}))

    async def models(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _respond(send, 200, _encode(model_list(self.engine)))

    async def weight_info(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _respond(send, 200, _encode({"weight_version": str(self.engine.weights.version)}))

    async def update_weights(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Body: the weights' bytes. Query: `version`, above the served one."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("version", [""])[0]
        if not given.isdecimal():
            raise ApiError(f"say ?version=N with a whole number, got {given!r}", param="version")
        self.engine.update(await _body(receive), int(given))
        await _respond(send, 200, _encode({"success": True, "new_version": given}))

    async def chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not (_header(scope, b"content-type") or "").startswith("application/json"):
            message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
            raise ApiError(message, kind="Bad Request")
        body = await _body(receive)
        request, prompt, generations = self.engine.prepare(body)
        envelope = self.engine.envelope(_header(scope, b"x-request-id"))
        if request.stream:
            await self._stream(envelope, request, prompt, generations, receive, send)
            self.engine.write_down(body, envelope, prompt, generations)
            return
        while any([await self._advance(generation) for generation in generations]):
            pass
        self.engine.write_down(body, envelope, prompt, generations)
        await _respond(send, 200, _encode(completions.completion(envelope, prompt, generations)))

    async def _advance(self, generation: Generation) -> bool:
        """Sample a token with the weights of this moment; False where the choice had ended."""
        if generation.finish_reason is not None:
            return False
        if self.engine.token_delay:
            await asyncio.sleep(self.engine.token_delay)
        generation.advance(self.engine.weights)
        return True

    async def _stream(
        self,
        envelope: Envelope,
        request: ChatRequest,
        prompt: list[int],
        generations: list[Generation],
        receive: Receive,
        send: Send,
    ) -> None:
        """One event a token, until the choices end or the client is gone."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def tell(event: streaming.Event) -> None:
            data = b"data: " + _encode(event) + b"\n\n"
            await send({"type": "http.response.body", "body": data, "more_body": True})

        gone = asyncio.ensure_future(receive())
        try:
            choices = [streaming.ChoiceStream(envelope, index, each) for index, each in enumerate(generations)]
            for choice in choices:
                await tell(streaming.opening(envelope, request, prompt, choice.index))
            open_ = choices
            while open_ and not gone.done():
                for choice in open_:
                    await self._advance(choice.generation)
                    for event in choice.drain():
                        await tell(event)
                open_ = [choice for choice in open_ if choice.generation.finish_reason is None]
                await asyncio.sleep(0)  # other requests, and new weights, get their turn between two tokens
            if not open_:
                if request.includes_usage:
                    await tell(streaming.closing(envelope, prompt, generations))
                await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        finally:
            gone.cancel()


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m claw_r1.demo.engine", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default=MODEL, help="the name under which the model is served")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling of requests that bring none")
    parser.add_argument("--weights", type=Path, help="begin with the weights in this file, if it exists")
    parser.add_argument("--token-delay", type=float, default=0.0, help="seconds a token takes")
    parser.add_argument("--record", type=Path, help="write every request and reply to this file, a line each")
    return parser.parse_args(arguments)


def main() -> None:
    import uvicorn

    given = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    weights = policy.initial_weights()
    if given.weights is not None and given.weights.exists():
        weights = policy.weights_from_bytes(given.weights.read_bytes())
    engine = Engine(weights, np.random.default_rng(given.seed), given.model, given.token_delay, given.record)
    config = uvicorn.Config(
        Application(engine),
        host=given.host,
        port=given.port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
