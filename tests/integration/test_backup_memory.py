"""What a backup and a restore hold in memory is bounded by what they read and write at once, however large the system is."""

import asyncio
import tracemalloc
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from claw_r1 import bus, topics
from claw_r1.backups import blobs, log, pool
from claw_r1.backups.folder import Folder, Plan, TablePlan
from claw_r1.blobs import LocalBlobs
from claw_r1.clickhouse import ClickHouse
from claw_r1.ids import new_id
from tests.conftest import Stack
from tests.log import forget_topic

pytestmark = pytest.mark.stack

SMALL, LARGE = 8, 48
"""MiB of a partition, a table, a blob."""
AT_ONCE = 2**20
"""Bytes, in the place of the eight or sixteen MiB that are read, or on their way, at once."""
RECORD = 2**16
MOST = 2
"""Times as much memory for six times the data."""


@pytest.fixture(autouse=True)
def _bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus, "FETCH_BYTES", AT_ONCE)
    monkeypatch.setattr(log, "WINDOW_BYTES", AT_ONCE)
    monkeypatch.setattr(pool, "INSERT_BYTES", AT_ONCE)


def nothing(_: int) -> None:
    """Nobody watches."""


def peak(work: Coroutine[Any, Any, object]) -> int:
    """Bytes that Python held at most while it was done."""
    tracemalloc.start()
    try:
        asyncio.run(work)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def a_folder(path: Path) -> Folder:
    path.mkdir()
    return Folder(path)


def of_a_partition(stack: Stack, path: Path, size: int) -> dict[str, int]:
    """Peaks of a partition's copy, its restore and the comparison."""
    # No sink of another test reads it: what is written here is no fact.
    spec = replace(topics.batch_topic_spec("any"), name=f"claw.memory-{new_id()}.v1")
    many = size * 2**20 // RECORD

    async def write() -> None:
        await bus.ensure_topic(stack.kafka, spec)
        producer = await bus.start_producer(stack.kafka, client_id="test")
        try:
            for number in range(many):
                await producer.send_and_wait(spec.name, number.to_bytes(4, "big") * (RECORD // 4), partition=0)
        finally:
            await bus.stop_producer(producer)

    asyncio.run(write())
    plans = asyncio.run(log.plan_topics(stack.kafka, {spec.name: 1}))
    folder = a_folder(path)
    peaks = {"copy": peak(log.copy_topics(stack.kafka, plans, folder, nothing))}
    assert sum(part.count for part in folder.parts.values()) == many
    forget_topic(stack.kafka, spec.name)
    asyncio.run(log.make_topics(stack.kafka, plans, 1))
    peaks["fill"] = peak(log.fill_topics(stack.kafka, plans, folder, nothing))
    wrong: list[str] = []

    async def verify() -> None:
        wrong.extend(await log.verify_topics(stack.kafka, plans, folder, nothing))

    peaks["verify"] = peak(verify())
    assert wrong == []
    return peaks


def test_of_a_partition_a_window_is_held(stack: Stack, tmp_path: Path) -> None:
    small, large = of_a_partition(stack, tmp_path / "small", SMALL), of_a_partition(stack, tmp_path / "large", LARGE)
    assert {name for name in small if large[name] > MOST * small[name]} == set(), (small, large)


def of_a_table(stack: Stack, path: Path, size: int) -> dict[str, int]:
    """Peaks of a table's copy, its restore and the comparison."""
    database, rows = f"memory_{new_id()}".replace("-", "_"), size * 1024
    table = TablePlan(name="lines", final=False, columns=["number", "text"], days=[pool.NO_DAY])
    plan = Plan(created="", database=database, topics=[], groups=[], tables=[table], stored={})

    async def within(sql: str) -> None:
        async with await ClickHouse.connect(stack.clickhouse, database, timeout=120) as client:
            await client.command(sql)

    async def make() -> None:
        async with await ClickHouse.connect(stack.clickhouse, "system", timeout=120) as client:
            await client.command(f"CREATE DATABASE {database}")
        await within("CREATE TABLE lines (number UInt64, text String) ENGINE = MergeTree ORDER BY number")
        await within(f"INSERT INTO lines SELECT number, repeat(toString(number % 10), 1000) FROM numbers({rows})")

    folder, wrong = a_folder(path), list[str]()

    async def copy() -> None:
        async with await ClickHouse.connect(stack.clickhouse, database, timeout=120) as client:
            await pool.copy_tables(client, plan, folder, nothing)

    async def fill() -> None:
        async with await ClickHouse.connect(stack.clickhouse, database, timeout=120) as client:
            await pool.fill_tables(client, plan.tables, folder, nothing)
            wrong.extend(await pool.verify_tables(client, plan.tables, folder))

    asyncio.run(make())
    peaks = {"copy": peak(copy())}
    assert [part.count for part in folder.parts.values()] == [rows]
    asyncio.run(within("TRUNCATE TABLE lines"))
    peaks["fill"] = peak(fill())
    assert wrong == []
    asyncio.run(within(f"DROP DATABASE {database}"))
    return peaks


def test_of_a_table_an_insert_is_held(stack: Stack, tmp_path: Path) -> None:
    small, large = of_a_table(stack, tmp_path / "small", SMALL), of_a_table(stack, tmp_path / "large", LARGE)
    assert {name for name in small if large[name] > MOST * small[name]} == set(), (small, large)


def test_of_a_blob_a_piece_is_held(tmp_path: Path) -> None:
    def peaks(size: int) -> dict[str, int]:
        place = tmp_path / str(size)
        LocalBlobs(place / "store").put(bytes(size * 2**20), "image/png")
        folder = a_folder(place / "backup")

        async def copy() -> None:
            blobs.copy_blobs(place / "store", folder, nothing)

        async def restore() -> None:
            blobs.restore_blobs(place / "back", folder, nothing)

        return {"copy": peak(copy()), "restore": peak(restore())}

    small, large = peaks(SMALL), peaks(LARGE)
    assert {name for name in small if large[name] > MOST * small[name]} == set(), (small, large)
