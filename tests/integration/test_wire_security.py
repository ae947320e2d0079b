"""TLS, users and grants on the real broker and the real engine: each process comes in as itself, and does only its part."""

import asyncio
import os
import subprocess
import uuid
from collections.abc import Coroutine, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import trustme

from claw_r1 import acls, bus, topics
from claw_r1.checks.broker import check_broker
from claw_r1.checks.finding import Finding
from claw_r1.clickhouse import ClickHouse
from claw_r1.client.sync import Client
from claw_r1.codec import Record, encode
from claw_r1.errors import DependencyUnreachable, UserError, WrongUse
from claw_r1.events import RunConfig
from claw_r1.grants import GRANTS
from claw_r1.letters import Waiting, count_waiting
from claw_r1.local.ports import find_port
from claw_r1.local.stack import running_stack
from claw_r1.local.supervisor import why_not_ready
from claw_r1.settings import PASSWORD_VARIABLE
from tests import warm
from tests.conftest import wait_until
from tests.secured import ROOT_USER, Secured, behind_tls, secured_broker, with_env
from tests.workers import Worker, workers
from trainer_adapter import BatchStream, RecipeHeld
from trainer_adapter.ledger import Ledger
from trainer_adapter.pool import Pool
from trainer_adapter.tenure import find_holder

pytestmark = pytest.mark.stack

T = TypeVar("T")

RECIPE = """
name: secured
run_id: default
channel: train
group: {size: 2, idle: 30s}
rewards: {required: [length]}
batch: {groups: 1}
"""


