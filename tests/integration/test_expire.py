"""`claw expire` on the real engine: whole groups go by the time of their close, and nothing of others."""

import asyncio
import json

import pytest
import typer

from claw_r1.cli.expire import expire
from claw_r1.clickhouse import ClickHouse
from sinks import migrations
from tests.conftest import Stack
from tests.pool import Pool

pytestmark = pytest.mark.stack

GROUPS = {
    "old": ("train", 40, 40),
    "old-val": ("val", 40, 40),
    "old-open": ("train", 40, None),
    "old-kept": ("train", 40, 40),
    "late": ("train", 40, 5),
    "new": ("train", 2, 2),
}
"""By prompt: channel, days since its steps, days since its outcome."""
PER_PROMPT = ("steps", "step_tokens", "trajectories", "rewards", "outcomes", "trajectory_lookup")


async def fill(url: str) -> None:
    await migrations.apply(url, "expire")
    async with await ClickHouse.connect(url, "expire") as client:

        async def insert(table: str, columns: str, values: str, days: int) -> None:
            source = f"SELECT {values}, 'e', 0, now64(3) - INTERVAL {days} DAY"
            await client.command(f"INSERT INTO {table} ({columns}, topic, offset, append_time) {source}")

        for prompt, (channel, steps, outcome) in GROUPS.items():
            group = f"'r', '{prompt}'"
            step = "run_id, prompt_uid, trajectory_uid, step_id"
            await insert("steps", f"{step}, channel", f"{group}, 't', 's', '{channel}'", steps)
            await insert("step_tokens", step, f"{group}, 't', 's'", steps)
            await insert("trajectories", "run_id, prompt_uid, channel", f"{group}, '{channel}'", steps)
            await insert("rewards", "run_id, prompt_uid, source", f"{group}, 'late'", 0)
            await insert("trajectory_lookup", "run_id, prompt_uid, trajectory_uid", f"{group}, 't'", steps)
            if outcome is not None:
                await insert("outcomes", "run_id, prompt_uid, outcome_id", f"{group}, 'o'", outcome)
        kept = "'a', 'r', 'old-kept', 'old-kept', 't'"
        await client.command(
            f"INSERT INTO snapshot_members (snapshot_id, run_id, prompt_uid, group_id, trajectory_uid) SELECT {kept}"
        )
        await insert("cut_members", "recipe, run_id, group_run_id, group_id", "'a', 'r', 'r', 'old'", 40)


def test_groups_go_whole_when_they_closed_long_ago(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(fill(stack.clickhouse))
    pool = Pool(stack.clickhouse, "expire")

    def removed(run: str | None = None, channel: str | None = None, *, dry_run: bool = False) -> int:
        where = {"clickhouse": stack.clickhouse, "database": "expire"}
        expire("30d", run, channel, yes=True, dry_run=dry_run, as_json=True, **where)
        document = json.loads(capsys.readouterr().out)
        assert document["removed"] is not dry_run
        return int(document["groups"])

    def left() -> dict[str, set[str]]:
        parts = [f"SELECT '{t}' AS name, groupUniqArray(prompt_uid) AS prompts FROM {t}" for t in PER_PROMPT]
        return {row["name"]: set(row["prompts"]) for row in pool.rows(" UNION ALL ".join(parts))}

    everything = left()
    assert removed(channel="train", dry_run=True) == 1
    assert removed(run="other") == 0
    assert left() == everything
    assert removed(channel="train") == 1
    assert left() == {table: prompts - {"old"} for table, prompts in everything.items()}
    assert removed() == 1
    assert left() == {table: prompts - {"old", "old-val"} for table, prompts in everything.items()}
    assert pool.scalar("SELECT count() FROM cut_members") == 1


def test_nothing_is_removed_by_a_word_that_is_no_time(stack: Stack) -> None:
    with pytest.raises(typer.BadParameter):
        expire("soon", clickhouse=stack.clickhouse, database="expire")
