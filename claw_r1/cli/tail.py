"""`claw tail`: facts as they come in, a line each."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import typer
from aiokafka import ConsumerRecord, TopicPartition

from claw_r1 import bus
from claw_r1.cli.address import kafka_address
from claw_r1.cli.options import Kafka
from claw_r1.codec import decode
from claw_r1.errors import InvalidRecord, UserError
from claw_r1.events import Annotation, Decision, Event, Reward, Step, StepStarted, TrajectoryEnd
from claw_r1.topics import EVENTS


def tail(
    run: Annotated[str | None, typer.Option("--run", help="Only of this run.")] = None,
    topic: Annotated[str, typer.Option("--topic", help="Topic to follow.")] = EVENTS,
    last: Annotated[
        int, typer.Option("--last", min=0, help="Begin with so many of each partition that are there.")
    ] = 0,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="End after so many lines.")] = None,
    kafka: Kafka = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document a line.")] = False,
) -> None:
    """Follow what happens: every call, step, reward, end and decision as it reaches the log. Ctrl-C ends it."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_print(kafka_address(kafka), topic, run, last, limit, as_json))


async def _print(kafka: str, topic: str, run: str | None, last: int, limit: int | None, as_json: bool) -> None:
    printed = 0
    async for record in follow(kafka, topic, last):
        event = _read(record)
        if run is not None and getattr(event, "run_id", None) != run:
            continue
        print(json.dumps(as_document(record, event)) if as_json else as_line(record, event), flush=True)
        printed += 1
        if printed == limit:
            return


def _read(record: ConsumerRecord) -> Event | InvalidRecord:
    try:
        return decode(record.headers, record.value)
    except InvalidRecord as error:
        return error


async def follow(kafka: str, topic: str, last: int) -> AsyncIterator[ConsumerRecord]:
    """Records of a topic that come from now on, and before them the last ones of each partition. Raises UserError."""
    consumer = await bus.start_consumer(kafka, client_id="claw-tail")
    try:
        partitions = [TopicPartition(topic, number) for number in sorted(await bus.partitions_of(consumer, topic))]
        if not partitions:
            raise UserError(f"there is no topic {topic}: `claw topics list` shows those there are")
        consumer.assign(partitions)
        ends = await bus.end_offsets(consumer, partitions)
        starts = await consumer.beginning_offsets(partitions)
        for tp in partitions:
            consumer.seek(tp, max(starts[tp], ends[tp] - last))
        async for record in consumer:
            if record.value is not None:
                yield record
    finally:
        await bus.stop_consumer(consumer)


def as_line(record: ConsumerRecord, event: Event | InvalidRecord) -> str:
    """A record for people."""
    clock = time.strftime("%H:%M:%S", time.localtime(record.timestamp / 1000))
    if isinstance(event, InvalidRecord):
        return f"{clock}  {record.partition}/{record.offset}  unreadable: {event.reason}: {event}"
    about = getattr(event, "trajectory_uid", None) or getattr(event, "prompt_uid", None) or ""
    return f"{clock}  {event.TYPE:16}  {about}  {_what(event)}".rstrip()


def _what(event: Event) -> str:
    if isinstance(event, Step):
        faults = f"  {', '.join(event.capture.reasons)}" if event.capture.reasons else ""
        version = "" if event.policy_version is None else f"  version {event.policy_version}"
        return f"{event.step_id}  {event.prompt_len} + {event.response_len} tokens  {event.status}{version}{faults}"
    if isinstance(event, StepStarted):
        return event.step_id
    if isinstance(event, Reward):
        return f"{event.source} = {'withdrawn' if event.value is None else f'{event.value:g}'}"
    if isinstance(event, Annotation):
        return f"{event.name} by {event.source}"
    if isinstance(event, TrajectoryEnd):
        return event.status
    if isinstance(event, Decision):
        return f"{event.action} by {event.author}"
    return ""


def as_document(record: ConsumerRecord, event: Event | InvalidRecord) -> dict[str, Any]:
    """A record for programs: where it is and what it says; packed arrays as their number of bytes."""
    place = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "time": record.timestamp / 1000,
    }
    if isinstance(event, InvalidRecord):
        return place | {"unreadable": event.reason, "why": str(event)}
    return place | {"type": event.TYPE, "event": _plain(event.model_dump())}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {"bytes": len(value)} if isinstance(value, bytes) else value
