"""`claw topics`: compare the broker's topics with the project's list, and make them so."""

import asyncio
import dataclasses
import json
import sys
from typing import Annotated

import typer

from claw_r1 import bus, topics
from claw_r1.cli.address import kafka_address

app = typer.Typer(help="Create and compare the project's topics.", no_args_is_help=True)

Kafka = Annotated[
    str | None, typer.Option("--kafka", help="Broker, HOST:PORT (default: CLAW_KAFKA, or the running stack).")
]
Partitions = Annotated[
    int, typer.Option("--partitions", min=1, help="Partitions of the events topic; fixed for the topic's life.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command()
def apply(
    kafka: Kafka = None,
    partitions: Partitions = topics.DEFAULT_EVENTS_PARTITIONS,
    replication: Annotated[int, typer.Option("--replication", min=1, help="Copies of each partition.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create missing topics and mend their settings; a changed partition count is refused."""
    wanted = topics.all_topics(partitions)
    address = kafka_address(kafka)
    work = bus.diff_topics(address, wanted) if dry_run else bus.apply_topics(address, wanted, replication=replication)
    _print(asyncio.run(work), as_json, "would change" if dry_run else "changed")


@app.command()
def diff(
    kafka: Kafka = None, partitions: Partitions = topics.DEFAULT_EVENTS_PARTITIONS, as_json: AsJson = False
) -> None:
    """Show what differs from the list; exit code 1 if anything does."""
    drifts = asyncio.run(bus.diff_topics(kafka_address(kafka), topics.all_topics(partitions)))
    _print(drifts, as_json, "differs")
    if drifts:
        raise typer.Exit(1)


@app.command("list")
def list_topics(partitions: Partitions = topics.DEFAULT_EVENTS_PARTITIONS, as_json: AsJson = False) -> None:
    """Show the list itself."""
    wanted = topics.all_topics(partitions)
    if as_json:
        print(json.dumps([dataclasses.asdict(topic) for topic in wanted]))
        return
    for topic in wanted:
        print(f"{topic.name:32} {topic.partitions:3} by {topic.key:26} {topic.carries}")


def _print(drifts: list[bus.TopicDrift], as_json: bool, verb: str) -> None:
    if as_json:
        print(json.dumps([dataclasses.asdict(drift) for drift in drifts]))
        return
    for drift in drifts:
        print(f"{drift.topic}: {drift.what} {verb}: {drift.found or 'missing'} → {drift.wanted}")
    if not drifts:
        print("topics are as they should be", file=sys.stderr)
