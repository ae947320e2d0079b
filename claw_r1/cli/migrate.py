"""`claw migrate`: bring the pool's tables and views to this version's schema."""

import asyncio
import json
import sys
from typing import Annotated

import typer

from claw_r1.cli.address import clickhouse_address, database_name
from claw_r1.cli.options import AsJson, ClickHouseUrl, Database


def migrate(
    clickhouse: ClickHouseUrl = None,
    database: Database = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster", help="Of a real cluster, one shard of replicas: replicated tables on every node of it."
        ),
    ] = None,
    roles: Annotated[
        bool,
        typer.Option("--roles", help="Make the role claw_analyst and its limits, on a real server, and nothing else."),
    ] = False,
    run: Annotated[
        list[str] | None,
        typer.Option("--run", help="With --roles: also the role claw_run_RUN, which reads this run alone; repeatable."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be applied, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Apply the numbered SQL files that the database lacks; an applied file that changed is refused."""
    from sinks import migrations

    if run and not roles:
        raise typer.BadParameter("roles are made with --roles", param_hint="--run")
    if cluster is not None:
        migrations.check_cluster(cluster)
    url, name = clickhouse_address(clickhouse), database_name(database)
    if roles:
        statements = migrations.role_statements(name, run or (), cluster)
        if not dry_run:
            asyncio.run(migrations.run_roles(url, statements))
        print(
            json.dumps({"database": name, "dry_run": dry_run, "statements": statements})
            if as_json
            else ";\n\n".join([*statements, ""]).rstrip()
        )
        return
    files = asyncio.run(migrations.list_pending(url, name) if dry_run else migrations.apply(url, name, cluster))
    if as_json:
        document = [{"id": file.id, "name": file.name, "sha256": file.sha256} for file in files]
        print(json.dumps({"database": name, "dry_run": dry_run, "migrations": document}))
        return
    for file in files:
        print(f"{file.name} {'would be applied' if dry_run else 'applied'}")
    if not files:
        print(f"the database {name} is up to date", file=sys.stderr)
