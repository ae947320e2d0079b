"""The proxy passes bytes on, late if it is told so, and cuts what it carries."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from claw_r1.local.ports import find_port
from tests.chaos.proxy import Proxy


@contextlib.asynccontextmanager
async def an_echo() -> AsyncIterator[Proxy]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    target, proxy_port = find_port(), find_port()
    server = await asyncio.start_server(echo, "127.0.0.1", target)
    proxy = Proxy(proxy_port, target)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
        server.close()


async def ask(proxy: Proxy, word: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        writer.write(word)
        return await reader.read(100)
    finally:
        writer.transport.abort()


def test_bytes_pass_both_ways_and_late() -> None:
    async def body() -> None:
        async with an_echo() as proxy:
            assert await ask(proxy, b"hello") == b"hello"
            loop, begun = asyncio.get_running_loop(), asyncio.get_running_loop().time()
            proxy.delay = 0.05
            assert await ask(proxy, b"late") == b"late"
            assert loop.time() - begun >= 0.1  # each way
            assert proxy.passed == 18

    asyncio.run(asyncio.wait_for(body(), 30))


def test_a_cut_closes_what_is_open_and_lets_nobody_in_until_it_is_mended() -> None:
    async def body() -> None:
        async with an_echo() as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(b"one")
            assert await reader.read(100) == b"one"
            proxy.cut()
            with contextlib.suppress(ConnectionError):
                assert await reader.read(100) == b""
            writer.transport.abort()
            assert proxy.closed == 1
            with contextlib.suppress(ConnectionError):
                assert await ask(proxy, b"two") == b""
            proxy.mend()
            assert await ask(proxy, b"three") == b"three"

    asyncio.run(asyncio.wait_for(body(), 30))


def test_a_server_that_is_away_is_a_closed_connection() -> None:
    async def body() -> None:
        proxy = Proxy(find_port(), find_port())
        await proxy.start()
        try:
            with contextlib.suppress(ConnectionError):
                assert await ask(proxy, b"hello") == b""
        finally:
            await proxy.stop()

    asyncio.run(asyncio.wait_for(body(), 30))


@pytest.mark.parametrize("many", [3])
def test_connections_are_independent(many: int) -> None:
    async def body() -> None:
        async with an_echo() as proxy:
            words = [b"%d" % number for number in range(many)]
            assert await asyncio.gather(*(ask(proxy, word) for word in words)) == words

    asyncio.run(asyncio.wait_for(body(), 30))
