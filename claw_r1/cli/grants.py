"""`claw grants`: what each process needs to be allowed on the brokers, and the access control lists that say so."""

import asyncio
import dataclasses
import json
import sys
from typing import Annotated

import typer

from claw_r1 import acls
from claw_r1.cli.address import kafka_address
from claw_r1.cli.options import AsJson, Kafka
from claw_r1.grants import GRANTS

app = typer.Typer(help="List, compare and apply what each process may do on the brokers.", no_args_is_help=True)

Prefix = Annotated[str, typer.Option("--prefix", help="The user of a process is this and the process's name.")]


@app.command("list")
def list_grants(prefix: Prefix = acls.DEFAULT_PREFIX, as_json: AsJson = False) -> None:
    """Show what each process needs; no broker is asked."""
    _print(acls.wanted_entries(prefix), as_json)


@app.command()
def diff(kafka: Kafka = None, prefix: Prefix = acls.DEFAULT_PREFIX, as_json: AsJson = False) -> None:
    """Show what the brokers do not allow yet; exit code 1 if anything is missing."""
    missing = asyncio.run(acls.diff_entries(kafka_address(kafka), acls.wanted_entries(prefix)))
    _print(missing, as_json)
    if missing:
        raise typer.Exit(1)


@app.command()
def apply(
    kafka: Kafka = None,
    prefix: Prefix = acls.DEFAULT_PREFIX,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be added, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add what is missing to the brokers' access control lists; nothing is taken out."""
    wanted = acls.wanted_entries(prefix)
    address = kafka_address(kafka)
    _print(asyncio.run((acls.diff_entries if dry_run else acls.apply_entries)(address, wanted)), as_json)


def _print(entries: list[acls.Entry], as_json: bool) -> None:
    if as_json:
        print(json.dumps([dataclasses.asdict(entry) for entry in entries]))
        return
    for entry in entries:
        print(f"{entry.user:14} {entry.operation:16} {entry.kind:16} {entry.name}{'*' if entry.prefix else ''}")
    if not entries:
        print(f"nothing is missing of {', '.join(GRANTS)}", file=sys.stderr)
