"""`claw doctor` and `claw status` on the real broker and engine: what is broken is found, and what is said mends it."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiohttp.typedefs import Handler
from aiokafka.admin import NewPartitions
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from claw_r1 import bus, health, topics
from claw_r1.checks import broker, engine, machine, pool
from claw_r1.checks.finding import Finding
from claw_r1.clickhouse import ClickHouse
from claw_r1.codec import Record
from claw_r1.errors import UserError
from claw_r1.local.ports import HOST, find_port
from claw_r1.local.stack import python_module, running_stack
from claw_r1.local.supervisor import Process
from sinks import migrations
from tests import warm
from tests.conftest import Stack
from tests.secured import with_env
from tests.warm import ROOT

pytestmark = pytest.mark.stack
REACHED = ("broker", "copies", "limits", "topics", "size limits", "grants")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, str]]:
    """A broker and an engine that may be broken, and the URL of an inference engine."""
    port = find_port()
    inference = Process(
        name="inference",
        argv=[*python_module("claw_r1.demo.engine"), "--port", str(port)],
        ready=f"http://{HOST}:{port}/health",
        port=port,
    )
    folder = tmp_path_factory.mktemp("doctor")
    with running_stack(folder, processes=("kafka", "clickhouse"), extra=[inference]) as running:
        yield running, f"http://{HOST}:{port}"


def claw(own: Stack, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return warm.claw(*arguments, env=with_env({"CLAW_DATA": str(own.data)} | env, os.environ))


def found(own: Stack, *arguments: str, **env: str) -> list[dict[str, str]]:
    done = claw(own, "doctor", "--json", *arguments, **env)
    findings: list[dict[str, str]] = json.loads(done.stdout)
    assert done.returncode == any(finding["state"] == "bad" for finding in findings), done.stderr
    return findings


def bad(findings: list[dict[str, str]]) -> list[tuple[str, str]]:
    """(check, remedy) of what does not work."""
    return [(finding["check"], finding["remedy"]) for finding in findings if finding["state"] == "bad"]


def alter(kafka: str, topic: str, **config: str) -> None:
    async def change() -> None:
        async with bus.admin(kafka) as client:
            await client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=config)])

            async def not_shown() -> list[tuple[str, str]]:
                shown = await bus.read_configs(client, [topic])
                return [(name, value) for name, value in config.items() if shown[topic].get(name) != value]

            await bus.await_shown("{} are not shown", not_shown)

    asyncio.run(change())


def test_an_empty_system_is_told_what_it_needs_and_is_well_afterwards(own: tuple[Stack, str]) -> None:
    running, inference = own
    before = found(running)
    assert set(bad(before)) == {("topics", "claw topics apply"), ("migrations", "claw migrate")}
    assert claw(running, "topics", "apply").returncode == 0
    assert claw(running, "migrate").returncode == 0
    after = found(running, "--upstream", inference)
    assert bad(after) == []
    assert {finding["check"] for finding in after} >= {*REACHED, "pool", "clock", "migrations", f"engine {inference}"}
    shown = claw(running, "doctor")
    assert shown.returncode == 0
    assert "BAD" not in shown.stdout


def test_a_topic_that_was_changed_is_found_and_mended(own: tuple[Stack, str]) -> None:
    running, _ = own
    assert claw(running, "topics", "apply").returncode == 0
    right = {topic.name: topic.config for topic in topics.all_topics()}
    own_word = {"segment.ms": "3600000"}  # an operator's own, of which the list says nothing
    alter(running.kafka, topics.OUTCOMES, **right[topics.OUTCOMES] | {"retention.ms": "60000"} | own_word)
    alter(running.kafka, topics.EVENTS, **right[topics.EVENTS] | {"max.message.bytes": "1000000"})
    assert sorted(bad(asyncio_findings(running.kafka))) == [
        ("size limits", "claw topics apply"),
        ("topics", "claw topics apply"),
    ]
    assert claw(running, "topics", "apply").returncode == 0
    assert bad(asyncio_findings(running.kafka)) == []

    async def ask() -> dict[str, dict[str, str]]:
        async with bus.admin(running.kafka) as client:
            with pytest.raises(UserError, match=f"settings of {topics.OUTCOMES}: InvalidConfigurationError"):
                await bus.set_configs(client, {topics.OUTCOMES: {"retention.ms": "soon"}})
            return await bus.read_configs(client, [topics.OUTCOMES, topics.EVENTS])

    found = asyncio.run(ask())
    assert found[topics.OUTCOMES].items() >= (right[topics.OUTCOMES] | own_word).items()
    assert found[topics.EVENTS]["segment.ms"] != own_word["segment.ms"]


def test_a_recipes_topic_is_looked_at_too(own: tuple[Stack, str]) -> None:
    running, _ = own
    spec = topics.batch_topic_spec("crooked")
    asyncio.run(bus.apply_topics(running.kafka, topics.all_topics()))
    asyncio.run(bus.ensure_topic(running.kafka, spec))
    alter(running.kafka, spec.name, **spec.config | {"message.timestamp.type": "CreateTime"})
    ((check, remedy),) = bad(asyncio_findings(running.kafka))
    assert check == "topics"
    assert "kafka-configs" in remedy
    alter(running.kafka, spec.name, **spec.config)
    assert bad(asyncio_findings(running.kafka)) == []


def test_limits_of_a_broker_that_do_not_fit_are_found(own: tuple[Stack, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker's own values, against bounds that they miss."""
    running, _ = own
    bounds = (("socket.request.max.bytes", "least", 2**40), ("group.min.session.timeout.ms", "most", 10))
    monkeypatch.setattr(broker, "BOUNDS", bounds)
    wrong = [f for f in asyncio.run(broker.check_broker(running.kafka)) if f.check == "limits"]
    assert [f.state for f in wrong] == ["bad", "bad"]
    assert {f.says.split()[0] for f in wrong} == {"socket.request.max.bytes", "group.min.session.timeout.ms"}


