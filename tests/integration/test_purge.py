"""`claw purge` on the real broker, engine and sink: a run is gone, stays gone, and takes nothing else along."""

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from claw_r1 import bus, topics
from claw_r1.blobs import LocalBlobs
from claw_r1.events import BlobRef
from sinks import migrations
from sinks.rows import TABLES
from tests import warm
from tests.conftest import Stack
from tests.factories import a_step
from tests.integration.test_sink import a_sink
from tests.pool import Located, Pool, every_event, of_run, write
from tests.workers import workers

pytestmark = pytest.mark.stack


def claw(stack: Stack, pool: Pool, *arguments: str, blobs: Path | None = None) -> subprocess.CompletedProcess[str]:
    where = ["--clickhouse", stack.clickhouse, "--database", pool.database, "--kafka", stack.kafka]
    env = {**os.environ, "CLAW_SINKS_GROUP": pool.database, **({"CLAW_BLOBS": str(blobs)} if blobs else {})}
    return warm.claw("purge", *arguments, *where, env=env)


def counted(pool: Pool, run: str) -> dict[str, int]:
    """Rows of the run by table."""
    return {str(row["name"]): int(row["rows"]) for row in pool.rows(counting(run))}


def counting(run: str) -> str:
    """One question for all tables."""
    parts = (f"SELECT '{name}' AS name, count() AS rows FROM {name} FINAL WHERE {of_run(name, run)}" for name in TABLES)
    return " UNION ALL ".join(parts)


@pytest.mark.slow
def test_a_purged_run_is_gone_and_stays_gone(stack: Stack, tmp_path: Path) -> None:
    asyncio.run(bus.apply_topics(stack.kafka, topics.all_topics()))
    asyncio.run(migrations.apply(stack.clickhouse, "purge"))
    pool = Pool(stack.clickhouse, "purge")
    store = LocalBlobs(tmp_path / "blobs")
    only, shared = store.put(b"only", "image/png"), store.put(b"shared", "image/png")
    for run, blobs in (("purge-gone", (only, shared)), ("purge-kept", (shared,))):
        asyncio.run(bus.ensure_topic(stack.kafka, topics.batch_topic_spec(run)))
        write(stack.kafka, [*every_event(run, run), a_blob_step(run, blobs)])
    sink = a_sink(stack, tmp_path, pool.database)
    with workers(sink):
        for run in ("purge-gone", "purge-kept"):
            pool.wait_for(f"SELECT min(rows) > 0 FROM ({counting(run)})", 1)
            pool.wait_for(f"SELECT count() FROM steps FINAL WHERE run_id = '{run}'", 3)
            pool.wait_for(f"SELECT uniqExact(topic) FROM outcomes WHERE run_id = '{run}'", 2)
        before = counted(pool, "purge-kept")

        shown = claw(stack, pool, "--run", "purge-gone", "--dry-run", "--blobs", "--json")
        document = json.loads(shown.stdout)
        assert document["removed"] is False
        assert set(document["rows"]) == set(TABLES) - {"purges"}
        assert (document["rows"]["steps"], document["blobs"]) == (3, 1)
        unasked = claw(stack, pool, "--run", "purge-gone")
        assert (unasked.returncode, counted(pool, "purge-gone")["steps"]) == (2, 3)

        done = claw(stack, pool, "--run", "purge-gone", "--yes", "--blobs", blobs=tmp_path / "blobs")
        assert done.returncode == 0, done.stderr
        assert [table for table, rows in counted(pool, "purge-gone").items() if rows] == ["purges"]
        assert counted(pool, "purge-kept") == before
        assert not store.remove(only.sha256)
        assert store.get(shared.sha256) == b"shared"

        write(
            stack.kafka,
            [(topics.EVENTS, a_step(run_id=run, prompt_uid="late")) for run in ("purge-gone", "purge-kept")],
        )
        pool.wait_for("SELECT count() FROM steps FINAL WHERE run_id = 'purge-kept'", 4)
        assert counted(pool, "purge-gone")["steps"] == 0
        assert sink.end() == 0

    # A group that begins anew reads the whole log again: no old token swallows the rows of others, and the run stays gone.
    pool.rows("ALTER TABLE steps DELETE WHERE run_id = 'purge-kept' SETTINGS mutations_sync = 2")
    again = a_sink(stack, tmp_path, pool.database, sinks_group="purge-again")
    with workers(again):
        pool.wait_for("SELECT count() FROM steps FINAL WHERE run_id = 'purge-kept'", 4)
        assert again.end() == 0
    assert [table for table, rows in counted(pool, "purge-gone").items() if rows] == ["purges"]


def a_blob_step(run: str, blobs: tuple[BlobRef, ...]) -> Located:
    return topics.EVENTS, a_step(run_id=run, prompt_uid="p1", trajectory_uid="blobs", multi_modal_data=blobs)


def test_without_a_sink_nothing_is_removed(stack: Stack) -> None:
    asyncio.run(bus.apply_topics(stack.kafka, topics.all_topics()))
    asyncio.run(migrations.apply(stack.clickhouse, "purge_alone"))
    pool = Pool(stack.clickhouse, "purge_alone")
    alone = claw(stack, pool, "--run", "purge-alone", "--yes", "--wait", "1")
    assert alone.returncode == 1
    assert "run `claw purge` again" in alone.stderr
