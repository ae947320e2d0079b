"""A stage's processes are found and asked, each of them: by a list of addresses, or by one name that has several."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from claw_r1.health import HealthServer
from claw_r1.local.ports import find_port
from console.probes import MOST, ask_process, find_processes
from console.status import PartlyAsked


@contextlib.asynccontextmanager
async def two_workers() -> AsyncIterator[int]:
    """Two processes on one port of two addresses of this machine, one ready and one not; their port."""
    port = find_port()
    servers = [
        HealthServer("127.0.0.1", port, lambda: None),
        HealthServer("127.0.0.2", port, lambda: "it reads the log"),
    ]
    for server in servers:
        await server.start()
    try:
        yield port
    finally:
        for server in servers:
            await server.stop()


def test_a_name_with_several_addresses_is_a_process_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        found = asyncio.get_running_loop().getaddrinfo

        async def resolve(host: str, port: int, **more: Any) -> Any:
            if host != "rl-streams":
                return await found(host, port, **more)
            kinds = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
            return [(*kinds, (address, port)) for address in ("127.0.0.2", "127.0.0.1")]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
        async with two_workers() as port, aiohttp.ClientSession() as http:
            stages = {"streams": [f"http://rl-streams:{port}"], "sinks": [f"http://localhost:{port}"], "workers": ()}
            places, partly = await find_processes(stages)
            assert partly == ()
            assert places == {
                "streams": f"http://127.0.0.1:{port}",
                "streams-2": f"http://127.0.0.2:{port}",
                "sinks": f"http://localhost:{port}",
            }
            told = [process for process, _ in [await ask_process(http, *place) for place in places.items()]]
        assert [(process.name, process.state) for process in told] == [
            ("streams", "ready"),
            ("streams-2", "waiting"),
            ("sinks", "ready"),
        ]

    asyncio.run(scenario())


def test_what_cannot_be_resolved_is_asked_as_it_stands() -> None:
    urls = ["http://nowhere.invalid:8101", "https://localhost:1", "http://[::1]:1/path"]
    assert list(asyncio.run(find_processes({"streams": urls})).urls.values()) == urls


def test_a_stage_of_more_processes_than_are_asked_is_told_with_both_numbers() -> None:
    def some(number: int) -> list[str]:
        return [f"https://localhost:{port}" for port in range(1, number + 1)]

    found = asyncio.run(find_processes({"streams": some(MOST + 6), "sinks": some(MOST), "workers": ()}))
    assert found.partly == (PartlyAsked(stage="streams", asked=64, known=70),)
    assert [name for name in found.urls if name.startswith("streams")] == [
        "streams",
        *(f"streams-{n}" for n in range(2, 65)),
    ]
    assert len(found.urls) == 128
