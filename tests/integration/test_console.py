"""The console on the real engine: rows that the log's order brought in are in the data, and a pool that goes away is named."""

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from claw_r1 import keys
from claw_r1.clickhouse import ClickHouse
from claw_r1.errors import WrongUse
from claw_r1.health import AppServer
from claw_r1.local.ports import HOST, find_port
from claw_r1.settings import ConsoleSettings
from console.app import make_app, opened, run
from console.status import Status
from console.trajectories import STATES
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
    async with opened(settings) as console:
        app = make_app(console, settings)
        server = AppServer(settings.host, settings.port, app)
        await server.start()
        try:
            yield f"http://{settings.host}:{settings.port}"
        finally:
            await console.feed.close()
            await app.state.runs.close()
            await server.stop()


def settings_of(stack: Stack, **over: object) -> ConsoleSettings:
    fields = {"kafka": stack.kafka, "clickhouse": stack.clickhouse, "port": find_port(None)}
    return ConsoleSettings.model_validate(fields | over)


async def read_status(url: str) -> Status:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/flow.json") as answer:
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
                assert answer.url.path == "/flow"
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
        assert re.search(r"/static/[0-9a-f]{20}/pages.js", page)

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
            http.get(f"{url}/flow.json", headers={"host": "evil.example"}) as answer,
        ):
            assert answer.status == 421

    asyncio.run(scenario())


FILTERS = (
    "reward<0.2 env:swe policy>=40 -tag:hack steps>1 tokens<9 status:completed complete:yes",
    *(f"state:{state}" for state in STATES),
    "reward.judge>=0.5 meta.kind:solo channel:train task:guess* group:g id:a text:*hi* run:r",
    "reason:too_small recipe:guess model:m engine:e fault:* lonely",
)


@pytest.fixture(scope="module")
def empty(stack: Stack) -> str:
    """A database with the schema and no rows, for those who only ask."""
    return asyncio.run(a_pool(stack))


@pytest.mark.parametrize("text", FILTERS)
def test_every_field_is_a_question_that_the_engine_takes(stack: Stack, empty: str, text: str) -> None:
    async def scenario() -> None:
        async with a_console(settings_of(stack, database=empty)) as url, aiohttp.ClientSession() as http:
            for path in ("/trajectories.json", "/trajectories/count.json"):
                async with http.get(f"{url}{path}", params={"q": text}) as answer:
                    assert answer.status == 200, await answer.text()

    asyncio.run(scenario())


async def a_pool(stack: Stack, *statements: str) -> str:
    """A database with the schema and these rows."""
    database = f"console_{uuid.uuid4().hex}"
    await migrations.apply(stack.clickhouse, database)
    async with await ClickHouse.connect(stack.clickhouse) as client:
        for statement in statements:
            await client.command(statement.format(db=database))
    return database


def ended(first: int, last: int, *, partition: int = 0) -> str:
    """Trajectories t<first>…t<last>, one a millisecond; every third has the reward 1, the others 0."""
    return (
        "INSERT INTO {db}.trajectories (run_id, prompt_uid, group_id, trajectory_uid, status, complete, step_ids, rewards, "
        "metadata, topic, partition, offset, append_time) "
        f"SELECT 'r', concat('p', toString(intDiv(number, 4))) AS p, p, concat('t', toString(number)), 'completed', true, "
        f"['s'], [('judge', toFloat64(number % 3 = 0), 0, false)], '{{{{\"env\": \"swe\"}}}}', 't', {partition}, number, "
        f"toDateTime64('2026-01-01 00:00:00', 3) + toIntervalMillisecond(number) FROM numbers({first}, {last - first + 1})"
    )


async def get(http: aiohttp.ClientSession, url: str, **params: str) -> Any:
    async with http.get(url, params=params) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


