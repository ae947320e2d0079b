"""`claw topics`: compare the broker's topics with the project's list, make them so, and let the events grow."""

import asyncio
import dataclasses
import json
import sys
from typing import Annotated

import typer

from claw_r1 import bus, topics
from claw_r1.cli.address import kafka_address
from claw_r1.cli.options import AsJson, Kafka
from claw_r1.settings import StreamsSettings, WorkersSettings

app = typer.Typer(help="Create and compare the project's topics, and let the events grow.", no_args_is_help=True)

Partitions = Annotated[
    int | None,
    typer.Option(
        "--partitions",
        min=1,
        help=f"Partitions of the events topic (default: those it has, else {topics.DEFAULT_EVENTS_PARTITIONS}).",
    ),
]


@app.command()
def apply(
    kafka: Kafka = None,
    partitions: Partitions = None,
    replication: Annotated[
        int | None,
        typer.Option("--replication", min=1, help="Copies of each partition (default: as the brokers choose)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create missing topics and mend their settings; another partition count is refused: `claw topics grow`."""

    async def work() -> list[bus.TopicDrift]:
        address = kafka_address(kafka)
        wanted = await _wanted(address, partitions)
        if dry_run:
            return await bus.diff_topics(address, wanted)
        return await bus.apply_topics(address, wanted, replication=replication or bus.AS_BROKERS_CHOOSE)

    _print(asyncio.run(work()), as_json, "would change" if dry_run else "changed")


@app.command()
def diff(kafka: Kafka = None, partitions: Partitions = None, as_json: AsJson = False) -> None:
    """Show what differs from the list; exit code 1 if anything does."""

    async def work() -> list[bus.TopicDrift]:
        address = kafka_address(kafka)
        return await bus.diff_topics(address, await _wanted(address, partitions))

    drifts = asyncio.run(work())
    _print(drifts, as_json, "differs")
    if drifts:
        raise typer.Exit(1)


@app.command("list")
def list_topics(
    partitions: Annotated[
        int, typer.Option("--partitions", min=1, help="Partitions of the events topic.")
    ] = topics.DEFAULT_EVENTS_PARTITIONS,
    as_json: AsJson = False,
) -> None:
    """Show the list itself."""
    wanted = topics.all_topics(partitions)
    if as_json:
        print(json.dumps([dataclasses.asdict(topic) for topic in wanted]))
        return
    for topic in wanted:
        print(f"{topic.name:32} {topic.partitions:3} by {topic.key:26} {topic.carries}")


@app.command()
def grow(
    partitions: Annotated[
        int, typer.Option("--partitions", min=1, help="Partitions that the events shall have: a multiple.")
    ],
    wait: Annotated[
        float, typer.Option("--wait", min=0, help="Seconds to wait until every stream and reward worker has gone.")
    ] = 60.0,
    kafka: Kafka = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give the events topic more partitions; open groups go along. Nobody may write meanwhile: stop all processes but brokers,
    ClickHouse, sinks and trainers before."""
    # Imported here: no other command of these needs the stream workers' fold.
    from streams.growth import grow as grow_events

    settings = StreamsSettings.read().model_copy(update={"kafka": kafka_address(kafka)})
    workers = WorkersSettings.read().group
    growth = asyncio.run(grow_events(settings, partitions, workers=workers, wait=wait, dry_run=dry_run))
    if as_json:
        print(json.dumps(dataclasses.asdict(growth) | {"dry_run": dry_run}))
        return
    groups = "" if growth.carried is None else f"{growth.carried} open groups and "
    print(
        f"{topics.EVENTS} {'would have' if dry_run else 'has'} {growth.after} partitions, not {growth.before}: {groups}"
        f"{growth.moved} outcomes moved, {growth.recipes} recipes begun"
    )


async def _wanted(kafka: str, partitions: int | None) -> list[topics.Topic]:
    """The list; without a number, with as many events partitions as there are."""
    return topics.all_topics(
        partitions or await bus.count_partitions(kafka, topics.EVENTS) or topics.DEFAULT_EVENTS_PARTITIONS
    )


def _print(drifts: list[bus.TopicDrift], as_json: bool, verb: str) -> None:
    if as_json:
        print(json.dumps([dataclasses.asdict(drift) for drift in drifts]))
        return
    for drift in drifts:
        print(f"{drift.topic}: {drift.what} {verb}: {drift.found or 'missing'} → {drift.wanted}")
    if not drifts:
        print("topics are as they should be", file=sys.stderr)
