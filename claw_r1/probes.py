"""The processes answer for themselves here: ready or not, their version, and the gauges that they export.

Invariants: every question has a deadline of a second; a process that does not answer is `down`, never an error.
"""

import asyncio
import itertools
import socket
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from claw_r1.probe_answers import Gauge, Process, fold_answer, fold_silence
from claw_r1.settings import ConsoleSettings

DEADLINE: Final = 1.0
MOST: Final = 64
"""Processes of a stage that are asked."""
Gauges = list[Gauge]


class Found(NamedTuple):
    """Which processes there are."""

    places: dict[str, str]
    """Name of a process → its health URL. The first of a stage is called as its stage, the second `STAGE-2`, and so on."""
    passed_over: dict[str, int]
    """Stage → how many more than MOST it has."""


def places_of(settings: ConsoleSettings, *, named: bool = False) -> dict[str, tuple[str, ...]]:
    """Stage → health URLs of its processes; with `named`, only of stages for which the environment has some."""
    stages = {
        "gateway": settings.gateways or (settings.gateway,),
        "streams": settings.streams,
        "sinks": settings.sinks,
        "workers": settings.workers,
    }
    if not named:
        return stages
    given = {"gateway" if field == "gateways" else field for field in settings.model_fields_set}
    return {stage: urls for stage, urls in stages.items() if stage in given}


async def find_processes(stages: Mapping[str, Iterable[str]]) -> Found:
    """The processes behind the URLs of each stage; takes at most DEADLINE."""
    found = Found({}, {})
    each = await asyncio.gather(*(_addresses(urls) for urls in stages.values()))
    for stage, places in zip(stages, each, strict=True):
        for number, place in enumerate(places[:MOST], 1):
            found.places[stage if number == 1 else f"{stage}-{number}"] = place
        if len(places) > MOST:
            found.passed_over[stage] = len(places) - MOST
    return found


async def _addresses(urls: Iterable[str]) -> list[str]:
    return list(itertools.chain.from_iterable(await asyncio.gather(*map(_resolved, urls))))


async def _resolved(url: str) -> list[str]:
    """What the URL stands for: a name with several addresses, as a headless Service has, is a process at each of them."""
    parts = urlsplit(url)
    if parts.scheme != "http":  # a certificate is of a name
        return [url]
    loop, port = asyncio.get_running_loop(), parts.port or 80
    try:
        async with asyncio.timeout(DEADLINE):
            told = await loop.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError):
        return [url]  # the question itself says what is wrong with it
    hosts = sorted({str(address[0]) for family, *_, address in told if family == told[0][0]})
    if len(hosts) < 2:
        return [url]
    return [f"http://{f'[{host}]' if ':' in host else host}:{port}{parts.path}" for host in hosts]


def session() -> aiohttp.ClientSession:
    """A client that asks all at once: none waits for another's connection while its own deadline runs."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


async def ask_process(http: aiohttp.ClientSession, name: str, url: str) -> tuple[Process, Gauges]:
    """A process's state and gauges, by its health URL; takes at most DEADLINE."""
    try:
        async with asyncio.timeout(DEADLINE):
            async with http.get(f"{url}/readyz") as answer:
                ready, body = answer.status == 200, await answer.text()
            async with http.get(f"{url}/metrics") as answer:
                gauges = _gauges(await answer.text()) if answer.status == 200 else []
    except TimeoutError:
        return fold_silence(name, url, f"no answer within {DEADLINE:g} s"), []
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return fold_silence(name, url, str(error) or type(error).__name__), []
    return fold_answer(name, url, ready=ready, body=body, gauges=gauges), gauges


async def ask_port(name: str, address: str) -> Process:
    """Whether a server listens at the first of `host:port[,host:port]`."""
    host, _, port = address.split(",")[0].rpartition(":")
    try:
        async with asyncio.timeout(DEADLINE):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.close()
    except (OSError, TimeoutError, ValueError) as error:
        return fold_silence(name, address, str(error) or "no answer")
    return Process(name=name, state="ready", detail="", url=address)


def _gauges(text: str) -> Gauges:
    return [
        Gauge(sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        if family.type == "gauge"
        for sample in family.samples
    ]