def test_pages_go_on_behind_each_other_and_no_row_is_missed_or_seen_twice(stack: Stack) -> None:
    async def scenario() -> None:
        database = await a_pool(stack, ended(0, 249))
        async with a_console(settings_of(stack, database=database)) as url, aiohttp.ClientSession() as http:
            seen: list[str] = []
            after = ""
            while True:
                page = await get(http, f"{url}/trajectories.json", **({"after": after} if after else {}))
                seen += [row["id"] for row in page["rows"]]
                if page["next"] is None:
                    break
                after = page["next"]
            assert seen == [f"t{n}" for n in reversed(range(250))]
            assert (await get(http, f"{url}/trajectories/count.json", q="reward>0.5 env:swe"))["count"] == 84
            rows = (await get(http, f"{url}/trajectories.json", q="reward.judge:1 group:p0"))["rows"]
            assert [(row["id"], row["reward"], row["state"]) for row in rows] == [
                ("t3", 1, "waiting"),
                ("t0", 1, "waiting"),
            ]

    asyncio.run(scenario())


def test_a_burst_reaches_the_stream_whole_and_the_stream_resumes(stack: Stack) -> None:
    async def scenario() -> None:
        database = await a_pool(stack, ended(0, 9))
        async with (
            a_console(settings_of(stack, database=database)) as url,
            aiohttp.ClientSession() as http,
            await ClickHouse.connect(stack.clickhouse) as client,
        ):
            async with http.get(f"{url}/events", params={"q": "env:swe", "status": "true"}) as stream:
                await read_until(stream, "event: status")  # the pool was looked at, and its end is known
                await client.command(ended(10, 1309).format(db=database))
                rows, last = await read_rows(stream, 1300)
            assert rows == [f"t{n}" for n in range(10, 1310)]
            async with http.get(f"{url}/events", params={"q": "env:swe"}, headers={"last-event-id": last}) as stream:
                await client.command(ended(0, 4, partition=1).format(db=database))
                rows, _ = await read_rows(stream, 5)
            assert rows == [f"t{n}" for n in range(5)]

    asyncio.run(scenario())


async def read_until(stream: aiohttp.ClientResponse, line: str) -> None:
    async with asyncio.timeout(60):
        while (await stream.content.readline()).decode().rstrip("\n") != line:
            assert not stream.content.at_eof()


def judged(first: int, last: int, topic: str, partition: int) -> str:
    """What became of the groups g<first>…g<last>: every second one is discarded."""
    return (
        "INSERT INTO {db}.outcomes (outcome_id, run_id, prompt_uid, group_id, trajectory_uid, recipe, outcome, reason, topic, "
        f"partition, offset, append_time) SELECT concat('{topic}{partition}-', toString(number)), 'r', 'p', "
        "concat('g', toString(number)), NULL, 'demo', if(number % 2 = 0, 'discarded', 'emitted'), 'size', "
        f"'{topic}', {partition}, number, now64(3) FROM numbers({first}, {last - first + 1})"
    )


def test_groups_are_followed_from_every_topic_that_tells_of_them(stack: Stack) -> None:
    async def scenario() -> None:
        database = await a_pool(stack, judged(0, 9, "streams", 0))
        async with (
            a_console(settings_of(stack, database=database)) as url,
            aiohttp.ClientSession() as http,
            await ClickHouse.connect(stack.clickhouse) as client,
        ):
            asked = {"q": "outcome:discarded", "of": "groups"}
            async with http.get(f"{url}/events", params={**asked, "status": "true"}) as stream:
                await read_until(stream, "event: status")
                await client.command(judged(10, 2409, "streams", 0).format(db=database))
                rows, last = await read_rows(stream, 1200)
            assert rows == [f"streams0-{n}" for n in range(10, 2410, 2)], "more than one look reads"
            async with http.get(f"{url}/events", params=asked, headers={"last-event-id": last}) as stream:
                await client.command(judged(0, 3, "trainers", 0).format(db=database))
                await client.command(judged(0, 3, "streams", 1).format(db=database))
                rows, _ = await read_rows(stream, 4)
            assert sorted(rows) == ["streams1-0", "streams1-2", "trainers0-0", "trainers0-2"]
            async with http.get(f"{url}/events", params={"of": "groups", "q": "state:ready"}) as answer:
                assert answer.status == 400, "the filter is of the other list"
            async with http.get(f"{url}/events", params={"of": "steps"}) as answer:
                assert answer.status == 400

    asyncio.run(scenario())