def run(body: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` that ends when the connections are closed: TLS says goodbye, and a loop that ends at once cuts it off."""

    async def to_the_end() -> T:
        try:
            return await body
        finally:
            files = asyncio.get_running_loop()._selector.get_map()  # type: ignore[attr-defined]
            async with asyncio.timeout(60):
                while len(files) > 1:  # the loop's own; nothing else tells  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    return asyncio.run(to_the_end())


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A broker with a user for each process, the topics, and nothing that anybody but root may do."""
    users = [f"{acls.DEFAULT_PREFIX}{process}" for process in GRANTS]
    with secured_broker(tmp_path_factory.mktemp("secured"), [*users, "nobody"]) as secured:
        with pytest.MonkeyPatch.context() as patch:
            come_as(patch, secured, ROOT_USER)
            run(bus.apply_topics(secured.kafka, topics.all_topics()))
        yield secured


def come_as(patch: pytest.MonkeyPatch, broker: Secured, user: str) -> None:
    """This process's clients are of that user from now on."""
    come_with(patch, broker.env(user))


def come_with(patch: pytest.MonkeyPatch, env: Mapping[str, str]) -> str:
    """This process's clients have these settings of the wire from now on; the broker's address."""
    for name in [name for name in os.environ if name.startswith("CLAW_KAFKA")]:
        patch.delenv(name)
    for name, value in env.items():
        if name != "CLAW_KAFKA":
            patch.setenv(name, value)
    return env["CLAW_KAFKA"]


def claw(broker: Secured, user: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return warm.claw(*arguments, env=with_env(broker.env(user) | env, os.environ))


async def reach(kafka: str) -> None:
    async with bus.admin(kafka) as client:
        await client.list_topics()


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CLAW_KAFKA_PASSWORD", "wrong", "CLAW_KAFKA_PASSWORD"),
        ("CLAW_KAFKA_USER", "stranger", "CLAW_KAFKA_USER"),
        ("CLAW_KAFKA_MECHANISM", "SCRAM-SHA-256", "CLAW_KAFKA_MECHANISM"),
        ("CLAW_KAFKA_CA", "", "CLAW_KAFKA_CA"),
        ("CLAW_KAFKA_PROTOCOL", "SASL_PLAINTEXT", "CLAW_KAFKA_PROTOCOL"),
    ],
)
def test_who_is_not_let_in_hears_which_setting_to_look_at(
    broker: Secured, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    come_as(monkeypatch, broker, ROOT_USER)
    run(reach(broker.kafka))
    monkeypatch.setenv(variable, value)
    with pytest.raises(DependencyUnreachable, match=f"does not let this process in.*{said}"):
        run(reach(broker.kafka))


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CLAW_KAFKA_PASSWORD", "", "CLAW_KAFKA_PASSWORD"),
        ("CLAW_KAFKA_CA", "/nowhere.pem", "nowhere"),
        ("CLAW_KAFKA_PROTOCOL", "SSL", "asks for no user"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(
    broker: Secured, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    come_as(monkeypatch, broker, ROOT_USER)
    monkeypatch.setenv(variable, value)
    with pytest.raises(WrongUse, match=said):
        run(reach(broker.kafka))


def test_a_user_does_only_its_part(broker: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert claw(broker, ROOT_USER, "grants", "apply").returncode == 0
    assert claw(broker, ROOT_USER, "grants", "diff").returncode == 0
    record = Record(b"key", b"value", [])

    def write(topic: str) -> Coroutine[Any, Any, None]:
        return publish(broker.kafka, topic, record)

    come_as(monkeypatch, broker, "claw-gateway")
    with pytest.raises(UserError, match=r"Authorization.*claw grants apply"):
        run(write(topics.CUTS))
    with pytest.raises(UserError, match=r"Authorization.*claw grants apply"):
        run(Ledger("secured", kafka=broker.kafka, holder="test").open())
    come_as(monkeypatch, broker, "claw-sinks")
    with pytest.raises(UserError, match=r"Authorization.*claw grants apply"):
        run(write(topics.EVENTS))
    come_as(monkeypatch, broker, "claw-console")
    assert run(count_waiting(broker.kafka, {}))[topics.EVENTS] == Waiting(0, 0)
    come_as(monkeypatch, broker, "nobody")
    with pytest.raises(UserError, match="refuse to show"):
        run(acls.diff_entries(broker.kafka, acls.wanted_entries()))
    refused = claw(broker, "claw-gateway", "grants", "apply")
    assert refused.returncode == 1
    assert "may Alter the cluster" in refused.stderr


async def publish(kafka: str, topic: str, record: Record) -> None:
    producer = await bus.start_producer(kafka, client_id="test")
    try:
        await bus.publish(producer, topic, record, deadline=30)
    finally:
        await bus.stop_producer(producer)


@pytest.mark.parametrize("way", ["SCRAM-SHA-256", "PLAIN", "certificate"])
def test_a_user_is_known_by_each_way_in(broker: Secured, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    def env_of(user: str) -> dict[str, str]:
        return broker.env_by_certificate(user) if way == "certificate" else broker.env(user, way)

    kafka = come_with(monkeypatch, env_of("claw-gateway"))
    assert claw(broker, ROOT_USER, "grants", "apply").returncode == 0
    record = encode(RunConfig(run_id=f"by-{way}", at=1.0), source="test", key=way.encode())
    run(publish(kafka, topics.RUNS, record))
    with pytest.raises(UserError, match=r"Authorization.*claw grants apply"):
        run(publish(kafka, topics.CUTS, record))
    read = run(bus.read_topic(kafka, topics.RUNS, client_id="test"))
    assert [found.value for found in read if found.key == way.encode()] == [record.value]
    by_command = warm.claw("topics", "diff", env=with_env(env_of("claw-admin"), os.environ))
    assert (by_command.returncode, by_command.stderr.strip()) == (0, "topics are as they should be")
    if way != "certificate":
        monkeypatch.setenv("CLAW_KAFKA_PASSWORD", "wrong")
        with pytest.raises(DependencyUnreachable, match=r"does not let this process in.*CLAW_KAFKA_PASSWORD"):
            run(reach(kafka))


@pytest.mark.parametrize("shown", ["none", "a stranger's"])
def test_without_a_certificate_that_the_broker_trusts_nobody_comes_in(
    broker: Secured, monkeypatch: pytest.MonkeyPatch, shown: str
) -> None:
    env = broker.env_by_certificate("claw-gateway", trustme.CA())
    if shown == "none":
        del env["CLAW_KAFKA_CERT"], env["CLAW_KAFKA_KEY"]
    kafka = come_with(monkeypatch, env)
    with pytest.raises(DependencyUnreachable, match=r"does not let this process in.*CLAW_KAFKA_CERT"):
        run(reach(kafka))


def test_missing_grants_are_named(broker: Secured) -> None:
    shown = claw(broker, ROOT_USER, "grants", "diff", "--prefix", "other-")
    assert shown.returncode == 1
    assert "other-sinks" in shown.stdout
    assert claw(broker, ROOT_USER, "grants", "apply", "--prefix", "other-", "--dry-run").returncode == 0
    assert claw(broker, ROOT_USER, "grants", "diff", "--prefix", "other-").returncode == 1


def test_the_doctor_finds_missing_grants(broker: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(user: str, prefix: str = acls.DEFAULT_PREFIX) -> dict[str, Finding]:
        come_as(monkeypatch, broker, user)
        return {finding.check: finding for finding in run(check_broker(broker.kafka, prefix))}

    assert claw(broker, ROOT_USER, "grants", "apply").returncode == 0
    missing = look(ROOT_USER, "unknown-")["grants"]
    assert (missing.state, missing.remedy) == ("bad", "claw grants apply")
    assert {finding.state for finding in look("claw-admin").values()} == {"ok"}
    seen = look("claw-sinks")
    assert {check for check, finding in seen.items() if finding.state == "skipped"} == {"limits", "topics", "grants"}
    assert not any(finding.state == "bad" for finding in seen.values())


@pytest.mark.timeout(300)
def test_a_trajectory_goes_all_the_way_with_every_process_as_its_own_user(
    broker: Secured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gateway, streams, reward workers, sinks and the trainer over SASL_SSL; the pool over HTTPS with a password."""
    assert claw(broker, ROOT_USER, "grants", "apply").returncode == 0
    with running_stack(tmp_path / "pool", processes=("clickhouse",), env={PASSWORD_VARIABLE: "a word"}) as pool:
        run(_all_the_way(broker, pool.clickhouse, tmp_path, monkeypatch))


async def _all_the_way(broker: Secured, clickhouse: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with behind_tls(clickhouse, tmp_path) as (url, ca):
        pool = {"CLAW_CLICKHOUSE": url, "CLAW_CLICKHOUSE_CA": str(ca)}
        await asyncio.to_thread(_check_pool_is_guarded, broker, url, pool)
        ports = {stage: find_port() for stage in ("gateway", "streams", "workers", "sinks")}
        own: dict[str, dict[str, object]] = {
            "gateway": {},
            "streams": {"streams_spill": tmp_path / "spill"},
            "workers": {"workers_rewards": "tests.integration.plugins:length"},
            "sinks": {},
        }
        stages = [
            Worker(
                "streams.workers" if stage == "workers" else stage,
                tmp_path / f"{stage}.log",
                **{
                    name.removeprefix("CLAW_").lower(): value
                    for name, value in (broker.env(f"claw-{stage}") | pool).items()
                },
                **{f"{stage}_port": ports[stage], "blobs": tmp_path / "blobs"},
                **own[stage],
            )
            for stage in ports
        ]
        with workers(*stages):
            await asyncio.to_thread(_play, broker, ports, stages, tmp_path, monkeypatch)
            monkeypatch.setenv("CLAW_CLICKHOUSE_CA", str(ca))
            await asyncio.to_thread(wait_until, partial(are_stored, url), what="the sinks stored the samples")
            assert await asyncio.to_thread(Pool(url).recipes, "secured")


def are_stored(url: str) -> bool:
    return run(count_samples(url)) == 2


async def count_samples(url: str) -> int:
    async with await ClickHouse.connect(url, "claw") as client:
        return int(await client.scalar("SELECT count() FROM samples FINAL"))


def _check_pool_is_guarded(broker: Secured, url: str, pool: dict[str, str]) -> None:
    """Migrations go in by TLS and password; without either nothing does."""
    done = claw(broker, "claw-admin", "migrate", **pool)
    assert done.returncode == 0, done.stderr
    assert claw(broker, "claw-admin", "migrate", CLAW_CLICKHOUSE=url).returncode == 3
    gone = claw(broker, "claw-admin", "migrate", **pool | {"CLAW_CLICKHOUSE": url.replace("a%20word", "wrong")})
    assert gone.returncode == 1, gone.stderr
    with pytest.MonkeyPatch.context() as patch:
        assert "CERTIFICATE" in why_not_ready(f"{url}/ping")
        patch.setenv("CLAW_CLICKHOUSE_CA", pool["CLAW_CLICKHOUSE_CA"])
        assert why_not_ready(f"{url}/ping") == ""


def is_ready(stages: list[Worker], port: int) -> bool:
    assert all(stage.alive for stage in stages)
    return why_not_ready(f"http://127.0.0.1:{port}/readyz") == ""


def _play(
    broker: Secured, ports: dict[str, int], stages: list[Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE, "utf-8")
    for stage, port in ports.items():
        wait_until(partial(is_ready, stages, port), what=f"{stage} is ready")
    applied = claw(broker, "claw-admin", "recipes", "apply", str(recipe))
    assert applied.returncode == 0, applied.stderr
    with Client(f"http://127.0.0.1:{ports['gateway']}") as client:
        prompt = uuid.uuid4().hex
        for number in range(2):
            with client.trajectory(prompt_uid=prompt) as trajectory:
                trajectory.submit_step(
                    prompt_ids=[1, 2],
                    response_ids=[3, 4 + number],
                    log_probs=[-0.5, -0.1],
                    policy_version=0,
                    messages=[{"role": "user", "content": "Hello"}],
                    reply={"role": "assistant", "content": "Hi"},
                )
    come_as(monkeypatch, broker, "claw-trainer")
    with BatchStream("secured", kafka=broker.kafka, timeout=90) as stream:
        batch = next(iter(stream))
        assert len(batch.offsets) == 3
        assert np.asarray(batch.token_ids).size == 8
        wait_until(lambda: run(find_holder(broker.kafka, "secured")) is not None, what="the trainer is heard of")
        with pytest.raises(RecipeHeld, match="held by"), BatchStream("secured", kafka=broker.kafka, holder="second"):
            pass
        batch.commit(policy_version=1)
    refusals = [line for stage in stages for line in stage.logged().splitlines() if "uthorization" in line]
    assert refusals == []
