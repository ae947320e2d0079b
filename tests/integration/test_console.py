"""The console on the real engine: rows that the log's order brought in are on the page, and a pool that goes away is named."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from claw_r1.clickhouse import ClickHouse
from claw_r1.health import AppServer
from claw_r1.local.ports import HOST, find_port
from claw_r1.settings import ConsoleSettings
from console.app import make_app
from console.board import Board
from console.status import Status
from sinks import migrations
from tests.conftest import Stack

pytestmark = pytest.mark.stack

ROWS = (
    "INSERT INTO {db}.calls (step_id, trajectory_uid, topic, partition, offset, append_time) VALUES "
    "('s1', 'a', 't', 0, 1, now64(3)), ('s2', 'a', 't', 0, 2, now64(3) - INTERVAL 2 MINUTE)",
    "INSERT INTO {db}.steps (step_id, trajectory_uid, status, response_len, capture_ok, topic, partition, offset, append_time) "
    "VALUES ('s1', 'a', 'complete', 5, true, 't', 0, 3, now64(3)), ('s1', 'a', 'complete', 5, true, 't', 0, 3, now64(3))",
    "INSERT INTO {db}.trajectories (trajectory_uid, topic, partition, offset, append_time) VALUES ('a', 't', 0, 4, now64(3))",
    "INSERT INTO {db}.groups (run_id, group_id, recipe, reward_mean, topic, partition, offset, append_time) VALUES "
    "('r', 'g1', 'guess', 0.25, 't', 0, 5, now64(3)), ('r', 'g2', 'guess', 0.75, 't', 0, 6, now64(3)), "
    "('r', 'g3', 'guess', 0, 't', 0, 7, now64(3))",
    "INSERT INTO {db}.recipes (name, run_id, recipe_version, recipe, partition, offset, append_time) VALUES "
    "('guess', 'r', 1, '', 0, 1, now64(3)), "
    '(\'guess\', \'r\', 2, \'{{"run_id": "r", "batch": {{"groups": 2}}}}\', 0, 2, now64(3))',
    "INSERT INTO {db}.cuts (batch_id, recipe, run_id, sequence, groups, offset, append_time) VALUES "
    "('b1', 'guess', 'r', 1, 2, 1, now64(3))",
    "INSERT INTO {db}.cut_members "
    "(batch_id, recipe, run_id, sequence, position, taken, group_run_id, group_id, offset, append_time) VALUES "
    "('b1', 'guess', 'r', 1, 0, true, 'r', 'g1', 1, now64(3)), ('b1', 'guess', 'r', 1, 1, true, 'r', 'g2', 1, now64(3))",
    "INSERT INTO {db}.trained (batch_id, recipe, run_id, sequence, policy_version, offset, append_time) VALUES "
    "('b1', 'guess', 'r', 1, 4, 2, now64(3))",
    "INSERT INTO {db}.policies (run_id, engine, policy_version, offset, append_time) VALUES ('r', NULL, 4, 3, now64(3))",
    "INSERT INTO {db}.outcomes (outcome_id, recipe, group_id, outcome, reason, offset, append_time) VALUES "
    "('o1', 'guess', 'g4', 'discarded', 'too_small', 1, now64(3))",
)


@asynccontextmanager
async def a_console(settings: ConsoleSettings) -> AsyncIterator[str]:
    """The URL of a console that listens."""
    async with Board.opened(settings) as board:
        server = AppServer(settings.host, settings.port, make_app(board))
        await server.start()
        try:
            yield f"http://{settings.host}:{settings.port}"
        finally:
            await server.stop()


def settings_of(stack: Stack, **over: object) -> ConsoleSettings:
    fields = {"kafka": stack.kafka, "clickhouse": stack.clickhouse, "port": find_port(None)}
    return ConsoleSettings.model_validate(fields | over)


async def read_status(url: str) -> Status:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/status.json") as answer:
        assert answer.status == 200
        return Status.model_validate_json(await answer.text())


def test_the_pools_rows_are_on_the_page(stack: Stack) -> None:
    async def scenario() -> None:
        database = f"console_{uuid.uuid4().hex}"
        await migrations.apply(stack.clickhouse, database)
        async with await ClickHouse.connect(stack.clickhouse) as client:
            for statement in ROWS:
                await client.command(statement.format(db=database))
        async with a_console(settings_of(stack, database=database)) as url:
            status = await read_status(url)
            async with aiohttp.ClientSession() as http, http.get(url) as answer:
                page = await answer.text()
                assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert status.pool.state == "ok"
        numbers = status.numbers
        assert numbers is not None
        counts = {stage.name: stage.count for stage in numbers.stages}
        assert counts == {"calls": 2, "steps": 1, "trajectories": 1, "groups": 3, "trained": 1}, (
            "repeated rows count once"
        )
        assert (numbers.sampled_tokens, numbers.lost_calls) == (5, 1)
        (recipe,) = numbers.recipes
        assert (recipe.version, recipe.run_id, recipe.ready) == (2, "r", 1)
        assert [(b.sequence, b.reward, b.policy_version) for b in recipe.batches] == [(1, 0.5, 4)]
        assert [(r.about, r.reason, r.count) for r in numbers.left_out] == [("group", "too_small", 1)]
        states = {process.name: process.state for process in status.processes}
        assert states == {
            "kafka": "ready",
            "gateway": "down",
            "streams": "down",
            "sinks": "down",
            "clickhouse": "ready",
        }
        assert "batch 1: reward 0.500, 2 groups, made policy 4" in page

    asyncio.run(scenario())


def test_a_pool_without_tables_says_how_to_make_them(stack: Stack) -> None:
    async def scenario() -> None:
        async with a_console(settings_of(stack, database="console_none")) as url:
            status = await read_status(url)
        assert status.pool.state == "unmade"
        assert "claw migrate" in status.pool.detail
        assert status.numbers is None

    asyncio.run(scenario())


def test_a_pool_that_is_away_is_named_and_the_console_serves_on(stack: Stack) -> None:
    async def scenario() -> None:
        nowhere = f"http://reader:secret@{HOST}:{find_port(None)}"
        async with a_console(settings_of(stack, clickhouse=nowhere)) as url:
            status = await read_status(url)
            async with aiohttp.ClientSession() as http, http.get(f"{url}/readyz") as answer:
                assert answer.status == 200
        assert status.pool.state == "away"
        assert "secret" not in status.model_dump_json()

    asyncio.run(scenario())


def test_many_viewers_ask_the_pool_once(stack: Stack) -> None:
    async def scenario() -> None:
        async with a_console(settings_of(stack, database="console_none")) as url:
            found = await asyncio.gather(*(read_status(url) for _ in range(8)))
        assert len({status.at for status in found}) == 1

    asyncio.run(scenario())


def test_another_sites_page_cannot_read_it(stack: Stack) -> None:
    async def scenario() -> None:
        async with (
            a_console(settings_of(stack)) as url,
            aiohttp.ClientSession() as http,
            http.get(f"{url}/status.json", headers={"host": "evil.example"}) as answer,
        ):
            assert answer.status == 421

    asyncio.run(scenario())
