"""A system is copied, wiped, and put back: the same records at the same offsets, the same rows, the same batches."""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete
from typer.testing import CliRunner

from claw_r1 import bus, topics
from claw_r1.backups import pool as pools
from claw_r1.backups import run as backups
from claw_r1.backups.run import Place
from claw_r1.blobs import LocalBlobs
from claw_r1.cli.entry import app
from claw_r1.errors import UserError
from claw_r1.events import RecipeSet
from claw_r1.local.stack import BACKENDS, running_stack
from sinks.rows import TABLES
from tests.conftest import Stack
from tests.factories import a_step
from tests.integration.adapter_stand import an_adapter_stand
from tests.integration.test_batches import RULE, a_rich_group, columns
from tests.integration.test_sink import a_pool, a_sink
from tests.pool import Pool, every_event, write
from tests.workers import workers
from trainer_adapter import AsyncBatchStream, TrainingBatch, rebuild_batch

pytestmark = [pytest.mark.stack, pytest.mark.slow]

DATABASE = "claw"
LATE = "after-the-sink"
"""The run of facts that are on the log and not in the pool yet when the backup is made."""


@dataclass
class Lived:
    """What a system held when it was copied."""

    recipe: str
    trained: TrainingBatch
    handed: TrainingBatch
    """Cut, handed out, and not committed."""
    tables: dict[str, list[tuple[str, ...]]]
    records: dict[str, list[tuple[Any, ...]]]
    offsets: Any


def claw(command: str, folder: Path, stack: Stack, blobs: Path, *more: str) -> dict[str, Any]:
    done = CliRunner().invoke(
        app,
        [
            command,
            str(folder),
            "--kafka",
            stack.kafka,
            "--clickhouse",
            stack.clickhouse,
            "--blobs",
            str(blobs),
            "--json",
            *more,
        ],
    )
    if done.exception is not None:
        raise done.exception
    document: dict[str, Any] = json.loads(done.stdout)
    return document


async def _records(kafka: str, names: Sequence[str]) -> dict[str, list[tuple[Any, ...]]]:
    return {
        name: [
            (r.partition, r.offset, r.timestamp, r.key, r.value, tuple(r.headers))
            for r in await bus.read_topic(kafka, name, client_id="test")
        ]
        for name in names
    }


async def _names(kafka: str) -> list[str]:
    async with bus.admin(kafka) as client:
        return sorted(name for name in await client.list_topics() if name.startswith("claw."))


async def _own(kafka: str, name: str) -> dict[str, str]:
    async with bus.admin(kafka) as client:
        return (await bus.read_configs(client, [name], own=True))[name]


async def _bounds(kafka: str, names: Sequence[str]) -> dict[tuple[str, int], tuple[int, int]]:
    consumer = await bus.start_consumer(kafka, client_id="test", committed_only=False)
    try:
        places = [TopicPartition(name, n) for name in names for n in await bus.partitions_of(consumer, name)]
        starts, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
        return {(tp.topic, tp.partition): (starts[tp], ends[tp]) for tp in places}
    finally:
        await bus.stop_consumer(consumer)


def _tables(pool: Pool) -> dict[str, list[tuple[str, ...]]]:
    """Every row under FINAL, of every column, as text in one order."""
    return {
        name: sorted(tuple(map(str, row.values())) for row in pool.rows(f"SELECT *, version FROM {name} FINAL"))
        for name in TABLES
    }


async def _live(stack: Stack, tmp_path: Path) -> Lived:
    """A pool of every kind of row; a recipe with one trained batch and one that was handed out; a log that was trimmed; a
    topic with settings of an operator."""
    pool = await asyncio.to_thread(a_pool, stack, DATABASE)
    sink = a_sink(stack, tmp_path, DATABASE, sinks_group="claw-sinks")
    await bus.ensure_topic(stack.kafka, topics.batch_topic_spec("full"))
    events = every_event("full", "full")
    await asyncio.to_thread(write, stack.kafka, [event for event in events if event[0] == topics.EVENTS])
    await asyncio.to_thread(
        write, stack.kafka, [event for event in events if event[0] != topics.EVENTS], transaction="full"
    )
    async with an_adapter_stand(stack.kafka, **RULE) as stand:
        name, run = stand.recipe.name, stand.recipe.run_id
        recipe = RecipeSet(fact_id="set", run_id=run, at=1.0, name=name, version=1, recipe=stand.recipe)
        await asyncio.to_thread(write, stack.kafka, [(topics.EVENTS, recipe)])
        await stand.publish(*(a_rich_group(stand, number) for number in range(1, 7)))
        async with AsyncBatchStream(name, kafka=stack.kafka) as stream:
            trained = await stream.next(60)
            await trained.commit(policy_version=2)
            handed = await stream.next(60)
        with workers(sink):
            for table in TABLES:
                await asyncio.to_thread(pool.wait_for, f"SELECT count() > 0 FROM {table}", 1, timeout=180)
            await asyncio.to_thread(
                pool.wait_for, f"SELECT uniqExact(sequence) FROM cuts FINAL WHERE recipe = '{name}'", 2, timeout=180
            )
            await asyncio.to_thread(
                pool.wait_for, f"SELECT uniqExact(sample_id) FROM samples WHERE recipe = '{name}'", 12, timeout=180
            )
            assert sink.end() == 0
    await asyncio.to_thread(write, stack.kafka, [(topics.EVENTS, a_step(run_id=LATE))])
    place = next(tp for tp, (_, end) in (await _bounds(stack.kafka, [topics.EVENTS])).items() if end > 3)
    async with bus.admin(stack.kafka) as client:
        await client.delete_records({TopicPartition(*place): RecordsToDelete(before_offset=2)})
        await bus.set_configs(client, {topics.EVENTS: {"segment.ms": "3600000", "min.insync.replicas": "2"}})
    names = await _names(stack.kafka)
    return Lived(
        name,
        trained,
        handed,
        await asyncio.to_thread(_tables, pool),
        await _records(stack.kafka, names),
        await _bounds(stack.kafka, names),
    )


