"""`claw snapshots`: named selections of trajectories that never change."""

import asyncio
import contextlib
import getpass
import json
import sys
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from claw_r1.cli.address import clickhouse_address, database_name, kafka_address
from claw_r1.cli.decide import parse_condition
from claw_r1.cli.options import AsJson, ClickHouseUrl, Database, Kafka
from claw_r1.clickhouse import ClickHouse
from claw_r1.datasets.containers import FORMATS
from claw_r1.datasets.export import FACTS, FORM_NAMES, Order, export, moment_of, unfinished
from claw_r1.datasets.pool import Places, Source, Told, ask_for, count, newest_moment, refuse_nothing
from claw_r1.datasets.selection import Selection
from claw_r1.datasets.snapshots import Snapshot, Snapshots
from claw_r1.rules import find_field
from claw_r1.settings import SinksSettings

R = TypeVar("R")

app = typer.Typer(help="Make, list, compare, export and delete snapshots.", no_args_is_help=True)

QUERY_TIMEOUT = 600.0
"""Seconds for one question."""

Name = Annotated[str, typer.Argument(help="Snapshot.")]
Run = Annotated[
    str | None, typer.Option("--run", help="The run (default: default); with --sql, if its answer has no run_id.")
]
Channel = Annotated[str, typer.Option("--channel", help="With conditions: the channel.")]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", help="'FIELD OP VALUE' of a trajectory or its group, as in a recipe; repeated, all hold."),
]
ByRecipe = Annotated[str | None, typer.Option("--recipe", help="Instead of conditions: what this recipe emitted.")]
Sql = Annotated[
    str | None,
    typer.Option(
        "--sql", help="Instead of these: a SELECT that gives trajectory_uid, group_id or prompt_uid, and maybe run_id."
    ),
]
AsOf = Annotated[
    str | None,
    typer.Option("--as-of", help="Only what was there by then: an ISO time, UTC unless it says (default: now)."),
]
Wait = Annotated[float, typer.Option("--wait", min=0.1, help="Seconds to wait for a pool that is behind.")]
Form = Annotated[str, typer.Option("--form", help="Rows: facts, steps, sft, preference or tokens.")]
Container = Annotated[str, typer.Option("--format", help="Files: jsonl, parquet, or hf (a folder for load_from_disk).")]


def read_selection(
    run: str | None, channel: str, where: list[str] | None, recipe: str | None, sql: str | None
) -> Selection:
    """The selection of a command's options. Raises BadParameter naming what is wrong."""
    conditions = tuple(parse_condition(text) for text in where or ())
    untold = [c.field for c in conditions if (field := find_field(c.field)) is not None and not field.in_pool]
    if untold:
        raise typer.BadParameter(f"the pool does not tell {', '.join(untold)}", param_hint="--where")
    sql = None if sql is None else sql.strip().rstrip(";")
    try:
        return Selection(
            run_id=run if sql else run or "default", channel=channel, where=conditions, recipe=recipe, sql=sql
        )
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise typer.BadParameter(message) from error


def read_time(text: str | None) -> int | None:
    """Milliseconds since the epoch. Raises BadParameter."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a time: write 2026-01-31T12:00:00Z", param_hint="--as-of") from error
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


def places_of(kafka: str | None, clickhouse: str | None, database: str | None) -> Places:
    return Places(
        kafka_address(kafka), clickhouse_address(clickhouse), database_name(database), SinksSettings.read().group
    )


@contextlib.contextmanager
def progress(doing: str, what: str) -> Iterator[Told]:
    """A bar on a terminal that is told how many are done, and of how many."""
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TextColumn(what), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# ------------------------------------------------------------------------------------------------------------- commands


@app.command()
def create(
    name: Name,
    run: Run = None,
    channel: Channel = "train",
    where: Where = None,
    recipe: ByRecipe = None,
    sql: Sql = None,
    as_of: AsOf = None,
    author: Annotated[str | None, typer.Option("--author", help="Who makes it (default: the user's name).")] = None,
    wait: Wait = 30.0,
    kafka: Kafka = None,
    clickhouse: ClickHouseUrl = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Keep a selection of ended trajectories under a name: what comes later changes nothing of what it gives."""
    selection = read_selection(run, channel, where, recipe, sql)
    places, time = places_of(kafka, clickhouse, database), read_time(as_of)

    async def make() -> Snapshot:
        async with await ClickHouse.connect(places.clickhouse, places.database, timeout=QUERY_TIMEOUT) as client:
            moment = await newest_moment(places, client, as_of=time, wait=wait)
            return await Snapshots(client).create(
                name, selection, moment, author=author or getpass.getuser(), now=datetime.now(UTC), told=told
            )

    with progress("keeping", "trajectories") as told:
        snapshot = asyncio.run(make())
    _print(snapshot, as_json)


@app.command("list")
def list_snapshots(clickhouse: ClickHouseUrl = None, database: Database = None, as_json: AsJson = False) -> None:
    """List the snapshots."""
    found = asyncio.run(_with(clickhouse, database, lambda snapshots: snapshots.all()))
    if as_json:
        print(json.dumps([snapshot.document() for snapshot in found]))
        return
    for snapshot in found:
        print(_line(snapshot))
    if not found:
        print("there is no snapshot; `claw snapshots create NAME` makes one", file=sys.stderr)


@app.command()
def show(name: Name, clickhouse: ClickHouseUrl = None, database: Database = None, as_json: AsJson = False) -> None:
    """Show what a snapshot holds, and where it comes from."""
    _print(asyncio.run(_with(clickhouse, database, lambda snapshots: snapshots.get(name))), as_json)