def asyncio_findings(kafka: str) -> list[dict[str, str]]:
    return [vars(finding) for finding in asyncio.run(broker.check_broker(kafka))]


def test_servers_that_are_away_are_bad_and_never_a_trace(own: tuple[Stack, str]) -> None:
    running, _ = own
    nowhere = find_port()
    findings = found(
        running,
        "--kafka",
        f"{HOST}:{nowhere}",
        "--clickhouse",
        f"http://{HOST}:{nowhere}",
        "--upstream",
        f"http://{HOST}:{nowhere}",
    )
    assert {check for check, _ in bad(findings)} == {"broker", "pool", f"engine http://{HOST}:{nowhere}"}


def test_a_clock_that_is_off_is_found(own: tuple[Stack, str]) -> None:
    running, _ = own

    def state(off: float) -> str:
        findings = asyncio.run(pool.check_pool(running.clickhouse, "claw", lambda: time.time() + off))
        return next(finding.state for finding in findings if finding.check == "clock")

    assert [state(off) for off in (0.0, 5.0, -5.0, 90.0, -90.0)] == ["ok", "warn", "warn", "bad", "bad"]


def test_a_missing_migration_is_found_and_applied(own: tuple[Stack, str]) -> None:
    running, _ = own
    asyncio.run(migrations.apply(running.clickhouse, "halfway"))
    newest = max(file.id for file in migrations.load_migrations())

    async def forget() -> None:
        async with await ClickHouse.connect(running.clickhouse, "halfway") as client:
            await client.command(
                f"ALTER TABLE halfway.migrations DELETE WHERE id = {newest}", settings={"mutations_sync": 1}
            )

    asyncio.run(forget())
    findings = asyncio.run(pool.check_pool(running.clickhouse, "halfway", time.time))
    (missing,) = [finding for finding in findings if finding.check == "migrations"]
    assert (missing.state, missing.remedy) == ("bad", "claw migrate")


def test_an_engine_is_asked_for_what_a_step_is_trained_with(own: tuple[Stack, str]) -> None:
    _, inference = own
    tokens, mode, defaults = asyncio.run(engine.check_engine(inference, "", "processed"))
    assert (tokens.state, mode.state) == ("ok", "ok")
    assert (defaults.state, defaults.says) == ("ok", "it samples as it is asked")
    _, unsaid, _ = asyncio.run(engine.check_engine(inference, "", None))
    assert (unsaid.state, unsaid.remedy) == ("warn", "set CLAW_GATEWAY_LOG_PROBS_MODE=processed")
    _, wrong, _ = asyncio.run(engine.check_engine(inference, "", "raw"))
    assert wrong.state == "bad"
    assert "CLAW_GATEWAY_LOG_PROBS_MODE" in wrong.says


def a_reply(*log_probs: float, **over: Any) -> dict[str, Any]:
    top = [{"token": str(number), "logprob": value} for number, value in enumerate(log_probs)]
    entry = {"token": "0", "logprob": -1.0, "top_logprobs": top}
    return {"prompt_token_ids": [1], "choices": [{"token_ids": [2], "logprobs": {"content": [entry]}} | over]}


