"""Engines come, go, pause and change their weights under a running fleet; every gateway follows, and calls end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from claw_r1.bus import apply_topics, read_topic, start_producer, stop_producer
from claw_r1.codec import decode, encode
from claw_r1.events import Policy
from claw_r1.ids import new_id
from claw_r1.local.stack import RunningStack, running_stack
from claw_r1.topics import ENGINES, POLICY, all_topics
from tests.conftest import Stack
from tests.integration.engine_stand import Vllm, vllms
from tests.integration.gateway_stand import DEADLINE, Stand, a_gateway, an_unready_gateway, wait_for
from tests.log import await_visible

FAST: dict[str, Any] = {"health_interval": 0.2, "version_interval": 0.1}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


async def ask(stand: Stand, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    async with stand.http.request(method, stand.url + path, json=body) as response:
        return response.status, await response.json()


async def chat(stand: Stand, trajectory: str, **more: Any) -> tuple[int, Any]:
    return await ask(stand, "POST", f"/{trajectory}/p/v1/chat/completions", CHAT | more)


async def eventually(question: Callable[[], Awaitable[bool]], what: str) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + DEADLINE
    while not await question():
        assert loop.time() < end, f"after {DEADLINE:g} s still not: {what}"
        await asyncio.sleep(0.02)


async def engine_of(stand: Stand, identity: str) -> dict[str, Any] | None:
    _, found = await ask(stand, "GET", "/engines")
    return next((engine for engine in found["engines"] if engine["id"] == identity), None)


@contextlib.asynccontextmanager
async def two_gateways(stack: Stack, *urls: str, run: str, **more: Any) -> AsyncIterator[tuple[Stand, Stand]]:
    """Two gateways of one fleet."""
    async with (
        a_gateway(stack.kafka, *urls, run=run, **(FAST | more)) as one,
        a_gateway(stack.kafka, *urls, run=run, **(FAST | more)) as two,
    ):
        yield one, two


@pytest.mark.stack
def test_engines_are_added_changed_and_removed_in_every_gateway(stack: Stack) -> None:
    async def body() -> None:
        run, a, b = new_id(), Vllm(), Vllm()
        async with vllms(a, b), two_gateways(stack, a.url, run=run) as (one, two):
            status, added = await ask(
                one, "POST", "/engines", {"url": f"{b.url}/v1/", "weight": 2, "api_key": "secret"}
            )
            assert (status, added["id"], added["url"], added["has_key"]) == (200, b.id, b.url, True)
            assert "secret" not in str(added)
            await eventually(
                lambda: has(two, b.id, weight=2.0, health="up"), "the other gateway has it and looked at it"
            )
            assert {(await chat(two, f"{run}-{n}"))[0] for n in range(40)} == {
                200
            }  # none gets none, but for a chance of 1e-7
            assert a.asked
            assert b.asked
            assert set(b.keys) == {"Bearer secret"}
            await ask(two, "PATCH", f"/engines/{a.id}", {"draining": True})
            await eventually(lambda: has(one, a.id, draining=True), "the first gateway knows that it drains")
            before = len(a.asked)
            assert {(await chat(one, f"{run}-{n}"))[0] for n in range(12)} == {200}
            assert len(a.asked) == before
            await ask(one, "DELETE", f"/engines/{b.id}")
            await eventually(lambda: has_no(two, b.id), "it is gone in the other gateway")
            status, refused = await chat(one, f"{run}-x")
            assert (status, refused["error"]["code"]) == (503, "no_engine")
            await ask(one, "DELETE", f"/engines/{a.id}")
        async with a_gateway(stack.kafka, a.url, run=run) as again:
            assert await ask(again, "GET", "/engines") == (200, {"engines": []}), "a removed engine stays removed"
        async with a_gateway(stack.kafka, a.url, run=run, fleet=f"{run}-other") as other:
            assert await engine_of(other, a.id) is not None

    asyncio.run(body())


async def has(stand: Stand, identity: str, **fields: Any) -> bool:
    engine = await engine_of(stand, identity)
    return engine is not None and fields.items() <= engine.items()


async def has_no(stand: Stand, identity: str) -> bool:
    return await engine_of(stand, identity) is None


@pytest.mark.stack
def test_a_removed_engine_ends_its_calls(stack: Stack) -> None:
    async def body() -> None:
        run, a = new_id(), Vllm(hold=asyncio.Event())
        async with vllms(a), a_gateway(stack.kafka, a.url, run=run) as stand:
            answer = asyncio.create_task(chat(stand, f"{run}-t"))
            await wait_for(lambda: len(a.asked) == 1, "the call has come")
            status, removed = await ask(stand, "DELETE", f"/engines/{a.id}")
            assert (status, removed["leaving"], removed["in_flight"]) == (200, True, 1)
            assert a.hold is not None
            a.hold.set()
            assert (await answer)[0] == 200
            await eventually(lambda: has_no(stand, a.id), "it is forgotten")

    asyncio.run(body())


@pytest.mark.stack
def test_calls_wait_while_every_engine_is_paused_and_go_on_after_it(stack: Stack) -> None:
    async def body() -> None:
        run, a, b = new_id(), Vllm(), Vllm()
        async with vllms(a, b), two_gateways(stack, a.url, b.url, run=run) as (one, two):
            status, found = await ask(one, "POST", "/engines/pause", {"engines": [a.id]})
            assert status == 200
            assert {engine["id"]: engine["paused"] for engine in found["engines"]} == {a.id: "hold", b.id: None}
            assert {(await chat(one, f"{run}-{n}"))[0] for n in range(8)} == {200}
            assert not a.asked, "the others take its calls"
            await ask(one, "POST", "/engines/pause")
            await eventually(lambda: has(two, b.id, paused="hold"), "the other gateway knows")
            before = len(b.asked)
            waiting = [asyncio.create_task(chat(stand, f"{run}-w{n}")) for n in range(3) for stand in (one, two)]
            await wait_for(lambda: REGISTRY.get_sample_value("claw_gateway_held") == 6, "they wait")
            assert (await ask(one, "GET", "/v1/models"))[0] == 200, "what samples nothing is not held"
            assert len(b.asked) == before
            status, found = await ask(two, "POST", "/engines/resume")
            assert {engine["paused"] for engine in found["engines"]} == {None}
            assert {status for status, _ in await asyncio.gather(*waiting)} == {200}

    asyncio.run(body())


@pytest.mark.stack
def test_each_gateway_knows_what_another_was_told_before_it_changes_anything(stack: Stack) -> None:
    """A driver behind a balancer reaches another worker with every call."""

    async def body() -> None:
        run, a = new_id(), Vllm()
        async with vllms(a), two_gateways(stack, run=run) as (one, two):
            for _ in range(5):
                assert (await ask(one, "POST", "/engines", {"url": a.url}))[0] == 200
                status, found = await ask(two, "POST", "/engines/pause")
                assert [(e["id"], e["paused"]) for e in found["engines"]] == [(a.id, "hold")]
                await ask(one, "POST", f"/runs/{run}", {"models": {"tiny": {"engines": [a.id]}}})
                assert (await ask(two, "POST", "/policy", {"version": 1}))[0] == 200
                status, found = await ask(one, "POST", "/engines/resume")
                assert (status, found["engines"][0]["paused"]) == (200, None)
                assert (await ask(two, "PATCH", f"/engines/{a.id}", {"weight": 3}))[1]["paused"] is None
                assert (await ask(one, "DELETE", f"/engines/{a.id}"))[0] == 200
                status, refused = await ask(two, "POST", "/policy", {"version": 1})
                assert (status, refused["error"]["code"]) == (404, "unknown_engine")

    asyncio.run(body())


@pytest.mark.stack
def test_a_pause_that_lasts_too_long_is_a_429(stack: Stack) -> None:
    async def body() -> None:
        run, a = new_id(), Vllm()
        async with vllms(a), a_gateway(stack.kafka, a.url, run=run, pause_hold=0.3) as stand:
            for mode in ("hold", "refuse"):
                await ask(stand, "POST", "/engines/pause", {"mode": mode})
                async with stand.http.post(f"{stand.url}/{run}-t/p/v1/chat/completions", json=CHAT) as response:
                    refused = (response.status, (await response.json())["error"]["code"])
                    assert refused == (429, "engines_paused")
                    assert int(response.headers["retry-after"]) > 0
            assert not a.asked
            await stand.check_announced(run)
            assert {step.status for step in await stand.steps(run)} == {"failed"}

    asyncio.run(body())


@pytest.mark.stack
def test_the_weights_are_asked_for_before_a_paused_engine_goes_on(stack: Stack) -> None:
    async def body() -> None:
        run, a = new_id(), Vllm(weights="1")
        more = {"health_interval": 60.0, "version_interval": 60.0}
        async with vllms(a), a_gateway(stack.kafka, a.url, run=run, **more) as stand:
            await eventually(lambda: has(stand, a.id, served_version=1), "its weights are known")
            await ask(stand, "POST", "/engines/pause")
            a.weights = "2"
            _, found = await ask(stand, "POST", "/engines/resume")
            assert [(e["served_version"], e["paused"]) for e in found["engines"]] == [(2, None)]
            a.weights = "3"
            await ask(stand, "POST", "/policy", {"version": 3})
            await eventually(lambda: has(stand, a.id, served_version=3), "what was said made it look again")

    asyncio.run(body())


@pytest.mark.stack
def test_what_was_said_of_engines_is_known_to_every_gateway(stack: Stack) -> None:
    async def body() -> None:
        run, a, b = new_id(), Vllm(), Vllm()
        async with vllms(a, b), two_gateways(stack, a.url, b.url, run=run) as (one, two):
            status, said = await ask(one, "POST", "/policy", {"version": 5})
            assert (status, said["run_id"], said["trained_version"]) == (200, run, None)
            assert [(e["version"], e["said"]) for e in said["engines"]] == [(5, 5), (5, 5)]
            await ask(one, "POST", "/policy", {"version": 6, "engine": b.id, "run_id": run})

            async def versions() -> dict[str, int]:
                _, found = await ask(two, "GET", f"/policy?run_id={run}")
                return {e["engine"]: e["version"] for e in found["runs"][0]["engines"]}

            async def told() -> bool:
                return await versions() == {a.url: 5, b.url: 6}

            await eventually(told, "the other gateway knows")
            await b.stop()

            async def lost() -> bool:
                return await versions() == {a.url: 5, b.url: None}

            await eventually(lost, "a new process may serve anything")
            status, refused = await ask(one, "POST", "/policy", {"version": 6, "engine": "nothing"})
            assert (status, refused["error"]["code"]) == (404, "unknown_engine")
        mine = [
            event
            for event in (decode(r.headers, r.value) for r in await read_topic(stack.kafka, POLICY, client_id="test"))
            if isinstance(event, Policy) and event.run_id == run
        ]
        assert {(event.engine, event.version) for event in mine} == {(a.url, 5), (b.url, 5), (b.url, 6)}

    asyncio.run(body())


@pytest.mark.stack
def test_a_run_is_set_up_in_every_gateway_and_survives_a_restart(stack: Stack) -> None:
    async def body() -> None:
        run, a = new_id(), Vllm()
        setup = {
            "models": {"judge": {"engines": [a.url], "role": "frozen"}, "*": {"policy": "main"}},
            "sampling": {"temperature": 1.0},
            "tito": True,
        }
        full = {
            "run_id": run,
            "models": {
                "judge": {"engines": [a.id], "role": "frozen", "policy": None},
                "*": {"engines": None, "role": "policy", "policy": "main"},
            },
            "sampling": {"temperature": 1.0, "top_p": None, "top_k": None},
            "tito": True,
            "routed_experts": False,
        }
        async with two_gateways(stack, a.url, run=run) as (one, two):
            assert await ask(one, "POST", f"/runs/{run}", setup) == (200, full)

            async def known() -> bool:
                return await ask(two, "GET", f"/runs/{run}") == (200, full)

            await eventually(known, "the other gateway knows")
        async with a_gateway(stack.kafka, run=run) as again:
            assert await ask(again, "GET", f"/runs/{run}") == (200, full)
            assert (await ask(again, "GET", f"/runs/{run}-other"))[1]["models"] == {}

    asyncio.run(body())


@pytest.mark.stack
def test_models_go_to_their_engines_and_only_the_policy_is_trained(stack: Stack) -> None:
    async def body() -> None:
        run, a, b = new_id(), Vllm(), Vllm()
        setup = {"models": {"judge": {"engines": [b.id], "role": "frozen"}, "tiny": {"engines": [a.id]}}}
        async with vllms(a, b), a_gateway(stack.kafka, a.url, b.url, run=run) as stand:
            await ask(stand, "POST", f"/runs/{run}", setup)
            for number in range(6):
                assert (await chat(stand, f"{run}-{number}"))[0] == 200
                assert (await chat(stand, f"{run}-{number}", model="judge"))[0] == 200
            assert {call["model"] for call in a.asked} == {"tiny"}
            assert {call["model"] for call in b.asked} == {"judge"}
            roles = {(step.engine, step.role) for step in await stand.steps(run)}
            assert roles == {(a.url, "policy"), (b.url, "frozen")}
            status, refused = await chat(stand, f"{run}-x", model="other")
            assert (status, refused["error"]["code"], refused["error"]["param"]) == (404, "model_not_found", "model")
            await ask(stand, "POST", "/policy", {"version": 1})
            _, found = await ask(stand, "GET", f"/policy?run_id={run}")
            said = {engine["engine"]: engine["said"] for engine in found["runs"][0]["engines"]}
            assert said == {a.url: 1, b.url: None}, "a judge's weights are no policy"

    asyncio.run(body())


@pytest.mark.stack
def test_a_step_has_the_version_that_its_engine_served_from_its_first_token_to_its_last(stack: Stack) -> None:
    async def body() -> None:
        run, a = new_id(), Vllm()
        async with vllms(a), a_gateway(stack.kafka, a.url, run=run) as stand:
            await chat(stand, f"{run}-unknown")
            await ask(stand, "POST", "/policy", {"version": 5})
            await chat(stand, f"{run}-five")
            a.hold = asyncio.Event()
            answer = asyncio.create_task(chat(stand, f"{run}-both"))
            await wait_for(lambda: len(a.asked) == 3, "the call has come")
            await ask(stand, "POST", "/policy", {"version": 6})
            a.hold.set()
            assert (await answer)[0] == 200
            await chat(stand, f"{run}-six")
            found = {step.trajectory_uid: step.policy_version for step in await stand.steps(run)}
            assert found == {f"{run}-unknown": None, f"{run}-five": 5, f"{run}-both": None, f"{run}-six": 6}

    asyncio.run(body())


@pytest.mark.stack
@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/engines", {"url": "ftp://x"}, 400, "invalid_field"),
        ("POST", "/engines", {"url": "http://u:p@x"}, 400, "invalid_field"),
        ("POST", "/engines", {"url": "http://x", "weight": 0}, 400, "invalid_field"),
        ("POST", "/engines", {"url": "http://x", "api_key": "a\r\nb"}, 400, "invalid_field"),
        ("POST", "/engines", {"url": "http://x", "waight": 1}, 400, "invalid_field"),
        ("PATCH", "/engines/nothing", {"weight": 1}, 404, "unknown_engine"),
        ("DELETE", "/engines/nothing", None, 404, "unknown_engine"),
        ("POST", "/engines/pause", {"engines": ["nothing"]}, 404, "unknown_engine"),
        ("POST", "/engines/pause", {"engines": ["http://x:port"]}, 404, "unknown_engine"),
        ("POST", "/engines", {"url": f"http://{'a' * 200}"}, 400, "invalid_field"),
        ("POST", "/engines/pause", {"mode": "stop"}, 400, "invalid_field"),
        ("POST", "/policy", {"version": -1}, 400, "invalid_field"),
        ("POST", "/policy", {"version": 1}, 404, "unknown_engine"),
        ("POST", "/runs/r", {"models": {"m": {"role": "other"}}}, 400, "invalid_field"),
        ("POST", "/runs/r", {"models": {"m": {"engines": ["http://x:port"]}}}, 400, "invalid_field"),
        ("POST", "/runs/r", {"sampling": {"top_p": 0}}, 400, "invalid_field"),
    ],
)
def test_what_is_wrong_is_refused_by_name(
    gateway_without_engines: "Asker", method: str, path: str, body: Any, status: int, code: str
) -> None:
    found, answer = gateway_without_engines(method, path, body)
    assert (found, answer["error"]["code"]) == (status, code), answer


Asker = Callable[[str, str, Any], tuple[int, Any]]


@pytest.fixture(scope="module")
def gateway_without_engines(stack: Stack) -> Any:
    """Asks a gateway that has no engine."""
    runner = asyncio.Runner()
    context = a_gateway(stack.kafka, run=new_id())
    stand = runner.run(context.__aenter__())
    yield lambda method, path, body: runner.run(ask(stand, method, path, body))
    runner.run(context.__aexit__(None, None, None))
    runner.close()


@pytest.mark.stack
def test_a_trainers_transaction_at_the_end_of_the_policies_does_not_hold_up_a_start(stack: Stack) -> None:
    async def body() -> None:
        run = new_id()
        await apply_topics(stack.kafka, all_topics())
        producer = await start_producer(stack.kafka, client_id="test", transactional_id=run)
        try:
            async with producer.transaction():
                record = encode(Policy(run_id=run, version=3, at=1.0), source="test", key=run.encode())
                await producer.send_and_wait(POLICY, record.value, key=record.key, headers=record.headers)
        finally:
            await stop_producer(producer)
        await await_visible(stack.kafka, POLICY)
        async with a_gateway(stack.kafka, run=run) as stand:
            assert (await ask(stand, "GET", f"/policy?run_id={run}"))[1]["runs"][0]["trained_version"] == 3

    asyncio.run(body())


@pytest.mark.stack
def test_records_that_are_none_of_ours_change_nothing(stack: Stack) -> None:
    async def body() -> None:
        run, a = new_id(), Vllm()
        await apply_topics(stack.kafka, all_topics())
        before = REGISTRY.get_sample_value("claw_gateway_table_dropped_total", {"topic": ENGINES}) or 0.0
        producer = await start_producer(stack.kafka, client_id="test")
        try:
            await producer.send_and_wait(ENGINES, b"nonsense", key=f"{run}/x".encode())
        finally:
            await stop_producer(producer)
        async with vllms(a), a_gateway(stack.kafka, a.url, run=run) as stand:
            assert (await chat(stand, f"{run}-t"))[0] == 200
            dropped = REGISTRY.get_sample_value("claw_gateway_table_dropped_total", {"topic": ENGINES})
            assert dropped is not None
            assert dropped > before

    asyncio.run(body())


@pytest.mark.stack
def test_a_gateway_without_a_broker_has_its_engines_and_changes_none(stack: Stack) -> None:
    async def body() -> None:
        a = Vllm()
        async with vllms(a), an_unready_gateway("127.0.0.1:1", a.url, run="r", ack_timeout=1.0) as stand:
            await eventually(lambda: has(stand, a.id, health="up"), "it is looked at")
            status, refused = await ask(stand, "POST", "/engines/pause")
            assert (status, refused["error"]["code"]) == (503, "not_recorded")

    asyncio.run(body())


@pytest.mark.stack
@pytest.mark.slow
def test_the_fleet_agrees_again_after_its_broker_died(tmp_path: Path) -> None:
    async def body(broker: RunningStack) -> None:
        run, a = new_id(), Vllm()
        more = FAST | {"ack_timeout": 5.0}
        async with (
            vllms(a),
            a_gateway(broker.kafka, a.url, run=run, **more) as one,
            a_gateway(broker.kafka, a.url, run=run, **more) as two,
        ):
            await ask(one, "POST", "/engines/pause")
            await eventually(lambda: has(two, a.id, paused="hold"), "the other gateway knows")
            broker.freeze("kafka")  # it could be back before the change is given up
            assert (await ask(one, "POST", "/engines/resume"))[0] == 503
            pid = broker.kill("kafka")
            await asyncio.to_thread(broker.wait_restarted, "kafka", pid)

            async def resumed() -> bool:
                return (await ask(one, "POST", "/engines/resume"))[0] == 200

            await eventually(resumed, "a change is taken again")
            await eventually(lambda: has(two, a.id, paused=None), "the other gateway knows that, too")
            await wait_for(lambda: two.gateway.ready() is None, "the other gateway is ready")
            assert (await chat(two, f"{run}-t"))[0] == 200

    with running_stack(tmp_path, processes=("kafka",)) as broker:
        asyncio.run(body(broker))
