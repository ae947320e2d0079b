"""Thousands of bad requests and bad engines: no crash, no 500, nothing stuck, nothing of one trajectory in another.

`CLAW_FUZZ_SEED` and `CLAW_FUZZ_CALLS` choose what is made; `CLAW_FUZZ_ONLY=NUMBER,…` makes these calls again, alone.
"""

import asyncio
import gc
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from claw_r1.events import Fact
from tests.conftest import Stack
from tests.fuzz.bad_engine import Book, a_bad_engine
from tests.fuzz.calls import Call, a_call
from tests.fuzz.documented import documented_calls
from tests.fuzz.forgery import SETTING, Ring
from tests.fuzz.socket_client import exchange
from tests.fuzz.verdicts import group_faults, judge, judge_facts
from tests.integration.gateway_stand import Stand, a_gateway, wait_for

pytestmark = pytest.mark.stack

# Taken out of the environment: a process of the project takes no CLAW_ name that is not a setting.
SEED: Final = os.environ.pop("CLAW_FUZZ_SEED", "")
CALLS: Final = int(os.environ.pop("CLAW_FUZZ_CALLS", "0"))
ONLY: Final = [int(number) for number in os.environ.pop("CLAW_FUZZ_ONLY", "").split(",") if number]

AT_ONCE: Final = 24
BOUND: Final = 60.0
"""Seconds within which every call is answered, also where an engine is silent and a try is followed by another."""
GROWTH: Final = 64 * 2**20
"""Most bytes that the process may grow by while the second half of the calls is made."""
DOCUMENTED: Final = 0.15
"""Part of the calls that comes from the API's document."""


class _Errors(logging.Handler):
    """Collects what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "claw.gateway.tables":
            return  # of records that other tests wrote to the shared broker: no call that is made here writes one
        self.said.append(self.format(record)[-1500:])


@dataclass(slots=True)
class Field:
    """Where the calls go."""

    book: Book
    ring: Ring
    stands: dict[str, Stand]
    ports: dict[str, int]
    faults: list[tuple[str, str]] = field(default_factory=list)
    fine: dict[str, int] = field(default_factory=dict)
    slowest: float = 0.0
    played: int = 0


@asynccontextmanager
async def a_field(stack: Stack, tmp_path: Path, seed: str) -> AsyncIterator[Field]:
    book, name = Book(seed), f"fuzz-{time.time_ns():x}"
    ring = Ring(seed, name)
    fixed: dict[str, Any] = {
        # The gateways, the engine and all callers share one event loop: what is in order may be late by seconds on a
        # busy machine, and is not to be taken for an engine that is silent.
        "read_timeout": 9.0,
        "connect_timeout": 9.0,
        "retry_grace": 0.05,
        "replay_ttl": 0.5,
        "max_replay_bytes": 2**20,
        "max_trajectories": 200,
        "max_chain_bytes": 4 * 2**20,
        "max_responses": 500,
        "max_body_bytes": 2**20,
        "health_interval": 600.0,
        "pause_hold": 0.2,
        "media_timeout": 1.0,
        "blobs": str(tmp_path),
    }
    async with (
        a_bad_engine(book) as url,
        a_gateway(stack.kafka, url, run=ring.open_run, **fixed) as open_,
        a_gateway(stack.kafka, url, run=ring.locked_run, secret=SETTING, **fixed) as locked,
        a_gateway(stack.kafka, url, run=ring.spare_run, secret=SETTING, **fixed) as spare,
    ):
        stands = {"open": open_, "locked": locked, "spare": spare}
        await configure(locked, ring)
        yield Field(book, ring, stands, {gate: int(stand.url.rsplit(":", 1)[1]) for gate, stand in stands.items()})


async def configure(stand: Stand, ring: Ring) -> None:
    """The calls of one gateway go token by token, and whole to the engine."""
    headers = {"authorization": f"Bearer {ring.admin_key}"}
    body = {"tito": True, "routed_experts": True}
    async with stand.http.post(f"{stand.url}/runs/{ring.locked_run}", json=body, headers=headers) as response:
        assert response.status == 200


async def play(there: Field, call: Call) -> None:
    """Make one call, and judge its answers."""
    there.book.begin(call.number, call.talk, good=call.good)
    started = time.monotonic()
    leave = 1.5 if call.wild else call.leave_after
    try:
        async with asyncio.timeout(BOUND * call.answers):
            answers = await exchange(
                there.ports[call.gate], call.parts, answers=call.answers, pause=call.pause, leave_after=leave
            )
    except TimeoutError:
        there.faults.append((f"{call.number} ({call.what})", f"no answer in {BOUND:g} s; requests wait at {waits()}"))
        return
    except Exception as error:  # noqa: BLE001 - an answer that is no HTTP
        there.faults.append((f"{call.number} ({call.what})", f"{error!r}"))
        return
    there.slowest = max(there.slowest, time.monotonic() - started)
    there.played += 1
    there.faults += [(f"{call.number} ({call.what})", fault) for fault in judge(call, answers, there.book)]
    if call.fine and answers and "x-claw-step-id" in answers[0].headers:
        there.fine[answers[0].headers["x-claw-step-id"]] = call.number
    there.book.end(call.number)
    if ONLY:
        print(call, answers)


def waits() -> list[str]:
    """Where the gateways' requests wait, each from the outside in."""
    found = []
    for task in asyncio.all_tasks():
        coroutine: Any = task.get_coro()
        places = []
        while coroutine is not None and getattr(coroutine, "cr_frame", None) is not None:
            frame = coroutine.cr_frame
            places.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
            coroutine = coroutine.cr_await
        if places and places[0].startswith("httptools_impl"):
            found.append(" > ".join(places))
    return found