@pytest.mark.parametrize("lacks", [{"token_ids": None}, {"logprobs": None}])
def test_an_engine_that_leaves_something_out_is_bad(lacks: dict[str, Any]) -> None:
    (finding,) = engine.judge_tokens("engine", "model", a_reply(-1.0, **lacks))
    assert finding.state == "bad"
    assert next(iter(lacks)) in finding.says


def test_what_log_probs_are_of_is_seen_by_two_temperatures() -> None:
    def judged(warm: dict[str, Any], wanted: engine.Mode | None) -> str:
        return engine.judge_mode("engine", a_reply(-1.0, -2.0), warm, wanted).state

    raw, processed = a_reply(-1.0, -2.0), a_reply(-1.3, -1.5)
    assert [judged(raw, wanted) for wanted in (None, "raw", "processed")] == ["ok", "ok", "bad"]
    assert [judged(processed, wanted) for wanted in (None, "raw", "processed")] == ["warn", "bad", "ok"]
    assert judged(a_reply(), None) == "skipped"


def test_sampling_that_nobody_asked_for_is_seen() -> None:
    recorded = json.loads((ROOT / "tests/golden/vllm/auto_render.json").read_text("utf-8"))
    told = recorded["response"]["body"]["sampling_params"]
    one, other = a_reply(-1.0, -2.0), a_reply(-1.3, -1.5)

    def judged(rendered: Any, neutral: Any, processed: bool | None) -> Finding:
        return engine.judge_defaults("engine", rendered, one, neutral, processed=processed)

    said = judged(told, one, True)
    assert said.state == "warn"
    assert said.says.endswith("the model's own: temperature 0.7, top_p 0.8, top_k 20")
    assert judged({"temperature": 1.0, "max_tokens": 1}, other, True).state == "ok"
    assert [judged(None, neutral, True).state for neutral in (one, other, None, a_reply())] == [
        "ok",
        "warn",
        "skipped",
        "skipped",
    ]
    for raw in (False, None):
        assert judged(None, other, raw).state == "skipped"
        assert "--generation-config vllm" in judged(None, other, raw).remedy


def test_an_engine_that_tells_its_sampling_is_believed(own: tuple[Stack, str]) -> None:
    """A vLLM with --enable-scale-out, as it answered, in front of an engine that answers the rest."""
    _, inference = own
    recorded = json.loads((ROOT / "tests/golden/vllm/auto_render.json").read_text("utf-8"))["response"]

    async def run() -> Finding:
        async def answer(request: web.Request) -> web.Response:
            if request.path == "/v1/chat/completions/render":
                return web.json_response(recorded["body"], status=recorded["status"])
            async with (
                aiohttp.ClientSession(headers={"content-type": "application/json"}) as http,
                http.request(request.method, f"{inference}{request.path}", data=await request.read()) as reply,
            ):
                return web.json_response(await reply.json(), status=reply.status)

        async with TestServer(_app_of(answer)) as server:
            *_, defaults = await engine.check_engine(str(server.make_url("")).rstrip("/"), "", "processed")
        return defaults

    assert asyncio.run(run()).says.endswith("temperature 0.7, top_p 0.8, top_k 20")


def _app_of(answer: Handler) -> web.Application:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    return app


def test_ports_that_others_hold_and_disks_that_are_full_are_found(own: tuple[Stack, str], tmp_path: Path) -> None:
    _, inference = own
    free, ours = find_port(), int(inference.rpartition(":")[2])
    with socket.socket() as stranger:
        stranger.bind((HOST, 0))
        stranger.listen()
        (finding,) = machine.check_ports({"gateway": stranger.getsockname()[1], "sinks": free})
    assert (finding.state, "CLAW_GATEWAY_PORT" in finding.remedy) == ("bad", True)
    assert ours not in (free, 0)
    assert machine.check_ports({"sinks": free}) == [Finding("ports", "ok", "sinks free")]
    (full,) = machine.check_disks({"spool": tmp_path / "not" / "there"}, 2**60)
    assert (full.check, full.state) == ("disk of spool", "bad")
    (well,) = machine.check_disks({"blobs": tmp_path}, 0)
    assert well.state in ("ok", "warn")


