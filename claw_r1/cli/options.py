"""Options that many commands have."""

from typing import Annotated

import typer

Kafka = Annotated[
    str | None, typer.Option("--kafka", help="Broker, HOST:PORT (default: CLAW_KAFKA, or the running stack).")
]
ClickHouseUrl = Annotated[
    str | None, typer.Option("--clickhouse", help="ClickHouse URL (default: CLAW_CLICKHOUSE, or the running stack).")
]
Database = Annotated[str | None, typer.Option("--database", help="Database of the pool.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
