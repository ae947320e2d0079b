"""`claw doctor`: everything that can be looked at from outside, a line each, with what mends it."""

import asyncio
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from claw_r1 import acls
from claw_r1.checks.finding import Finding
from claw_r1.cli.address import clickhouse_address, data_dir, database_name, kafka_address
from claw_r1.cli.options import AsJson, ClickHouseUrl, Database, Kafka
from claw_r1.local.several import stage_of
from claw_r1.local.state import read_state
from claw_r1.settings import PROCESSES, GatewaySettings, Settings

MARKS: Final = {"ok": "ok", "warn": "WARN", "bad": "BAD", "skipped": "skip"}


def doctor(
    kafka: Kafka = None,
    clickhouse: ClickHouseUrl = None,
    database: Database = None,
    upstream: Annotated[
        list[str] | None,
        typer.Option(
            "--upstream", help="Base URL of an engine, without /v1 (default: CLAW_GATEWAY_UPSTREAM); may be repeated."
        ),
    ] = None,
    prefix: Annotated[
        str, typer.Option("--prefix", help="The brokers' user of a process is this and the process's name.")
    ] = acls.DEFAULT_PREFIX,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the stack's state (default: CLAW_DATA, or .claw).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at the brokers, the pool, the engines and this machine, and say what mends each finding; exit code 1 if anything is
    bad."""
    from claw_r1.checks.broker import check_broker
    from claw_r1.checks.engine import check_engine
    from claw_r1.checks.machine import check_disks, check_ports
    from claw_r1.checks.pool import check_pool

    gateway, folder = GatewaySettings.read(), data_dir(data)
    key = gateway.upstream_key.get_secret_value()

    async def look() -> list[Finding]:
        looks = [
            check_broker(kafka_address(kafka, folder), prefix),
            check_pool(clickhouse_address(clickhouse, folder), database_name(database), time.time),
            *(check_engine(url.rstrip("/"), key, gateway.log_probs_mode) for url in upstream or gateway.upstream),
        ]
        return [finding for findings in await asyncio.gather(*looks) for finding in findings]

    found = [
        *asyncio.run(look()),
        *check_disks(folders(folder, gateway), gateway.spool_bytes),
        *check_ports(ports_of(folder)),
    ]
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found]))
    else:
        for finding in found:
            print(f"{MARKS[finding.state]:5} {finding.check}: {finding.says}")
            if finding.remedy:
                print(f"      → {finding.remedy}")
    bad = sum(finding.state == "bad" for finding in found)
    if bad:
        print(f"{bad} finding{'s' * (bad != 1)} to mend", file=sys.stderr)
        raise typer.Exit(1)


def folders(data: Path, gateway: GatewaySettings) -> dict[str, Path]:
    """The folders that processes of this machine write to."""
    named = {"state": data, "blobs": Path(gateway.blobs)}
    return named | ({"spool": Path(gateway.spool)} if gateway.spool else {})


def ports_of(data: Path) -> dict[str, int]:
    """The ports of the stack that runs, else those that the settings name."""
    state = read_state(data)
    if state.alive:
        return {
            name: process.port
            for name, process in state.processes.items()
            if process.port and stage_of(name) in PROCESSES
        }
    return {name: _port(model) for name, model in PROCESSES.items()}


def _port(model: type[Settings]) -> int:
    return int(getattr(model.read(os.environ), "port", 0))