@app.command()
def diff(
    one: Annotated[str, typer.Argument(help="Snapshot.")],
    other: Annotated[str, typer.Argument(help="Another one.")],
    limit: Annotated[int, typer.Option("--limit", min=0, max=100_000, help="List so many that differ.")] = 20,
    clickhouse: ClickHouseUrl = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Compare two snapshots: trajectories that only one has, and those with other facts, such as a later reward."""
    found = asyncio.run(_with(clickhouse, database, lambda snapshots: snapshots.diff(one, other, limit)))
    if as_json:
        print(json.dumps(found))
        return
    print("  ".join(f"{found[kind]} {kind}" for kind in ("added", "removed", "changed", "same")))
    for row in found["members"]:
        print(f"{row['kind']:<8} {row['run_id']} {row['group_id']} {row['trajectory_uid']}")


@app.command()
def delete(name: Name, clickhouse: ClickHouseUrl = None, database: Database = None, as_json: AsJson = False) -> None:
    """Forget a snapshot. Its trajectories stay in the pool."""
    snapshot = asyncio.run(_with(clickhouse, database, lambda snapshots: snapshots.delete(name)))
    print(json.dumps(snapshot.document()) if as_json else f"snapshot {name} is forgotten")


@app.command("export")
def export_snapshot(
    name: Name,
    to: Annotated[Path, typer.Option("--to", help="Folder to make.")],
    form: Form = "facts",
    container: Container = "jsonl",
    clickhouse: ClickHouseUrl = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Write a snapshot into files. The same command goes on with an export that was interrupted."""
    check_form(form, container)

    async def write(told: Told) -> dict[str, Any]:
        url, pool = clickhouse_address(clickhouse), database_name(database)
        async with await ClickHouse.connect(url, pool, timeout=QUERY_TIMEOUT) as client:
            snapshot = await Snapshots(client).get_whole(name)
            origin = {
                "snapshot": snapshot.name,
                "snapshot_id": snapshot.snapshot_id,
                "content_hash": snapshot.content_hash,
            }
            return await export(
                client, Order(to, form, container, snapshot.source, snapshot.trajectories, origin), told
            )

    run_export(write, as_json)


def export_selected(
    to: Annotated[Path, typer.Option("--to", help="Folder to make.")],
    form: Form = "facts",
    container: Container = "jsonl",
    run: Run = None,
    channel: Channel = "train",
    where: Where = None,
    recipe: ByRecipe = None,
    sql: Sql = None,
    as_of: AsOf = None,
    wait: Wait = 30.0,
    kafka: Kafka = None,
    clickhouse: ClickHouseUrl = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Write a selection of ended trajectories into files. The same command goes on with an export that was interrupted."""
    check_form(form, container)
    selection = read_selection(run, channel, where, recipe, sql)
    places, time = places_of(kafka, clickhouse, database), read_time(as_of)

    async def write(told: Told) -> dict[str, Any]:
        begun = unfinished(to)
        async with await ClickHouse.connect(places.clickhouse, places.database, timeout=QUERY_TIMEOUT) as client:
            moment = moment_of(begun) if begun else await newest_moment(places, client, as_of=time, wait=wait)
            source = Source(await ask_for(client, selection), moment)
            total = await count(client, source)
            refuse_nothing(total, selection)
            origin = {"selection": selection.document()}
            return await export(client, Order(to, form, container, source, total, origin), told)

    run_export(write, as_json)


def check_form(form: str, container: str) -> None:
    """Raises BadParameter for a form or a format that does not exist, and for facts in another format than lines."""
    if form not in FORM_NAMES:
        raise typer.BadParameter(f"{form} is not one of {', '.join(FORM_NAMES)}", param_hint="--form")
    if container not in FORMATS:
        raise typer.BadParameter(f"{container} is not one of {', '.join(FORMATS)}", param_hint="--format")
    if form == FACTS and container != "jsonl":
        raise typer.BadParameter("facts are lines of JSON: choose another --form", param_hint="--format")


def run_export(write: Callable[[Told], Coroutine[Any, Any, dict[str, Any]]], as_json: bool) -> None:
    """Run it under a bar, and print its summary."""
    with progress("writing", "trajectories") as told:
        summary = asyncio.run(write(told))
    if as_json:
        print(json.dumps(summary))
        return
    print(f"{summary['rows']} rows of {summary['trajectories']} trajectories in {summary['path']}")
    for reason, number in summary["left_out"].items():
        print(f"{number:>10}  left out  {reason}")


async def _with(clickhouse: str | None, database: str | None, ask: Callable[[Snapshots], Coroutine[Any, Any, R]]) -> R:
    url, pool = clickhouse_address(clickhouse), database_name(database)
    async with await ClickHouse.connect(url, pool, timeout=QUERY_TIMEOUT) as client:
        return await ask(Snapshots(client))


def _print(snapshot: Snapshot, as_json: bool) -> None:
    if as_json:
        print(json.dumps(snapshot.document()))
        return
    print(_line(snapshot))
    document = snapshot.document()
    print(f"selection: {json.dumps(document['selection'])}")
    print(f"as of:     {document['as_of']}; made by {snapshot.author} at {document['created']}")
    print(f"content:   {snapshot.content_hash}")


def _line(snapshot: Snapshot) -> str:
    counts = f"{snapshot.trajectories} trajectories, {snapshot.groups} groups, {snapshot.steps} steps"
    return f"{snapshot.name}  {counts}  {snapshot.content_hash[:12]}  {snapshot.author}"