async def play_all(there: Field, calls: Iterator[Call]) -> None:
    """All of them, so many at once."""

    async def agent() -> None:
        for call in calls:
            await play(there, call)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as agents:
        for _ in range(AT_ONCE):
            agents.create_task(agent())


async def facts_of(there: Field) -> list[Fact]:
    return [fact for stand in there.stands.values() for fact in await stand.facts(stand.gateway._settings.run)]


async def settle(there: Field, tasks: int) -> None:
    """Until nothing is on its way any more."""
    for gate, stand in there.stands.items():
        proxy = stand.gateway._proxy
        await wait_for(lambda proxy=proxy: proxy._in_flight == 0, f"{gate}: no call is in flight")  # type: ignore[misc]
        engines = stand.gateway.fleet.roster.all()
        await wait_for(lambda engines=engines: not any(e.in_flight for e in engines), f"{gate}: engines are idle")  # type: ignore[misc]
        assert not stand.gateway._limits._in_flight
    await wait_for(lambda: len(asyncio.all_tasks()) <= tasks + 8, "no task is left over")


async def run(stack: Stack, tmp_path: Path, seed: str, count: int) -> str:
    """The faults that so many calls showed, grouped; prints what was done."""
    errors = _Errors()
    logging.getLogger().addHandler(errors)
    process = psutil.Process()
    try:
        async with a_field(stack, tmp_path, seed) as there:
            tasks = len(asyncio.all_tasks())
            documented = int(count * DOCUMENTED)
            document = there.stands["spare"].gateway.api.openapi()
            started = time.monotonic()
            made = documented_calls(document, there.ring, first=count, count=documented)
            numbers: Sequence[int] = ONLY or range(count - documented)
            half = len(numbers) // 2
            first = (a_call(number, there.ring) for number in numbers[:half])
            await play_all(there, chain((call for call in made if not ONLY or call.number in ONLY), first))
            gc.collect()
            held = process.memory_info().rss
            await play_all(there, (a_call(number, there.ring) for number in numbers[half:]))
            await settle(there, tasks)
            gc.collect()
            grown = process.memory_info().rss - held
            took = time.monotonic() - started
            facts = await facts_of(there)
            there.faults += [("facts", fault) for fault in judge_facts(facts, there.book, there.fine)]
            there.faults += [("log", said) for said in errors.said]
            if grown > GROWTH:
                there.faults.append(("memory", f"it grew by {grown} bytes"))
    finally:
        logging.getLogger().removeHandler(errors)
    print(
        f"CLAW_FUZZ_SEED={seed}: {there.played} of {count} calls in {took:.0f} s, "
        f"the slowest {there.slowest:.1f} s; {len(facts)} facts, "
        f"{len(there.fine)} fine; {grown / 2**20:.1f} MiB more"
    )  # pytest shows it when the test fails
    return group_faults(there.faults)


def test_a_thousand_bad_calls(stack: Stack, tmp_path: Path) -> None:
    assert asyncio.run(run(stack, tmp_path, SEED or "1", CALLS or 1000)) == ""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_bad_calls(stack: Stack, tmp_path: Path) -> None:
    assert asyncio.run(run(stack, tmp_path, SEED or "11", CALLS or 10_000)) == ""
