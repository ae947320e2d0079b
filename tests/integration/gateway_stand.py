"""A gateway under test in this process, an engine that answers what it is told, and a reader of what became durable."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, web

from claw_r1.bus import apply_topics
from claw_r1.events import Fact, GroupFact, Step, StepStarted
from claw_r1.ids import new_id
from claw_r1.local.ports import find_port
from claw_r1.settings import GatewaySettings
from claw_r1.topics import all_topics
from gateway.app import Gateway
from gateway.server import listening
from tests.conftest import Stack
from tests.log import facts_of

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
DEADLINE = 60.0


def a_reply(prompt: list[int], response: list[int], text: str = "hello", **over: Any) -> dict[str, Any]:
    """A whole chat completion in vLLM's shape."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "logprobs": {
            "content": [{"token": "t", "logprob": -0.5, "bytes": [116], "top_logprobs": []} for _ in response]
        },
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": response,
        "weight_versions": [{"version": "3", "start": 0, "end": len(response)}],
    }
    usage = {"prompt_tokens": len(prompt), "completion_tokens": len(response), "total_tokens": len(prompt + response)}
    reply = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "tiny", "choices": [choice]}
    return reply | {"usage": usage, "prompt_token_ids": prompt} | over


def chunks(prompt: list[int], response: list[int], *, usage: bool = True) -> list[bytes]:
    """A streamed chat completion in vLLM's shape, one event an item, the terminal event last."""
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
    first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    events: list[dict[str, Any]] = [base | {"choices": [first], "prompt_token_ids": prompt}]
    for number, token in enumerate(response):
        last = number == len(response) - 1
        choice = {
            "index": 0,
            "delta": {"content": f"w{number} "},
            "logprobs": {"content": [{"token": "t", "logprob": -0.25, "bytes": [], "top_logprobs": []}]},
            "finish_reason": "stop" if last else None,
            "token_ids": [token],
        }
        events.append(base | {"choices": [choice]})
    if usage:
        counts = {"prompt_tokens": len(prompt), "completion_tokens": len(response)}
        events.append(base | {"choices": [], "usage": counts})
    return [b"data: " + json.dumps(e).encode() + b"\n\n" for e in events] + [b"data: [DONE]\n\n"]


@dataclass
class Engine:
    """An engine that answers by `answer`, and remembers what it was asked."""

    url: str
    answer: Handler
    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a caller closed its connection before the end."""

    @property
    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(body) for body in self.bodies]


def replying(reply: dict[str, Any], status: int = 200) -> Handler:
    """Answers a whole reply."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(reply, status=status)

    return answer


def streaming(events: list[bytes], hold: asyncio.Event | None = None) -> Handler:
    """Answers a stream; with `hold`, the first half, and the rest once it is set."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for number, event in enumerate(events):
            if hold is not None and number == len(events) // 2:
                await hold.wait()
            await response.write(event)
        await response.write_eof()
        return response

    return answer


@contextlib.asynccontextmanager
async def an_engine(answer: Handler, *, version: str | None = None) -> AsyncIterator[Engine]:
    """A listening engine; with a version it says that it is a vLLM."""
    port = find_port()
    engine = Engine(f"http://127.0.0.1:{port}", answer)

    async def chat(request: web.Request) -> web.StreamResponse:
        engine.paths.append(request.path)
        engine.bodies.append(await request.read())
        try:
            return await engine.answer(request)
        except (asyncio.CancelledError, ConnectionError):
            engine.gone.set()
            raise

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    app = web.Application(client_max_size=2**26)
    app.add_routes(
        [
            web.post("/v1/chat/completions", chat),
            web.post("/v1/completions", chat),
            web.post("/tokenize", chat),
            web.get("/v1/models", models),
        ]
    )
    if version is not None:

        async def tell(request: web.Request) -> web.Response:
            return web.json_response({"version": version})

        app.router.add_get("/version", tell)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield engine
    finally:
        await runner.cleanup()


@dataclass
class Stand:
    """A ready gateway: `url`, what it recorded, and a client."""

    url: str
    kafka: str
    gateway: Gateway
    http: ClientSession

    async def facts(self, run_id: str) -> list[Fact]:
        """The run's facts, each partition in its order; other tests write to the topic too."""
        return await facts_of(self.kafka, run_id)

    async def steps(self, run_id: str) -> list[Step]:
        return [fact for fact in await self.facts(run_id) if isinstance(fact, Step)]

    async def some_steps(self, run_id: str, number: int) -> list[Step]:
        """The run's steps, as soon as there are so many."""
        async with asyncio.timeout(DEADLINE):
            while True:
                if len(found := await self.steps(run_id)) >= number:
                    return found
                await asyncio.sleep(0.05)

    async def check_announced(self, run_id: str) -> None:
        """Every announced step has a Step of the same id behind it, once."""
        facts = await self.facts(run_id)
        announced = [fact.step_id for fact in facts if isinstance(fact, StepStarted)]
        recorded = [fact.step_id for fact in facts if isinstance(fact, Step) and fact.dialect != "submitted"]
        assert sorted(announced) == sorted(recorded)
        for step_id in announced:
            kinds = [f.TYPE for f in facts if isinstance(f, GroupFact) and getattr(f, "step_id", None) == step_id]
            assert kinds[0] == "step-started"


@contextlib.asynccontextmanager
async def a_gateway(kafka: str, *upstream: str, run: str, **settings: Any) -> AsyncIterator[Stand]:
    """A ready gateway on topics that are there."""
    await apply_topics(kafka, all_topics())
    async with _a_ready_gateway(kafka, *upstream, run=run, **settings) as stand:
        yield stand


@contextlib.asynccontextmanager
async def _a_ready_gateway(kafka: str, *upstream: str, run: str, **settings: Any) -> AsyncIterator[Stand]:
    async with an_unready_gateway(kafka, *upstream, run=run, **settings) as stand:
        await wait_for(lambda: stand.gateway.ready() is None, "the gateway is ready")
        yield stand


@contextlib.asynccontextmanager
async def an_unready_gateway(kafka: str, *upstream: str, run: str, **settings: Any) -> AsyncIterator[Stand]:
    """A listening gateway, ready or not."""
    port = find_port()
    fields = {"kafka": kafka, "port": port, "upstream": upstream, "run": run, "fleet": run} | settings
    async with (
        listening(GatewaySettings.model_validate(fields)) as gateway,
        ClientSession() as http,
    ):
        yield Stand(f"http://127.0.0.1:{port}", kafka, gateway, http)


_have_topics: set[Path] = set()
"""Data of stacks whose broker has the topics: to look again costs more than many a test."""


def with_engine(
    stack: Stack,
    answer: Handler,
    body: Callable[[Stand, Engine, str], Awaitable[None]],
    *,
    version: str | None = None,
    **settings: Any,
) -> None:
    """Run `body` on a gateway before an engine, with a run of its own; every step that was announced must be on the log."""

    async def run() -> None:
        name = new_id()
        if stack.data not in _have_topics:
            await apply_topics(stack.kafka, all_topics())
            _have_topics.add(stack.data)
        async with (
            an_engine(answer, version=version) as engine,
            _a_ready_gateway(stack.kafka, engine.url, run=name, **settings) as stand,
        ):
            await body(stand, engine, name)
            await stand.check_announced(name)

    asyncio.run(run())


async def wait_for(condition: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
    """Wait for a condition in this loop."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while not condition():
        assert loop.time() < end, f"after {deadline:g} s still not: {what}"
        await asyncio.sleep(0.01)
