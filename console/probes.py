"""The processes answer for themselves here: ready or not, and the few gauges that the page shows.

Invariants: every question has a deadline of a second; a process that does not answer is `down`, never an error.
"""

import asyncio
import json
from typing import Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from console.status import Process

DEADLINE: Final = 1.0
Gauges = list[tuple[str, float]]


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
        (sample.name, sample.value)
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
