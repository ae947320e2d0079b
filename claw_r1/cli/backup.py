"""`claw backup` and `claw restore`: the whole system into a folder, and out of it into an empty one."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from claw_r1.cli.address import clickhouse_address, database_name, kafka_address
from claw_r1.cli.options import AsJson, ClickHouseUrl, Database, Kafka
from claw_r1.settings import Settings, SinksSettings

if TYPE_CHECKING:
    from claw_r1.backups.folder import Manifest
    from claw_r1.backups.run import Place, Told

_EVERY: Final = 5.0
"""Seconds between two lines about one thing where nobody watches a terminal."""

Directory = Annotated[Path, typer.Argument(help="Folder of the backup.")]
Blobs = Annotated[Path | None, typer.Option("--blobs", help="Folder of the blobs (default: CLAW_BLOBS).")]


def backup(
    directory: Directory,
    kafka: Kafka = None,
    clickhouse: ClickHouseUrl = None,
    database: Database = None,
    blobs: Blobs = None,
    as_json: AsJson = False,
) -> None:
    """Copy topics, offsets of consumer groups, the pool and the blobs into a folder, while everything runs. The same command
    goes on with a backup that was interrupted."""
    from claw_r1.backups.run import back_up

    place = _place(kafka, clickhouse, database, blobs)
    with _telling() as told:
        manifest = asyncio.run(back_up(place, directory, told))
    if as_json:
        print(json.dumps(_document(manifest, directory)))
    else:
        print(_sentence(manifest, directory, "in"))


def restore(
    directory: Directory,
    kafka: Kafka = None,
    clickhouse: ClickHouseUrl = None,
    database: Database = None,
    blobs: Blobs = None,
    replication: Annotated[
        int | None,
        typer.Option("--replication", min=1, help="Copies of each partition (default: as the brokers choose)."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the backup and the target, and change nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup into brokers and a database that are empty, and compare all of it. Start the other processes afterwards."""
    from claw_r1.backups.run import restore as put_back
    from claw_r1.bus import AS_BROKERS_CHOOSE

    place, copies = _place(kafka, clickhouse, database, blobs), replication or AS_BROKERS_CHOOSE
    with _telling() as told:
        done = asyncio.run(put_back(place, directory, told, replication=copies, dry_run=dry_run))
    if as_json:
        print(json.dumps(_document(done.manifest, directory) | {"without": done.without}))
        return
    how = "could be restored from" if dry_run else "restored and compared, from"
    print("\n".join([_sentence(done.manifest, directory, how), *done.without]))


def _place(kafka: str | None, clickhouse: str | None, database: str | None, blobs: Path | None) -> "Place":
    from claw_r1.backups.run import Place

    return Place(
        kafka_address(kafka),
        clickhouse_address(clickhouse),
        database_name(database),
        blobs or Path(Settings.read().blobs).expanduser(),
        SinksSettings.read().group,
    )


@contextlib.contextmanager
def _telling() -> Iterator["Told"]:
    """One line a thing that moves on a terminal, and a line now and then elsewhere."""
    live = sys.stderr.isatty()
    last: dict[str, float] = {}

    def told(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - last.get(what, now - _EVERY) < (0.1 if live else _EVERY):
            return
        last[what] = now
        print(f"{done} of {total} {what}", end="\r" if live and done < total else "\n", file=sys.stderr, flush=True)

    yield told


def _document(manifest: "Manifest", directory: Path) -> dict[str, Any]:
    return {"path": str(directory), **manifest.model_dump()}


def _sentence(manifest: "Manifest", directory: Path, how: str) -> str:
    return (
        f"{manifest.records} records, {manifest.rows} rows and {manifest.blobs} blobs {how} {directory} "
        f"({manifest.bytes} bytes, begun {manifest.created})"
    )
