"""Calls find their engine, and engines are looked at: real connections, and no broker."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import REGISTRY

from claw_r1.events import EngineSet, Policy
from gateway.replies import Refusal
from gateway.upstream.engines import Engines
from gateway.upstream.policies import Policies
from gateway.upstream.vitals import Vitals
from tests.integration.engine_stand import Vllm, vllms
from tests.integration.gateway_stand import wait_for

FAST: dict[str, Any] = {"health_interval": 0.2, "version_interval": 0.1}


@contextlib.asynccontextmanager
async def looked_at(*engines: Vllm, **more: Any) -> AsyncIterator[tuple[Engines, Policies]]:
    known = Policies()
    made = Engines([engine.url for engine in engines], connect_timeout=2.0, read_timeout=10.0, **more)
    vitals = Vitals(made, known, **FAST)
    made.start()
    try:
        yield made, known
    finally:
        await vitals.stop()
        await made.stop()


async def call(engines: Engines, key: str = "t", **more: Any) -> str:
    """The URL of the engine that answered."""
    engine, response = await engines.send(
        "POST", "/v1/chat/completions", key=key, headers=[(b"authorization", b"Bearer agent")], body=b"{}", **more
    )
    await response.read(2**20)
    return engine.url


def test_a_trajectory_stays_with_its_engine_until_that_is_lost() -> None:
    async def body() -> None:
        a, b = Vllm(), Vllm()
        async with vllms(a, b), looked_at(a, b) as (engines, _):
            homes = {key: await call(engines, key) for key in map(str, range(20))}
            assert set(homes.values()) == {a.url, b.url}
            assert {key: await call(engines, key) for key in homes} == homes
            await a.stop()
            assert {await call(engines, key) for key in homes} == {b.url}
            await a.start()
            await wait_for(lambda: not any(e.down_until for e in engines.roster.all()), "the engine is back")
            await wait_for(lambda: all(e.health == "up" for e in engines.roster.all()), "and is up")
            assert {key: await call(engines, key) for key in homes} == homes

    asyncio.run(body())


def test_in_flight_is_counted_until_the_connection_is_given_back() -> None:
    async def body() -> None:
        a = Vllm(hold=asyncio.Event())
        async with vllms(a), looked_at(a) as (engines, _):
            (engine,) = engines.roster.all()
            first, second = (asyncio.create_task(call(engines)) for _ in range(2))
            await wait_for(lambda: engine.in_flight == 2, "both calls are in flight")
            first.cancel()
            await asyncio.wait([first])
            assert engine.in_flight == 1
            assert a.hold is not None
            a.hold.set()
            await second
            assert engine.in_flight == 0
            _, unread = await engines.send("POST", "/v1/chat/completions", key="t", headers=[], body=b"{}")
            unread.close()
            assert engine.in_flight == 0

    asyncio.run(body())


def test_a_busy_engine_is_passed_over_and_a_503_goes_to_another() -> None:
    async def body() -> None:
        a, b = Vllm(hold=asyncio.Event()), Vllm(hold=asyncio.Event())
        async with vllms(a, b), looked_at(a, b) as (engines, _):
            calls = [asyncio.create_task(call(engines, "one-trajectory")) for _ in range(40)]
            await wait_for(lambda: len(a.asked) + len(b.asked) == 40, "every call has come")
            assert min(len(a.asked), len(b.asked)) >= 10, "the load is bounded"
            for engine in (a, b):
                assert engine.hold is not None
                engine.hold.set()
            await asyncio.gather(*calls)
            a.status = 503
            assert {await call(engines, key) for key in "abcdefgh"} == {b.url}
            b.status = 503
            _, response = await engines.send("POST", "/v1/chat/completions", key="t", headers=[], body=b"{}")
            assert response.status == 503, "the last engine's own words go to the agent"
            response.close()

    asyncio.run(body())


def test_an_engine_gets_its_own_key_and_not_the_agents() -> None:
    async def body() -> None:
        a = Vllm()
        async with vllms(a):
            async with looked_at(a) as (engines, _):
                await call(engines)
            async with looked_at(a, key="of-all") as (engines, _):
                await call(engines)
                record = EngineSet(fleet="f", engine_id=a.id, url=a.url, api_key="of-this", at=1.0)
                engines.roster.take(a.id, record)
                await call(engines)
        assert a.keys == ["Bearer agent", "Bearer of-all", "Bearer of-this"]

    asyncio.run(body())


def test_an_engine_is_probed_when_it_comes_and_when_it_comes_back() -> None:
    async def body() -> None:
        a = Vllm(version="0.12.0")
        async with vllms(a), looked_at(a) as (engines, _):
            (engine,) = engines.roster.all()
            await wait_for(lambda: engine.capabilities is not None, "it was probed")
            assert engine.capabilities is not None
            assert engine.capabilities.warnings
            assert REGISTRY.get_sample_value("claw_gateway_engine_up", {"engine": a.id}) == 1
            a.health = 500
            await wait_for(lambda: engine.health == "down", "it is ill")
            assert REGISTRY.get_sample_value("claw_gateway_engine_up", {"engine": a.id}) == 0
            await a.stop()
            a.version, a.health = "0.33.0", 200
            await a.start()
            await wait_for(lambda: engine.capabilities is not None and engine.capabilities.version == "0.33.0", "again")
            assert engine.capabilities.weight_versions is True

    asyncio.run(body())


def test_what_an_engine_says_of_its_weights_is_followed_and_lost_with_it() -> None:
    async def body() -> None:
        a = Vllm(weights="default")
        async with vllms(a), looked_at(a) as (engines, known):
            known.take(Policy(run_id="r", engine=a.url, version=4, at=1.0), 0)
            await wait_for(lambda: a.paths.count("/weight_info") > 2, "it is asked again and again")
            assert known.version(a.url, "r") == 4, "its label is no number"
            a.weights = "7"
            await wait_for(lambda: known.version(a.url, "r") == 7, "its own word counts")
            await a.stop()
            await wait_for(lambda: known.version(a.url, "r") is None, "nobody knows what it loads next")
            known.take(Policy(run_id="r", engine=a.url, version=5, at=2.0), 1)
            looks = REGISTRY.get_sample_value("claw_gateway_engine_up", {"engine": a.id})
            assert looks == 0
            assert known.version(a.url, "r") == 5, "whoever starts it says so before it listens"
            await a.start()
            await wait_for(lambda: known.version(a.url, "r") == 7, "it says so itself")
            assert engines.roster.all()[0].health == "up"

    asyncio.run(body())


def test_no_engine_is_a_clear_refusal() -> None:
    async def body() -> None:
        gone = Vllm()
        async with looked_at() as (engines, _):
            with pytest.raises(Refusal, match="CLAW_GATEWAY_UPSTREAM") as refused:
                await call(engines)
            assert (refused.value.status, refused.value.code) == (503, "no_engine")
        async with looked_at(gone) as (engines, _):
            with pytest.raises(Refusal, match="no engine answers"):
                await call(engines)
            with pytest.raises(Refusal, match=r"other-80.*GET /engines"):
                await call(engines, among=["other-80"])

    asyncio.run(body())
