"""The console's screens that decide and ask: previews, dry runs, batches and SQL, on the real engine."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from claw_r1.clickhouse import ClickHouse
from claw_r1.local.ports import find_port
from claw_r1.local.stack import running_stack
from claw_r1.settings import ConsoleSettings
from console.app import opened
from console.statements import LISTS, OF_BATCH
from console.trajectories import FIELDS
from sinks import migrations
from tests.conftest import Stack
from tests.integration.test_console import a_console, ended, get
from tests.training_rows import training_rows

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An engine of its own, since analysts may read one database of an engine only."""
    with running_stack(tmp_path_factory.mktemp("pool"), processes=["clickhouse"]) as stack:
        asyncio.run(fill(stack.clickhouse))
        yield stack


async def fill(url: str) -> None:
    await migrations.apply(url, "claw")
    async with await ClickHouse.connect(url) as client:
        for statement in (ended(0, 39).format(db="claw"), *training_rows(0)):
            await client.command(statement.replace("{db}", "claw"))


@asynccontextmanager
async def served(pool: Stack, **over: object) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    settings = ConsoleSettings.model_validate({"clickhouse": pool.clickhouse, "port": find_port(None), **over})
    async with a_console(settings) as url, aiohttp.ClientSession() as http:
        yield http, url


async def post(http: aiohttp.ClientSession, url: str, status: int = 200, **body: Any) -> Any:
    async with http.post(url, json=body) as answer:
        assert answer.status == status, await answer.text()
        return await answer.json()


def test_a_preview_says_what_a_decision_will_change(pool: Stack) -> None:
    async def scenario() -> None:
        async with served(pool) as (http, url):
            found = await post(http, f"{url}/decisions/preview.json?action=veto", q="")
            assert found["count"] == 40
            assert found["states"] == {"waiting": 24, "ready": 4, "batched": 4, "trained": 4, "discarded": 4}
            assert [(b["sequence"], b["trained"], b["count"]) for b in found["batches"]] == [
                (2, False, 4),
                (1, True, 4),
            ]
            assert found["words"][0].startswith("28: vetoed before the cut: not trained")
            assert "trained in batch 1 of grpo" in found["words"][1]
            one = await post(http, f"{url}/decisions/preview.json?action=veto", q="reward<1", ids=["t1"])
            assert one["words"] == ["1: too late: trained in batch 1 of grpo"]
            groups = await post(http, f"{url}/decisions/preview.json?action=keep", q="state:trained", about="group")
            assert groups["count"] == 1
            wrong = await post(http, f"{url}/decisions/preview.json", 400, q="rewrd<1")
            assert wrong["error"]["position"] == 0
            none = await post(http, f"{url}/decisions.json", 400, q="id:nobody", action="veto", author="ada")
            assert "none any more" in none["error"]["message"]
            stale = await post(http, f"{url}/decisions.json", 400, q="", action="veto", author="ada", expect=39)
            assert "40 are meant now, and 39 were shown" in stale["error"]["message"]
            text = await post(http, f"{url}/decisions.json", 400, q="", action="tag", author="ada")
            assert "tag needs a text" in text["error"]["message"]

    asyncio.run(scenario())


def test_new_words_of_the_filter_find_what_they_say(pool: Stack) -> None:
    async def scenario() -> None:
        async with served(pool) as (http, url):
            for text, wanted in (
                ("decided:yes", 1), ("decided:no", 39), ("author:ada", 1), ("author:bob", 0), ("drift>0", 1),
                ("batch:grpo/1", 4), ("batch:grpo/*", 8), ("spread>0", 0),
            ):  # fmt: skip
                assert (await get(http, f"{url}/trajectories/count.json", q=text))["count"] == wanted, text

    asyncio.run(scenario())


def test_what_only_shows_writes_nothing(pool: Stack) -> None:
    async def scenario() -> None:
        async with served(pool, read_only=True) as (http, url):
            refused = await post(http, f"{url}/decisions.json", 403, q="", action="veto", author="ada")
            assert "only shows" in refused["error"]["message"]
            await post(http, f"{url}/recipes.json", 403, fields={"name": "x"})
            async with http.post(f"{url}/decisions.json", data="{}") as answer:
                assert answer.status == 415, "a form of another page is refused"

    asyncio.run(scenario())


