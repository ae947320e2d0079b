"""The processes answer for themselves here: ready or not, and the few gauges that the page shows.

Invariants: every question has a deadline of a second; a process that does not answer is `down`, never an error.
"""

import asyncio
import itertools
import json
import socket
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from console.status import Gauge, PartlyAsked, Process

DEADLINE: Final = 1.0
MOST: Final = 64
"""Processes of a stage that are asked."""
Gauges = list[Gauge]


class Found(NamedTuple):
    """The processes of all stages; the first of a stage is called as its stage, the second `STAGE-2`, and so on."""

    urls: dict[str, str]
    """Health URLs by name, of those that are to be asked."""
    partly: tuple[PartlyAsked, ...]


async def find_processes(stages: Mapping[str, Iterable[str]]) -> Found:
    """Where the processes of the stages are, MOST of a stage at most, and of which there are more."""
    found: dict[str, str] = {}
    partly = []
    for stage, urls in stages.items():
        places = list(itertools.chain.from_iterable(await asyncio.gather(*map(_places_of, urls))))
        for number, place in enumerate(places[:MOST], 1):
            found[stage if number == 1 else f"{stage}-{number}"] = place
        if len(places) > MOST:
            partly.append(PartlyAsked(stage=stage, asked=MOST, known=len(places)))
    return Found(found, tuple(partly))


async def _places_of(url: str) -> list[str]:
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


async def ask_process(http: aiohttp.ClientSession, name: str, url: str) -> tuple[Process, Gauges]:
    """A process's state and gauges, by its health URL."""
    try:
        async with asyncio.timeout(DEADLINE):
            async with http.get(f"{url}/readyz") as answer:
                ready, body = answer.status == 200, await answer.text()
            async with http.get(f"{url}/metrics") as answer:
                gauges = _gauges(await answer.text()) if answer.status == 200 else []
    except TimeoutError:
        return Process(name=name, state="down", detail=f"no answer within {DEADLINE:g} s", url=url), []
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return Process(name=name, state="down", detail=str(error)[:200] or type(error).__name__, url=url), []
    return Process(
        name=name, state="ready" if ready else "waiting", detail="" if ready else _reason(body), url=url
    ), gauges


async def ask_port(name: str, address: str) -> Process:
    """Whether a server listens at the first of `host:port[,host:port]`."""
    host, _, port = address.split(",")[0].rpartition(":")
    try:
        async with asyncio.timeout(DEADLINE):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.close()
    except (OSError, TimeoutError, ValueError) as error:
        return Process(name=name, state="down", detail=str(error)[:200] or "no answer", url=address)
    return Process(name=name, state="ready", detail="", url=address)


def _gauges(text: str) -> Gauges:
    return [
        Gauge(sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        if family.type == "gauge"
        for sample in family.samples
    ]


def _reason(body: str) -> str:
    try:
        said = json.loads(body)
    except ValueError:
        return body[:200]
    return str(said.get("reason", ""))[:200] if isinstance(said, dict) else body[:200]
