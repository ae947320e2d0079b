"""`claw import`: logs of other programs, and our own exports, become facts."""

import asyncio
import json
import time
from pathlib import Path
from typing import Annotated, cast

import typer

from claw_r1.cli.options import AsJson, ClickHouseUrl, Database, Kafka
from claw_r1.cli.snapshots import Wait, places_of, progress
from claw_r1.datasets.importing import KINDS, Kind, find_kind, import_files, list_files
from claw_r1.datasets.logs import Naming
from claw_r1.ids import check_id


def import_logs(
    path: Annotated[Path, typer.Argument(help="File of JSON lines, or the folder of an export of the form facts.")],
    kind: Annotated[
        str | None, typer.Option("--kind", help="claw, openai or otel (default: what it looks like).")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="Run of the imported (default: imported); exports have their own.")
    ] = None,
    channel: Annotated[str, typer.Option("--channel", help="Channel of the imported.")] = "train",
    trajectory: Annotated[
        str | None, typer.Option("--trajectory", help="Field that names the trajectory, as metadata.session.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Field that names the prompt, and so the group.")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="Field that names the task.")] = None,
    reward: Annotated[str | None, typer.Option("--reward", help="Field that holds a reward.")] = None,
    reward_source: Annotated[str, typer.Option("--reward-source", help="Source of these rewards.")] = "reward",
    rejects: Annotated[
        Path | None, typer.Option("--rejects", help="Where lines go that give no facts (default: PATH.rejects.jsonl).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write no fact.")] = False,
    wait: Wait = 30.0,
    kafka: Kafka = None,
    clickhouse: ClickHouseUrl = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Put conversations on the log. What has no token ids is kept and never trained; importing twice changes nothing."""
    paths = list_files(path)
    if kind is not None and kind not in KINDS:
        raise typer.BadParameter(f"{kind} is not one of {', '.join(KINDS)}", param_hint="--kind")
    found = find_kind(paths) if kind is None else cast(Kind, kind)
    if found == "claw" and any((run, trajectory, prompt, task, reward)):
        raise typer.BadParameter("an export says its runs, names and rewards itself", param_hint="--run")
    named = Naming(
        check_id("run", run or "imported"), check_id("channel", channel), trajectory, prompt, task, reward,
        check_id("reward source", reward_source),
    )  # fmt: skip
    left = rejects or path.resolve().with_name(path.resolve().name + ".rejects.jsonl")
    if left.resolve() in {one.resolve() for one in paths}:
        raise typer.BadParameter(f"{left} is what is imported", param_hint="--rejects")
    places = places_of(kafka, clickhouse, database)
    with progress("importing", "bytes") as told:
        report = asyncio.run(
            import_files(
                places, paths, found, named, rejects=left, dry_run=dry_run, wait=wait, now=time.time(), told=told
            )
        )
    document = {
        "kind": found,
        "dry_run": dry_run,
        **report.document(),
        "rejects": str(left) if report.rejected else None,
    }
    if as_json:
        print(json.dumps(document))
        return
    what = "would be written" if dry_run else "written"
    number = report.facts - report.already if dry_run else report.written
    print(
        f"{report.lines} lines: {number} facts {what}, {report.steps} of them steps; {report.already} were there already"
    )
    if report.repeated:
        print(f"{report.repeated:>10}  said by an earlier line too")
    if report.skipped:
        print(f"{report.skipped:>10}  passed over, since they are of no conversation")
    for reason, count in document["rejected"].items():
        print(f"{count:>10}  rejected  {reason}")
    if report.rejected:
        print(f"what was rejected is in {left}")
