"""A key of a run shows that run alone, on every screen, and writes nothing."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest
from fastapi.routing import APIRoute
from pydantic import SecretStr

from claw_r1 import keys
from claw_r1.clickhouse import ClickHouse
from claw_r1.local.ports import HOST, find_port
from claw_r1.local.stack import running_stack
from claw_r1.settings import ConsoleSettings
from console import asking, curation, exporting, runs, screens, training
from sinks import migrations
from tests.conftest import Stack
from tests.console_rows import ROWS
from tests.integration.test_console import a_console, ended
from tests.training_rows import training_rows

pytestmark = pytest.mark.stack

SECRET = "one:" + "s" * 32
READING = {
    "/decisions/preview.json",
    "/exports.json",
    "/recipes/check.json",
    "/recipes/dry-run.json",
    "/recipes/dry-run/list.json",
    "/sql.json",
    "/batches/{recipe}/{sequence}/rebuild.json",
}
"""What is asked by POST and changes nothing."""
WRITING: dict[str, dict[str, Any]] = {
    "/decisions.json": {"q": "", "action": "veto", "author": "ada"},
    "/decisions/undo.json": {"of": [{"id": "d", "run": "r", "prompt": "p"}], "author": "ada"},
    "/recipes.json": {"fields": {"name": "x"}},
    "/recipes/{name}/delete.json": {},
}
Ask = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An engine that knows the secret; its rows are of the run `r`."""
    with running_stack(tmp_path_factory.mktemp("pool"), processes=["clickhouse"], env={"CLAW_SECRET": SECRET}) as stack:
        asyncio.run(fill(stack.clickhouse))
        yield stack


async def fill(url: str) -> None:
    await migrations.apply(url, "claw")
    async with await ClickHouse.connect(url) as client:
        for statement in (ended(0, 39).format(db="claw"), *training_rows(0), *ROWS):
            await client.command(statement.replace("{db}", "claw"))


def a_key(run: str) -> str:
    secrets = keys.Secrets.of(SecretStr(SECRET))
    return keys.mint(secrets, scope="analyst", now=time.time(), lifetime=300, run_id=run)


def looking(pool: Stack, run: str, scenario: Callable[[Ask], Awaitable[None]]) -> None:
    """Ask a console with a key of a run."""

    async def play() -> None:
        settings = ConsoleSettings(
            clickhouse=pool.clickhouse, port=find_port(None), host="0.0.0.0", secret=SecretStr(SECRET)
        )
        head = {"authorization": f"Bearer {a_key(run)}"}
        async with a_console(settings) as _, aiohttp.ClientSession(headers=head) as http:

            async def ask(path: str, status: int = 200, body: Any = None) -> Any:
                url = f"http://{HOST}:{settings.port}{path}"
                method = http.get(url) if body is None else http.post(url, json=body)
                async with method as answer:
                    text = await answer.text()
                    assert answer.status == status, f"{path}: {text[:500]}"
                    return json.loads(text)

            await scenario(ask)

    asyncio.run(play())


def test_the_run_of_the_key_is_shown_whole(pool: Stack) -> None:
    async def scenario(ask: Ask) -> None:
        assert (await ask("/trajectories/count.json"))["count"] == 46
        assert len((await ask("/groups.json"))["rows"]) == 3
        assert len((await ask("/batches.json"))["batches"]) == 3
        assert (await ask("/trajectories/g1-a.json"))["steps"]
        assert (await ask("/sql.json", body={"sql": "SELECT count() FROM trajectories"}))["rows"] == [[46]]
        flow = await ask("/flow.json")
        assert flow["numbers"]["totals"]["trajectories"] == 46
        assert [p["name"] for p in flow["processes"]] == ["clickhouse"], "processes serve every run"

    looking(pool, "r", scenario)


def test_of_another_run_nothing_is_seen(pool: Stack) -> None:
    async def scenario(ask: Ask) -> None:
        for path, name in (
            ("/trajectories.json", "rows"),
            ("/trajectories.json?q=state:running", "rows"),
            ("/groups.json", "rows"),
            ("/batches.json", "batches"),
            ("/recipes.json", "recipes"),
            ("/flow/curves.json?recipe=demo", "points"),
        ):
            assert (await ask(path))[name] == [], path
        assert (await ask("/trajectories/count.json"))["count"] == 0
        for path in (
            "/trajectories/g1-a.json",
            "/trajectories/g1-a/steps/d1.json",
            "/trajectories/g1-a/steps/last.json",
            "/trajectories/g1-a/steps/last/messages.json",
            "/trajectories/g1-a/steps/last/tokens.json",
            "/trajectories/g1-a/forest.json",
            "/diff.json?left=g1-a&left_step=d1&right=g1-b&right_step=e1",
            "/groups/r/g1.json",
            "/batches/grpo/1.json",
            "/batches/compare.json?a=grpo/1&b=grpo/2",
            "/recipes/grpo/next.json",
            "/sql/batch.json?recipe=grpo&sequence=1",
        ):
            await ask(path, 404)
        await ask("/batches/grpo/1/rebuild.json", 404, {})
        assert (await ask("/groups/r/g1/forest.json"))["steps"] == 0
        totals = (await ask("/flow.json"))["numbers"]["totals"]
        assert totals
        assert set(totals.values()) == {0}
        preview = await ask("/decisions/preview.json?action=veto", body={"q": ""})
        assert (preview["count"], preview["batches"]) == (0, [])
        draft = {"fields": {"name": "n", "run_id": "r", "group": {"size": 4}}}
        assert (await ask("/recipes/dry-run.json", body=draft))["counts"] == []
        for table in ("trajectories", "steps", "cuts", "outcomes", "recipes"):
            assert (await ask("/sql.json", body={"sql": f"SELECT count() FROM {table}"}))["rows"] == [[0]], table
        assert "d1" not in json.dumps(
            await ask("/sql.json", body={"sql": "SELECT * FROM contexts(trajectory_uid='g1-a')"})
        )

    looking(pool, "nobody", scenario)


def test_every_route_that_posts_reads_or_is_refused(pool: Stack) -> None:
    posts = {
        route.path
        for routes in (screens.routes, curation.routes, training.routes, asking.routes, exporting.routes)
        for route in routes.routes
        if isinstance(route, APIRoute) and "POST" in (route.methods or ())
    }
    assert posts == READING | set(WRITING)

    async def scenario(ask: Ask) -> None:
        for path, body in WRITING.items():
            refused = await ask(path.replace("{name}", "grpo"), 403, body)
            assert "reads, and writes nothing" in refused["error"]["message"], path

    looking(pool, "r", scenario)


def test_consoles_of_many_runs_take_turns(pool: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "MOST", 2)

    async def scenario() -> None:
        settings = ConsoleSettings(
            clickhouse=pool.clickhouse, port=find_port(None), host="0.0.0.0", secret=SecretStr(SECRET)
        )
        async with a_console(settings) as _, aiohttp.ClientSession() as http:
            for run, count in (("r", 46), ("a", 0), ("b", 0), ("c", 0), ("r", 46)):
                head = {"authorization": f"Bearer {a_key(run)}"}
                url = f"http://{HOST}:{settings.port}/trajectories/count.json"
                async with http.get(url, headers=head) as answer:
                    assert (await answer.json())["count"] == count, run

    asyncio.run(scenario())