def test_recipes_are_listed_checked_and_tried(pool: Stack) -> None:
    async def scenario() -> None:
        async with served(pool) as (http, url):
            listed = (await get(http, f"{url}/recipes.json"))["recipes"]
            assert [(r["name"], r["in_force"], r["ready"], r["batches"]) for r in listed] == [
                ("grpo", True, 1, 2),
                ("old", False, 0, 0),
            ]
            checked = await post(http, f"{url}/recipes/check.json", fields={"name": "n", "algorithm": "sft"})
            assert checked["recipe"]["pick"]["how"] == "best", "the preset fills in"
            wrong = await post(http, f"{url}/recipes/check.json", fields={"name": "n", "group": {"size": 0}})
            assert [fault["path"] for fault in wrong["faults"]] == ["group.size"]
            fields = {"name": "n", "run_id": "r", "group": {"size": 4}, "rewards": {"required": ["judge"]}}
            tried = (await post(http, f"{url}/recipes/dry-run.json", fields=fields))["counts"]
            by_fate = {(row["about"], row["outcome"], row["reason"]): row["number"] for row in tried}
            assert by_fate["trajectory", "discarded", "reward_missing"] == 39, "no reward of that source was sent"
            assert by_fate["trajectory", "discarded", "vetoed"] == 1
            (number,) = (row for row in tried if row["reason"] == "reward_missing")
            who = {name: number[name] for name in ("about", "outcome", "reason")}
            behind = await post(http, f"{url}/recipes/dry-run/list.json", fields=fields, **who)
            assert len(behind["rows"]) == 39
            assert behind["rows"][0]["trajectory_uid"] == "t0"
            form = await get(http, f"{url}/recipes/form.json")
            assert "grpo" in [preset["name"] for preset in form["presets"]]
            assert form["schema"]["properties"]["batch"]

    asyncio.run(scenario())


def test_a_batch_is_told_compared_and_made_again_or_said_why_not(pool: Stack) -> None:
    async def scenario() -> None:
        async with served(pool) as (http, url):
            listed = (await get(http, f"{url}/batches.json", recipe="grpo"))["batches"]
            assert [(b["sequence"], b["state"]) for b in listed] == [(2, "cut"), (1, "trained")]
            told = await get(http, f"{url}/batches/grpo/2.json")
            assert told["staleness"] == [{"behind": 1, "tokens": 4}, {"behind": 2, "tokens": 4}]
            assert told["left_out"] == [{"reason": "vetoed", "count": 1}]
            assert [m["group_id"] for m in told["members"]] == ["p1", "p9"]
            compared = await get(http, f"{url}/batches/compare.json", a="grpo/1", b="grpo/2")
            assert (len(compared["only_a"]), len(compared["only_b"]), compared["same"]) == (4, 4, 0)
            same = await get(http, f"{url}/batches/compare.json", a="grpo/1", b="grpo/1")
            assert (same["only_a"], same["same"]) == ([], 4)
            async with http.get(f"{url}/batches/grpo/9.json") as answer:
                assert answer.status == 404
            said = await post(http, f"{url}/batches/grpo/9/rebuild.json", 404)
            assert "no batch grpo/9" in said["error"]["message"]

    asyncio.run(scenario())


def test_statements_are_asked_as_an_analyst(pool: Stack) -> None:
    async def scenario() -> None:
        async with served(pool) as (http, url):
            schema = await get(http, f"{url}/sql.json")
            tables = {table["name"]: table for table in schema["tables"]}
            assert tables["trajectories"]["columns"][0]["meaning"]
            assert tables["contexts"]["parameter"] == "trajectory_uid"
            assert tables["contexts"]["columns"]
            assert "snapshots" not in tables
            found = await post(
                http, f"{url}/sql.json", sql="SELECT status, count() AS n FROM trajectories GROUP BY status;"
            )
            assert found["rows"] == [["completed", 40]]
            assert [c["name"] for c in found["columns"]] == ["status", "n"]
            for sql, why in (
                ("DROP TABLE steps", "Only SELECT"),
                ("SELECT * FROM url('http://127.0.0.1')", "table functions are not allowed"),
                ("SELECT * FROM nowhere", "SHOW TABLES"),
                ("SELECT 1 FORMAT CSV", "leave FORMAT out"),
            ):
                refused = await post(http, f"{url}/sql.json", 400, sql=sql)
                assert why in refused["error"]["message"]
            large = await post(http, f"{url}/sql.json", sql="SELECT toUInt64(18446744073709551615) AS n")
            assert large["rows"] == [["18446744073709551615"]], "a browser would round it"
            many = await post(http, f"{url}/sql.json", sql="SELECT arrayJoin(range(5000)) AS n")
            assert (len(many["rows"]), many["more"]) == (1000, True)
            async with http.get(f"{url}/sql.csv", params={"sql": "SELECT 1 AS one"}) as answer:
                assert (await answer.text()) == '"one"\n1\n'
            async with http.get(f"{url}/sql.parquet", params={"sql": "SELECT 1 AS one"}) as answer:
                assert (await answer.read())[:4] == b"PAR1"

    asyncio.run(scenario())


