"""Settings that an operator gave to a topic are in a backup, and come back on a topic that a restore makes."""

import asyncio
from pathlib import Path

import pytest

from claw_r1 import bus, topics
from claw_r1.backups import log
from claw_r1.backups.folder import Folder, Span, TopicPlan
from claw_r1.ids import new_id
from tests.conftest import Stack
from tests.log import forget_topic

pytestmark = pytest.mark.stack

GIVEN = {"min.insync.replicas": "1", "retention.bytes": "1073741824", "segment.ms": "3600000"}


def plan_of(kafka: str, name: str) -> TopicPlan:
    (plan,) = asyncio.run(log.plan_topics(kafka, {name: 1}))
    return plan


def give(kafka: str, name: str, settings: dict[str, str]) -> None:
    async def give() -> None:
        async with bus.admin(kafka) as client:
            await bus.set_configs(client, {name: settings})

    asyncio.run(give())


def put_back(kafka: str, plan: TopicPlan, folder: Path) -> list[str]:
    async def put() -> list[str]:
        made = await log.make_topics(kafka, [plan], bus.AS_BROKERS_CHOOSE)
        return await log.settle_topics(kafka, [plan], made, Folder(folder))

    return asyncio.run(put())


def test_a_topic_that_is_made_gets_what_was_its_own(stack: Stack, tmp_path: Path) -> None:
    spec = topics.batch_topic_spec(f"own-{new_id()}")
    asyncio.run(bus.ensure_topic(stack.kafka, spec))
    assert plan_of(stack.kafka, spec.name).own == {}
    give(stack.kafka, spec.name, GIVEN | {"retention.ms": "7200000", "follower.replication.throttled.replicas": "0:0"})
    plan = plan_of(stack.kafka, spec.name)
    assert plan.own == GIVEN
    assert plan.config == spec.config | {"retention.ms": "7200000"}
    forget_topic(stack.kafka, spec.name)
    assert put_back(stack.kafka, plan, tmp_path) == []
    assert plan_of(stack.kafka, spec.name) == plan


def test_what_a_topic_cannot_get_is_said_and_stops_nothing(stack: Stack, tmp_path: Path) -> None:
    name = topics.batch_topic(f"own-{new_id()}")
    own = {"min.insync.replicas": "2", "of.another.version": "1", "segment.ms": "3600000"}
    plan = TopicPlan(name=name, spans=[Span(start=0, end=0)], config={"cleanup.policy": "delete"}, own=own)
    copies, unknown = put_back(stack.kafka, plan, tmp_path)
    assert copies == (f"{name} is without min.insync.replicas=2: a partition has 1 copy here, and would take no writes")
    assert unknown.startswith(f"{name} is without of.another.version=1: the broker did not change the settings")
    assert plan_of(stack.kafka, name).own == {"segment.ms": "3600000"}


def test_a_topic_that_was_there_keeps_its_own(stack: Stack, tmp_path: Path) -> None:
    spec = topics.batch_topic_spec(f"own-{new_id()}")
    asyncio.run(bus.ensure_topic(stack.kafka, spec))
    give(stack.kafka, spec.name, {"segment.ms": "60000", "retention.bytes": GIVEN["retention.bytes"]})
    before = plan_of(stack.kafka, spec.name)
    assert put_back(stack.kafka, before.model_copy(update={"own": GIVEN}), tmp_path) == [
        f"{spec.name} is without segment.ms=3600000: the topic was there before, with 60000"
    ]
    assert plan_of(stack.kafka, spec.name) == before


def test_a_backup_of_before_has_none_and_is_put_back(stack: Stack, tmp_path: Path) -> None:
    spec = topics.batch_topic_spec(f"own-{new_id()}")
    old = {"name": spec.name, "spans": [{"start": 0, "end": 0}], "config": spec.config}
    plan = TopicPlan.model_validate(old)
    assert put_back(stack.kafka, plan, tmp_path) == []
    assert plan_of(stack.kafka, spec.name) == plan
