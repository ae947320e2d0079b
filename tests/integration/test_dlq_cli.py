"""`claw dlq` on the real broker: dead letters are counted, shown, and sent back as they were, once."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import ConsumerRecord
from typer.testing import CliRunner

from claw_r1 import bus
from claw_r1.cli.dlq import app
from claw_r1.codec import MAX_RECORD_BYTES
from claw_r1.dlq import dead_letter
from claw_r1.errors import InvalidRecord, RetryableError, UserError
from claw_r1.topics import Topic, dlq_topic, dlq_topic_spec
from tests.conftest import Stack

pytestmark = pytest.mark.stack

TOPIC = "claw.lettered.v1"
HEADERS = [("ce_type", b"claw.step.v9"), ("ce_id", b"fact-1")]
MAP = b"\x82\xa4name\xa5alice\xa3ids\xc4\x02\xff\xfe"
"""A msgpack map, one of its values bytes that are no text."""


def claw(stack: Stack, *arguments: str) -> Any:
    """What the command prints, as JSON if it is asked for that."""
    done = CliRunner().invoke(app, [*arguments, "--kafka", stack.kafka])
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout) if "--json" in arguments else done.output


async def bury(stack: Stack, topic: str = TOPIC) -> None:
    """Five letters of four records, two of them of one record that two readers could not read, one without its value."""
    await bus.ensure_topic(stack.kafka, Topic(topic, 2, "key", "test"))
    await bus.ensure_topic(stack.kafka, dlq_topic_spec(topic))
    producer = await bus.start_producer(stack.kafka, client_id="test")
    cases = [
        (0, 4, MAP, "unknown_type", "streams"),
        (1, 7, b"\xc1broken", "undecodable", "streams"),
        (0, 4, MAP, "unknown_type", "sinks"),
        (1, 9, bytes(MAX_RECORD_BYTES - 100), "undecodable", "sinks"),
        (1, 11, b"\x80", "undecodable", "sinks"),
    ]
    for partition, offset, value, reason, stage in cases:
        record = SimpleNamespace(
            topic=topic, partition=partition, offset=offset, timestamp=1, key=b"r/p", value=value, headers=HEADERS
        )
        letter = dead_letter(record, InvalidRecord(reason, "why it died"), stage=stage)
        await bus.publish(producer, dlq_topic(topic), letter, deadline=30)
    await bus.stop_producer(producer)


def sent(stack: Stack, topic: str = TOPIC) -> list[ConsumerRecord]:
    return asyncio.run(bus.read_topic(stack.kafka, topic, client_id="test"))


def test_letters_are_counted_shown_and_sent_back_once(stack: Stack) -> None:
    asyncio.run(bury(stack))
    (found,) = [one for one in claw(stack, "list", "--json") if one["topic"] == TOPIC]
    assert (found["letters"], found["replayed"], found["first"], found["last"]) == (5, 0, 0, 4)
    assert found["reasons"] == {"unknown_type": 2, "undecodable": 3}

    shown = claw(stack, "show", TOPIC, "0", "--json")
    assert (shown["partition"], shown["offset"], shown["stage"], shown["error"]) == (0, 4, "streams", "why it died")
    assert shown["headers"] == {"ce_type": "claw.step.v9", "ce_id": "fact-1"}
    assert shown["body"] == {"name": "alice", "ids": "hex fffe"}
    assert claw(stack, "show", dlq_topic(TOPIC), "1", "--json")["hex"] == b"\xc1broken".hex()
    for topic, offset, why in (
        (TOPIC, "99", "no dead letter of"),
        ("claw.nothing.v1", "0", "no dead letters of claw.n"),
    ):
        with pytest.raises(UserError, match=why):
            claw(stack, "show", topic, offset)

    assert claw(stack, "replay", TOPIC, "--dry-run", "--json")["sent"] == [0, 1, 4]
    assert sent(stack) == []

    done = claw(stack, "replay", TOPIC, "--reason", "unknown_type", "--json")
    assert (done["sent"], done["doubles"]) == ([0], [2])
    done = claw(stack, "replay", TOPIC, "--from", "1", "--to", "3", "--json")
    assert (done["sent"], done["already"], done["without_value"]) == ([1], 1, [3])
    for _ in range(2):  # a repeated replay sends what is left, and then nothing
        done = claw(stack, "replay", TOPIC, "--json")
    assert (done["sent"], done["already"]) == ([], 4)
    back = sorted(sent(stack), key=lambda record: (record.partition, record.offset))
    assert [(r.partition, r.key, r.value) for r in back] == [
        (0, b"r/p", MAP),
        (1, b"r/p", b"\xc1broken"),
        (1, b"r/p", b"\x80"),
    ]
    assert all(list(record.headers) == HEADERS for record in back)
    (found,) = [one for one in claw(stack, "list", "--json") if one["topic"] == TOPIC]
    assert (found["letters"], found["replayed"], found["reasons"]) == (5, 4, {"undecodable": 1})
    assert f"{TOPIC}: 5 letters, 4 sent back, offsets 0 to 4: 1 undecodable" in claw(stack, "list")
    assert "why it died" in claw(stack, "show", TOPIC, "0")
    assert "0 records would be sent back" in claw(stack, "replay", TOPIC, "--dry-run")
    assert claw(stack, "replay", TOPIC, "--stage", "streams", "--again", "--json")["sent"] == [0, 1]
    assert len(sent(stack)) == 5


def test_a_replay_that_breaks_off_before_its_mark_loses_nothing(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent and not marked is sent again, as it was; readers know it by its id."""
    topic = "claw.broken-off.v1"
    asyncio.run(bury(stack, topic))
    publish = bus.publish

    async def broken(producer: Any, target: str, record: Any, **how: Any) -> Any:
        if target == dlq_topic(topic):
            raise RetryableError("the broker is away")
        return await publish(producer, target, record, **how)

    with monkeypatch.context() as breaking:
        breaking.setattr(bus, "publish", broken)
        with pytest.raises(RetryableError):
            claw(stack, "replay", topic)
    assert claw(stack, "replay", topic, "--json")["sent"] == [0, 1, 4]
    assert [record.value for record in sent(stack, topic) if record.partition == 0] == [MAP, MAP]