async def read_rows(stream: aiohttp.ClientResponse, wanted: int) -> tuple[list[str], str]:
    """The ids of so many rows, and the id of the last event."""
    found: list[str] = []
    last = ""
    async with asyncio.timeout(60):
        async for line in stream.content:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            last = value if name == "id" else last
            if name == "data" and value.startswith("["):
                found += [row["id"] for row in json.loads(value)]
            if len(found) >= wanted:
                break
    return found, last


def test_a_wrong_question_says_where(stack: Stack, empty: str) -> None:
    async def scenario() -> None:
        async with a_console(settings_of(stack, database=empty)) as url, aiohttp.ClientSession() as http:
            for path in ("/trajectories.json", "/events"):
                async with http.get(f"{url}{path}", params={"q": "steps>1 rewrd<1"}) as answer:
                    assert answer.status == 400
                    error = (await answer.json())["error"]
                    assert (error["position"], error["code"]) == (8, "WrongFilter")
            async with http.get(f"{url}/trajectories/nobody.json") as answer:
                assert answer.status == 404
            async with http.get(f"{url}/nothing") as answer:
                assert answer.status == 404

    asyncio.run(scenario())


def test_elsewhere_a_key_is_needed_and_a_browser_shows_it_once(stack: Stack, empty: str) -> None:
    async def scenario() -> None:
        secret = "one:" + "s" * 32
        settings = settings_of(stack, database=empty, host="0.0.0.0", secret=secret)
        jar = aiohttp.CookieJar(unsafe=True)
        async with a_console(settings) as _, aiohttp.ClientSession(cookie_jar=jar) as http:
            url = f"http://{HOST}:{settings.port}"
            async with http.get(f"{url}/flow.json") as answer:
                assert answer.status == 401
                assert "claw keys mint" in (await answer.json())["error"]["message"]
            async with http.get(f"{url}/flow") as answer:
                assert answer.status == 200, "the empty page asks for the key"
            key = keys.mint(keys.Secrets.of(SecretStr(secret)), scope="admin", now=time.time(), lifetime=60)
            async with http.post(f"{url}/session", json={"key": key}) as answer:
                assert answer.status == 200
                assert "HttpOnly" in answer.headers["set-cookie"]
                assert "SameSite=strict" in answer.headers["set-cookie"]
            async with http.get(f"{url}/flow.json") as answer:
                assert answer.status == 200

    asyncio.run(scenario())


def test_a_browser_keeps_what_does_not_change(stack: Stack) -> None:
    async def scenario() -> None:
        async with a_console(settings_of(stack)) as url, aiohttp.ClientSession() as http:
            async with http.get(f"{url}/flow") as answer:
                assert answer.headers["cache-control"] == "no-store", (
                    "the page names the files of the version that runs"
                )
                named = re.findall(r'"(/static/[^"]+)"', await answer.text())
            assert {path.rpartition("/")[2] for path in named} == {"pages.js", "pages.css", "icon.svg"}
            for path in named:
                async with http.get(url + path) as answer:
                    assert answer.status == 200, path
                    assert "immutable" in answer.headers["cache-control"]
            for path in ("/static/app.js", re.sub(r"/static/\w+", "/static/" + "0" * 20, named[-1])):
                async with http.get(url + path) as answer:
                    assert answer.status == 404
                    assert answer.headers["cache-control"] == "no-store"
            async with http.get(f"{url}/flow.json") as answer:
                assert answer.headers["cache-control"] == "no-store", "data are never kept"

    asyncio.run(scenario())


def test_off_loopback_without_a_secret_it_does_not_start(stack: Stack) -> None:
    with pytest.raises(WrongUse, match="CLAW_SECRET"):
        asyncio.run(run(settings_of(stack, host="0.0.0.0"), asyncio.Event()))