def test_status_shows_the_whole_system(own: tuple[Stack, str]) -> None:
    running, _ = own
    asyncio.run(bus.apply_topics(running.kafka, topics.all_topics()))
    asyncio.run(migrations.apply(running.clickhouse, "claw"))

    async def a_letter() -> None:
        producer = await bus.start_producer(running.kafka, client_id="test")
        try:
            await bus.publish(producer, topics.dlq_topic(topics.EVENTS), Record(b"k", b"v", []), deadline=30)
        finally:
            await bus.stop_producer(producer)

    asyncio.run(a_letter())
    shown = json.loads(claw(running, "status", "--json").stdout)
    system = shown["system"]
    assert shown["processes"]["kafka"]["ready"]
    assert system["errors"] == {}
    assert system["dead_letters"] == {topics.EVENTS: 1}
    assert set(system["behind"]) == {"streams", "workers", "sinks"}
    assert system["pool"] == {"steps": 0, "trajectories": 0, "batches": 0, "newest": None}
    text = claw(running, "status").stdout
    assert f"dead letters: {topics.EVENTS} 1" in text
    assert "the pool: 0 steps" in text


def test_status_of_a_cluster_without_a_local_stack(own: tuple[Stack, str], tmp_path: Path) -> None:
    running, _ = own
    named = {"CLAW_DATA": str(tmp_path), "CLAW_KAFKA": running.kafka, "CLAW_CLICKHOUSE": running.clickhouse}
    asyncio.run(migrations.apply(running.clickhouse, "claw"))
    assert claw(running, "status", **named).returncode == 0
    gone = claw(running, "status", "--json", **named | {"CLAW_KAFKA": f"{HOST}:{find_port()}"})
    assert gone.returncode == 1
    assert "no Kafka broker answers" in json.loads(gone.stdout)["system"]["errors"]["kafka"]


def test_status_asks_the_processes_of_a_cluster(own: tuple[Stack, str], tmp_path: Path) -> None:
    running, _ = own
    asyncio.run(migrations.apply(running.clickhouse, "claw"))
    asyncio.run(bus.apply_topics(running.kafka, topics.all_topics()))
    streams, sinks, gone = (f"http://{HOST}:{find_port()}" for _ in range(3))
    waits: list[str] = []

    async def ask(sinks: str, *shown: str) -> subprocess.CompletedProcess[str]:
        named = {"CLAW_DATA": str(tmp_path), "CLAW_KAFKA": running.kafka, "CLAW_CLICKHOUSE": running.clickhouse}
        urls = {"CLAW_CONSOLE_STREAMS": streams, "CLAW_CONSOLE_SINKS": sinks}
        return await asyncio.to_thread(claw, running, "status", *shown, **named, **urls)

    async def scenario() -> None:
        assert (await ask(sinks)).returncode == 0
        lacking = await ask(f"{sinks},{gone}", "--json")
        assert lacking.returncode == 1
        first, _, second = json.loads(lacking.stdout)["system"]["processes"]
        assert (first["name"], first["state"], first["version"]) == ("streams", "ready", health.version())
        assert (second["name"], second["state"], second["behind"]) == ("sinks-2", "down", None)
        assert gone.removeprefix("http://") in second["detail"]
        waits.append("it reads the log")
        slow = await ask(sinks)
        assert slow.returncode == 1
        _, line, why, *_ = slow.stdout.splitlines()
        assert (line.split()[:2], why.strip()) == (["streams", "waiting"], "it reads the log")

    async def run() -> None:
        async with serving(streams, lambda: waits[0] if waits else None), serving(sinks, lambda: None):
            await scenario()

    asyncio.run(run())


@contextlib.asynccontextmanager
async def serving(url: str, ready: Callable[[], str | None]) -> AsyncIterator[None]:
    server = health.HealthServer(HOST, int(url.rpartition(":")[2]), ready)
    await server.start()
    try:
        yield
    finally:
        await server.stop()


def test_topics_of_other_sizes_than_the_events_are_found_at_last(own: tuple[Stack, str]) -> None:
    """Last of its file: a partition that was added stays."""
    running, _ = own

    async def grow() -> None:
        async with bus.admin(running.kafka) as client:
            await client.create_partitions({topics.OUTCOMES: NewPartitions(7)})

            async def too_few() -> list[str]:
                return [] if await bus.count_partitions(running.kafka, topics.OUTCOMES) == 7 else [topics.OUTCOMES]

            await bus.await_shown("{} has not grown", too_few)

    asyncio.run(bus.apply_topics(running.kafka, topics.all_topics()))
    asyncio.run(grow())
    ((check, remedy),) = bad(asyncio_findings(running.kafka))
    assert check == "topics"
    assert "partition count" in remedy
