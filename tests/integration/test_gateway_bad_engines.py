"""Engines that break HTTP: every call ends at once or at its bound, in the dialect's shape, and leaves nothing open."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from claw_r1.ids import new_id
from tests.conftest import Stack
from tests.integration.gateway_stand import Stand, a_gateway

pytestmark = pytest.mark.stack
ASKED: dict[str, Any] = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"w"},"token_ids":[1]}]}\n\n'
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@contextlib.asynccontextmanager
async def an_engine(*parts: bytes, stays: bool) -> AsyncIterator[str]:
    """It sends the parts to whoever asks, one by one, and closes the connection, or says nothing more."""
    over = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            for part in parts if head.startswith(b"POST") else ():
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.02)  # so that each part arrives alone
            if stays:
                await over.wait()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        over.set()
        server.close()


def with_bad_engine(
    stack: Stack, parts: tuple[bytes, ...], body: Callable[[Stand, str], Awaitable[None]], *, stays: bool = False
) -> None:
    async def run() -> None:
        name = new_id()
        async with (
            an_engine(*parts, stays=stays) as url,
            a_gateway(stack.kafka, url, run=name, read_timeout=1.0 if stays else 30.0, connect_timeout=30.0) as stand,
        ):
            async with asyncio.timeout(60):
                await body(stand, name)
            await stand.check_announced(name)

    asyncio.run(run())


async def ask(stand: Stand, path: str, **over: Any) -> tuple[int, Any]:
    async with stand.http.post(stand.url + path, json=ASKED | over) as response:
        said = await response.read()
        return response.status, json.loads(said) if response.content_type == "application/json" else said


@pytest.mark.parametrize("status", [204, 206, 302, 304, 600, 999])
def test_a_status_that_is_no_answer_is_a_bad_gateway(stack: Stack, status: int) -> None:
    async def body(stand: Stand, run: str) -> None:
        found, reply = await ask(stand, f"/{run}/p/v1/chat/completions")
        assert (found, reply["error"]["code"], str(status) in reply["error"]["message"]) == (
            502,
            "unparsable_reply",
            True,
        )
        found, reply = await ask(stand, f"/{run}/p/v1/messages/count_tokens")
        assert (found, reply["error"]["details"]) == (502, {"error_code": "unparsable_reply"})
        (step,) = await stand.steps(run)
        assert (step.status, step.capture.reasons) == ("failed", ("unparsable_reply", "failed"))

    head = f"HTTP/1.1 {status} Odd\r\nlocation: http://elsewhere/\r\ncontent-length: 0\r\n\r\n".encode()
    with_bad_engine(stack, (head,), body)


def test_an_engine_that_only_informs_is_not_waited_for_for_ever(stack: Stack) -> None:
    async def body(stand: Stand, run: str) -> None:
        found, reply = await ask(stand, f"/{run}/p/v1/chat/completions")
        assert (found, reply["error"]["code"]) == (504, "engine_timeout")

    with_bad_engine(stack, (b"HTTP/1.1 102 Processing\r\n\r\n",), body, stays=True)


@pytest.mark.parametrize("stays", [False, True])
def test_a_chunk_with_a_wrong_head_ends_the_call(stack: Stack, stays: bool) -> None:
    async def body(stand: Stand, run: str) -> None:
        async with stand.http.post(
            f"{stand.url}/{run}/p/v1/chat/completions", json=ASKED | {"stream": True}
        ) as response:
            said = await response.read()
        # What comes in one piece with the wrong head never reaches the gateway: then the call fails before its first byte.
        assert (response.status, said.startswith(CHUNK)) in ((200, True), (502, False))
        assert b'"engine_broke_off"' in said
        (step,) = await stand.steps(run)
        assert (step.status, step.capture.reasons[-1], step.capture.ok) == ("partial", "partial", False)
        found, reply = await ask(stand, f"/{run}/p/v1/messages/count_tokens")
        assert (found, reply["error"]["details"]) == (502, {"error_code": "engine_broke_off"})

    good = b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK)
    with_bad_engine(stack, (STREAM + good, b"ZZ\r\n", b"more\r\n0\r\n\r\n"), body, stays=stays)


def test_a_break_after_the_engines_own_error_is_no_second_error(stack: Stack) -> None:
    error = b'data: {"error":{"message":"out of memory","code":500}}\n\n'

    async def body(stand: Stand, run: str) -> None:
        found, said = await ask(stand, f"/{run}/p/v1/messages", stream=True)
        assert (found, said.count(b"event: error"), b"out of memory" in said) == (200, 1, True)
        (step,) = await stand.steps(run)
        assert step.capture.reasons == ("engine_error", "partial")

    sent = CHUNK + error
    with_bad_engine(stack, (STREAM + b"%x\r\n%s\r\n" % (len(sent), sent), b"ZZ\r\n"), body)


@pytest.mark.parametrize("path", ["chat/completions", "messages", "completions"])
def test_a_reply_that_is_nested_too_deeply_is_unparsable(stack: Stack, path: str) -> None:
    async def body(stand: Stand, run: str) -> None:
        found, _ = await ask(stand, f"/{run}/p/v1/{path}", prompt="hi")
        assert found == 502
        (step,) = await stand.steps(run)
        assert step.capture.reasons[0] == "unparsable_reply"

    deep = b'{"choices":[{"index":0,"message":' + b"[" * 5000 + b"]" * 5000 + b"}]}"
    with_bad_engine(
        stack,
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(deep) + deep,),
        body,
    )