def _be_killed(monkeypatch: pytest.MonkeyPatch, stack: Stack, folder: Path, blobs: Path) -> None:
    """A backup that ends at its first table."""

    async def killed(*_: object) -> None:
        raise KeyboardInterrupt

    place = Place(stack.kafka, stack.clickhouse, DATABASE, blobs, "claw-sinks")
    with monkeypatch.context() as patched:
        patched.setattr(pools, "copy_tables", killed)
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(backups.back_up(place, folder, lambda *_: None))


@pytest.mark.timeout(600)
def test_a_wiped_system_goes_on_from_its_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, blobs, new_blobs = tmp_path / "backup", tmp_path / "blobs", tmp_path / "new-blobs"
    image = LocalBlobs(blobs).put(b"an image", "image/png")
    with running_stack(tmp_path / "old", processes=BACKENDS) as old:
        lived = asyncio.run(_live(old, tmp_path))
        _be_killed(monkeypatch, old, folder, blobs)
        said = claw("backup", folder, old, blobs)
        assert (said["records"], said["blobs"]) == (sum(map(len, lived.records.values())), 1)
        assert said["rows"] >= sum(map(len, lived.tables.values()))
        with pytest.raises(UserError, match="target is not empty"):
            claw("restore", folder, old, blobs, "--dry-run")

    with running_stack(tmp_path / "new", processes=BACKENDS) as new:
        _refuse_damage(folder, new, new_blobs)
        claw("restore", folder, new, new_blobs, "--dry-run")
        assert asyncio.run(_names(new.kafka)) == []
        (without,) = claw("restore", folder, new, new_blobs)["without"]
        assert without.startswith(f"{topics.EVENTS} is without min.insync.replicas=2: a partition has 1 copy here")
        assert asyncio.run(_own(new.kafka, topics.EVENTS))["segment.ms"] == "3600000"
        names = list(lived.records)
        assert asyncio.run(_names(new.kafka)) == names
        assert asyncio.run(_bounds(new.kafka, names)) == lived.offsets
        assert asyncio.run(_records(new.kafka, names)) == lived.records
        assert asyncio.run(bus.diff_topics(new.kafka, topics.all_topics())) == []
        pool = Pool(new.clickhouse, DATABASE)
        assert _tables(pool) == lived.tables
        pool.check_once()
        assert LocalBlobs(new_blobs).get(image.sha256) == b"an image"
        again = rebuild_batch(f"{lived.recipe}/1", clickhouse=new.clickhouse, database=DATABASE)
        assert (again.digest, columns(again)) == (lived.trained.digest, columns(lived.trained))
        asyncio.run(_train_on(new, lived))
        with workers(a_sink(new, tmp_path, DATABASE, sinks_group="claw-sinks")):
            pool.wait_for(f"SELECT count() FROM steps WHERE run_id = '{LATE}'", 1)
            pool.wait_for(f"SELECT max(sequence) FROM cuts WHERE recipe = '{lived.recipe}'", 3)
        pool.check_once()
        assert pool.scalar("SELECT count() FROM steps WHERE run_id = 'full'") == 2


def _refuse_damage(folder: Path, new: Stack, blobs: Path) -> None:
    """Whatever a disk lost or changed is found and named before anything is written."""

    def largest(pattern: str) -> Path:
        return max((path for path in folder.glob(pattern) if path.is_file()), key=lambda path: path.stat().st_size)

    def change(data: bytes) -> bytes:
        return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]

    damages: list[tuple[Path, Callable[[bytes], bytes] | None]] = [
        (largest("topics/*/*.gz"), change),
        (largest("topics/*/*.gz"), lambda data: data[: len(data) // 2]),
        (largest("topics/*/*.gz"), None),
        (largest("pool/*/*.gz"), change),
        (largest("pool/*/*.gz"), lambda data: data[:-1]),
        (largest("blobs/**/*"), bytes.swapcase),
        (folder / "plan.json", lambda data: data.replace(b'"start":', b'"start": ')),
        (folder / "parts.jsonl", lambda data: data[: data.rindex(b"{")]),
    ]
    for number, (path, damage) in enumerate(damages):
        whole = path.read_bytes()
        path.unlink() if damage is None else path.write_bytes(damage(whole))
        with pytest.raises(UserError, match=rf"{re.escape(path.name)} is damaged"):
            claw("restore", folder, new, blobs, *["--dry-run"] * (number % 2))
        path.write_bytes(whole)
    assert asyncio.run(_names(new.kafka)) == []
    assert Pool(new.clickhouse, "system").scalar(f"SELECT count() FROM databases WHERE name = '{DATABASE}'") == 0
    assert not blobs.exists()


async def _train_on(new: Stack, lived: Lived) -> None:
    """The trainer gets the batch again that it had not committed, and then the next."""
    async with AsyncBatchStream(lived.recipe, kafka=new.kafka) as stream:
        assert stream.policy_version == 2
        again = await stream.next(60)
        assert (again.sequence, again.digest) == (2, lived.handed.digest)
        assert columns(again) == columns(lived.handed)
        await again.commit(policy_version=3)
        third = await stream.next(60)
        assert (third.sequence, [group.group_id for group in third.groups]) == (3, ["g5", "g6"])
