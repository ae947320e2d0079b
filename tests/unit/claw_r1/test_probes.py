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
from claw_r1.probe_answers import Gauge, fold_answer, sum_gauge
from claw_r1.probes import MOST, ask_process, find_processes, places_of
from claw_r1.settings import ConsoleSettings


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
            places, _ = await find_processes(stages)
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
    assert list(asyncio.run(find_processes({"streams": urls})).places.values()) == urls


def test_of_very_many_the_first_are_asked_and_the_rest_are_counted() -> None:
    urls = [f"https://worker-{number}:8101" for number in range(MOST + 3)]
    found = asyncio.run(find_processes({"streams": urls, "sinks": urls[:1]}))
    assert (len(found.places), found.places["sinks"], found.passed_over) == (MOST + 1, urls[0], {"streams": 3})


def test_what_does_not_answer_is_down_with_the_reason_and_in_bounded_time() -> None:
    async def scenario() -> None:
        async def never(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            hung.append(writer)

        hung: list[asyncio.StreamWriter] = []
        async with await asyncio.start_server(never, "127.0.0.1", 0) as server, aiohttp.ClientSession() as http:
            port = server.sockets[0].getsockname()[1]
            silent, _ = await ask_process(http, "streams", f"http://127.0.0.1:{port}")
            refused, _ = await ask_process(http, "sinks", f"http://127.0.0.1:{find_port()}")
            for writer in hung:
                writer.close()
        assert (silent.state, silent.detail) == ("down", "no answer within 1 s")
        assert refused.state == "down"
        assert "Cannot connect" in refused.detail
        assert (refused.version, refused.behind) == (None, None)

    asyncio.run(scenario())


def test_only_stages_that_the_environment_names_are_a_clusters() -> None:
    assert places_of(ConsoleSettings.read({}), named=True) == {}
    own = ConsoleSettings.read({"CLAW_CONSOLE_GATEWAY": "http://g:1", "CLAW_CONSOLE_SINKS": "http://a:2,http://b:2"})
    assert places_of(own, named=True) == {"gateway": ("http://g:1",), "sinks": ("http://a:2", "http://b:2")}
    several = ConsoleSettings.read({"CLAW_CONSOLE_GATEWAYS": "http://pods:1"})
    assert places_of(several, named=True) == {"gateway": ("http://pods:1",)}
    assert places_of(several)["streams"] == ("http://127.0.0.1:8101",)


LAGS = [Gauge("claw_sinks_lag_records", {"partition": str(i)}, value) for i, value in enumerate((2.0, 3.0))]


def test_a_gauge_that_a_process_does_not_export_is_unknown_and_not_zero() -> None:
    assert sum_gauge(LAGS, "claw_sinks_lag_records") == 5
    assert sum_gauge(LAGS, "claw_streams_lag_records") is None


def test_a_line_says_version_lag_and_why_it_is_not_ready() -> None:
    body = '{"status": "waiting", "reason": "the pool is away", "version": "1.2.3"}'
    second = fold_answer("sinks-2", "http://a", ready=False, body=body, gauges=LAGS)
    assert (second.state, second.detail, second.version, second.behind) == ("waiting", "the pool is away", "1.2.3", 5)
    older = fold_answer("streams", "http://a", ready=True, body='{"status": "ready"}', gauges=LAGS)
    assert (older.state, older.detail, older.version, older.behind) == ("ready", "", None, None)
    proxy = fold_answer("gateway", "http://a", ready=False, body="<h1>Bad Gateway</h1>", gauges=[])
    assert (proxy.detail, proxy.behind) == ("<h1>Bad Gateway</h1>", None)