WORDS = {"text": "{name}:a*,b", "number": "{name}>1"}


@pytest.mark.parametrize("names", [list(FIELDS)[i::4] for i in range(4)])
def test_a_list_is_a_statement_that_an_analyst_may_ask(pool: Stack, names: list[str]) -> None:
    async def scenario() -> None:
        async with served(pool) as (http, url):
            for name in names:
                field = FIELDS[name]
                title = name if not field.dotted else f"{name.rstrip('.')}.x"
                for text in [f"{title}:{choice}" for choice in field.choices] or [
                    WORDS[field.kind].format(name=title),
                    f"-{title}:1",
                ]:
                    sql = (await get(http, f"{url}/sql/trajectories.json", q=text))["sql"]
                    count = (await get(http, f"{url}/trajectories/count.json", q=text))["count"]
                    assert len((await post(http, f"{url}/sql.json", sql=sql))["rows"]) == count, text

    asyncio.run(scenario())


TABLES: tuple[tuple[str, dict[str, str]], ...] = (
    ("trajectories", {"q": "reward>0.5 state:trained"}),
    ("groups", {"q": "flat:no recipe:grpo size>1"}),
    ("batches", {"recipe": "grpo"}),
    ("batch", {"recipe": "grpo", "sequence": "2"}),
    ("staleness", {"recipe": "grpo", "sequence": "2"}),
    ("batch-trajectories", {"recipe": "grpo", "sequence": "2"}),
    ("steps", {"uid": "t0"}),
    ("members", {"run": "r", "group": "p0"}),
    ("fates", {}),
    ("funnel", {}),
    ("policies", {}),
    ("dry-run", {"draft": '{"name": "n", "run_id": "r", "group": {"size": 4}}'}),
)
ROWS = {"batches": 2, "batch": 2, "staleness": 2, "batch-trajectories": 4, "members": 4, "steps": 0, "policies": 0}


def test_every_table_is_a_statement_that_an_analyst_may_ask(pool: Stack) -> None:
    assert {name for name, _ in TABLES} == {*LISTS, *OF_BATCH, "dry-run"}

    async def scenario() -> None:
        async with served(pool) as (http, url):
            for name, words in TABLES:
                sql = (await get(http, f"{url}/sql/{name}.json", **words))["sql"]
                found = await post(http, f"{url}/sql.json", sql=sql)
                assert len(found["rows"]) == ROWS.get(name, len(found["rows"])), name
            for name, words, why in (
                ("snapshots", {}, "not a table of the screens"),
                ("batch", {"recipe": "grpo", "sequence": "x"}, "RECIPE/SEQUENCE"),
                ("dry-run", {"draft": "[]"}, "no JSON object"),
            ):
                async with http.get(f"{url}/sql/{name}.json", params=words) as answer:
                    assert answer.status == 400
                    assert why in (await answer.json())["error"]["message"], name

    asyncio.run(scenario())


def test_the_words_of_the_pool_are_asked_once_for_all_viewers(pool: Stack) -> None:
    async def scenario() -> None:
        settings = ConsoleSettings(clickhouse=pool.clickhouse, port=find_port(None))
        async with opened(settings) as console:
            first = await console.schema.get()
            asked = console.reader.asked
            assert first["tables"]
            assert asked > 5
            again = await asyncio.gather(*(console.schema.get() for _ in range(20)))
            assert all(schema == first for schema in again)
            assert console.reader.asked == asked

    asyncio.run(scenario())


def test_without_a_reading_user_statements_are_not_asked() -> None:
    async def scenario() -> None:
        settings = ConsoleSettings(clickhouse="http://pool.example:8123", port=find_port(None))
        async with a_console(settings) as url, aiohttp.ClientSession() as http:
            refused = await post(http, f"{url}/sql.json", 400, sql="SELECT 1")
            assert "CLAW_CONSOLE_ANALYST" in refused["error"]["message"]

    asyncio.run(scenario())
