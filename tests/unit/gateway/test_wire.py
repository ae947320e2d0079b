"""The connections to engines: what comes is what was sent, however it is cut; what breaks says how."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest

from gateway.upstream import wire
from gateway.upstream.wire import Pool, Reply
from tests.integration.gateway_stand import wait_for

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: Application/JSON; charset=utf-8\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@contextlib.asynccontextmanager
async def a_pool(*answers: bytes, close: bool = False, **bounds: float) -> AsyncIterator[tuple[Pool, list[bytes]]]:
    """Connections to a server that answers the requests of a connection in turn; the heads that it got."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            for answer in answers:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                for byte in (answer[i : i + 7] for i in range(0, len(answer), 7)):
                    writer.write(byte)
                    await writer.drain()
            if not close:
                await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base/"
        pool = Pool(url, **({"connect_timeout": 5.0, "silence": 5.0, "keep_alive": 5.0} | bounds))
        try:
            yield pool, heads
        finally:
            pool.close()


async def ask(pool: Pool, ended: list[str] | None = None, body: bytes = b"") -> Reply:
    head = pool.head("POST", "/v1/x", [(b"x-a", b"b")], len(body))
    return await pool.ask(head, body, lambda: (ended if ended is not None else []).append("ended"))


def play(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


def test_answers_come_whole_over_one_connection() -> None:
    async def test() -> None:
        chunked = CHUNKED + b"3\r\nhel\r\n2\r\nlo\r\n0\r\nx-trailer: t\r\n\r\n"
        informed = b"HTTP/1.1 100 Continue\r\nx-early: 1\r\n\r\n" + WHOLE
        async with a_pool(WHOLE, chunked, informed) as (pool, heads):
            ended: list[str] = []
            for number in range(3):
                reply = await ask(pool, ended)
                assert (reply.status, await reply.read(5)) == (200, b"hello")
                assert [name for name, _ in reply.raw_headers if name.startswith(b"x-")] == []
                assert len(ended) == number + 1
            assert len(pool._all) == 1
            assert heads[0].startswith(b"POST /base/v1/x HTTP/1.1\r\nHost: 127.0.0.1:")
            assert b"\r\nx-a: b\r\ncontent-length: 0\r\n\r\n" in heads[0]

    play(test)


def test_the_content_type_is_named_without_its_parameters() -> None:
    async def test() -> None:
        async with a_pool(WHOLE) as (pool, _):
            assert (await ask(pool)).content_type == "application/json"

    play(test)


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async def test() -> None:
        async with a_pool(b"HTTP/1.1 200 OK\r\n\r\nall of it", close=True) as (pool, _):
            assert await (await ask(pool)).read(100) == b"all of it"
            assert not pool._all, "and it is not used again"

    play(test)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", aiohttp.ServerDisconnectedError),
        (b"HTTP/1.1 200", aiohttp.ClientPayloadError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", aiohttp.ClientPayloadError),
        (CHUNKED + b"3\r\nhel", aiohttp.ClientPayloadError),
        (CHUNKED + b"zz\r\nhel", aiohttp.ClientPayloadError),
        (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", aiohttp.ClientPayloadError),
        (b"x" * 100, aiohttp.ClientPayloadError),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * wire.MAX_HEAD_BYTES, aiohttp.ClientPayloadError),
    ],
)
def test_what_breaks_is_an_error_and_ends_the_connection(answer: bytes, error: type[Exception]) -> None:
    async def test() -> None:
        async with a_pool(answer, close=True) as (pool, _):
            ended: list[str] = []
            with pytest.raises(error):
                await (await ask(pool, ended)).read(100)
            assert ended == ["ended"]
            assert not pool._all

    play(test)


def test_silence_is_bounded_also_after_an_informational_answer_and_in_the_middle() -> None:
    async def test() -> None:
        for answer in (b"HTTP/1.1 100 Continue\r\n\r\n", CHUNKED + b"3\r\nhel\r\n"):
            async with a_pool(answer, silence=0.1) as (pool, _):
                with pytest.raises(TimeoutError):
                    await (await ask(pool)).read(100)

    play(test)


def test_what_nobody_asked_for_closes_the_connection() -> None:
    async def test() -> None:
        async with a_pool(WHOLE + WHOLE) as (pool, _):
            assert await (await ask(pool)).read(100) == b"hello"
            await wait_for(lambda: not pool._all, "it is closed")

    play(test)


def test_a_connection_that_nobody_needs_is_closed() -> None:
    async def test() -> None:
        async with a_pool(WHOLE, WHOLE, silence=0.05, keep_alive=0.05) as (pool, heads):
            assert await (await ask(pool)).read(100) == b"hello"
            await wait_for(lambda: not pool._all, "it is closed")
            assert await (await ask(pool)).read(100) == b"hello"
            assert len(heads) == 2

    play(test)


def test_who_gives_up_closes_the_connection() -> None:
    async def test() -> None:
        async with a_pool(CHUNKED + b"3\r\nhel\r\n") as (pool, _):
            ended: list[str] = []
            async with await ask(pool, ended) as reply:
                assert await anext(reply.parts()) == b"hel"
            assert (ended, pool._all) == (["ended"], set())

    play(test)


def test_what_came_while_the_reader_was_away_is_one_part() -> None:
    async def test() -> None:
        async with a_pool(CHUNKED + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n") as (pool, _):
            reply = await ask(pool)
            await wait_for(lambda: reply.done, "the answer is here")
            assert [part async for part in reply.parts()] == [b"hello"]
            assert reply._size == 0

    play(test)


def test_a_slow_reader_slows_the_engine_and_a_reply_has_its_bound() -> None:
    async def test() -> None:
        size = 64 * wire.HIGH_WATER
        sent = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
                    for _ in range(64):
                        writer.write(bytes(wire.HIGH_WATER))
                        await writer.drain()
                        sent += wire.HIGH_WATER

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            pool = Pool(url, connect_timeout=5, silence=5, keep_alive=5)
            reply = await ask(pool)
            parts = reply.parts()
            received = len(await anext(parts))
            for _ in range(200):
                await asyncio.sleep(0)
            assert reply._size < 2**22, "it waits for its reader"
            async for part in parts:
                received += len(part)
            assert (received, sent) == (size, size)
            assert await (await ask(pool)).read(wire.HIGH_WATER) is None
            pool.close()

    play(test)


def test_nobody_listens() -> None:
    async def test() -> None:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        ended: list[str] = []
        with pytest.raises(aiohttp.ClientConnectorError, match=f"127.0.0.1:{port}"):
            await ask(Pool(f"http://127.0.0.1:{port}", connect_timeout=5, silence=5, keep_alive=5), ended)
        assert ended == ["ended"]

    play(test)
