"""Groups, forests, differences and curves on the real engine, dead letters on the real broker."""

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiokafka import AIOKafkaProducer

from claw_r1 import bus
from claw_r1.clickhouse import ClickHouse
from claw_r1.dlq import dead_letter
from claw_r1.errors import InvalidRecord
from claw_r1.letters import DeadLetterTopic, Waiting, count_waiting
from claw_r1.topics import Topic, dlq_topic, dlq_topic_spec
from tests.conftest import Stack
from tests.console_rows import HOSTILE_PIECE, ROWS, TOKENIZER
from tests.integration.test_console import a_console, a_pool, settings_of

pytestmark = pytest.mark.stack
Get = Callable[..., Awaitable[Any]]


def ask(stack: Stack, folder: Path, scenario: Callable[[Get], Awaitable[None]]) -> None:
    """Run a scenario before a console over the rows."""
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))

    async def run() -> None:
        database = await a_pool(stack)
        async with await ClickHouse.connect(stack.clickhouse) as client:
            for statement in ROWS:
                await client.command(statement.replace("{db}", database))
        settings = settings_of(stack, database=database, tokenizers=f"m={folder}")
        async with a_console(settings) as url, aiohttp.ClientSession() as http:

            async def get(path: str, status: int = 200, **params: str) -> Any:
                async with http.get(url + path, params=params) as answer:
                    assert answer.status == status, await answer.text()
                    return await answer.json()

            await scenario(get)

    asyncio.run(run())


def test_groups_are_narrowed_paged_and_compared(stack: Stack, tmp_path: Path) -> None:
    async def scenario(get: Get) -> None:
        rows = (await get("/groups.json"))["rows"]
        shown = [(r["group"], r["outcome"], r["mean"], r["deviation"], r["flat"], r["size"]) for r in rows]
        assert shown == [
            ("g3", "held", None, None, False, 1),
            ("g2", "discarded", 0.5, 0.0, True, 2),
            ("g1", "emitted", 0.5, 0.5, False, 3),
        ]
        assert [r["reward"] for r in rows[2]["rewards"]] == [1.0, 0.0, None]
        assert rows[2]["batches"] == [{"recipe": "demo", "sequence": 1, "trained": False}]
        for text, groups in (
            ("flat:yes", ["g2"]),
            ("flat:no", ["g3", "g1"]),
            ("reward>=0.5 deviation<0.1 size:2", ["g2"]),
            ("outcome:held,emitted -reason:size recipe:demo run:r", ["g3"]),
            ("trajectory:g1-b task:guess g1", ["g1"]),
            ("channel:none", []),
        ):
            assert [r["group"] for r in (await get("/groups.json", q=text))["rows"]] == groups, text
        assert (await get("/groups.json", 400, q="rewrd<1"))["error"]["position"] == 0
        page = await get("/groups.json", limit="2")
        assert [r["group"] for r in (await get("/groups.json", after=page["next"]))["rows"]] == ["g1"]

        one = await get("/groups/r/g2.json")
        assert (one["previous"], one["next"]) == ({"run": "r", "group": "g3"}, {"run": "r", "group": "g1"})
        one = await get("/groups/r/g1.json", q="-flat:yes")
        assert (one["previous"], one["next"]) == ({"run": "r", "group": "g3"}, None)
        assert [m["content"] for m in one["shared"]] == ["guess"]
        rest = {m["id"]: m["messages"] and [x["content"] for x in m["messages"]] for m in one["members"]}
        assert rest == {"g1-a": ["I say 4", "higher", "I say 7"], "g1-b": ["I say 9"], "g1-c": None}
        assert [(m["reward"], m["last_step"], m["tokens"]) for m in one["members"]] == [
            (1.0, "d3", 13),
            (0.0, "e1", 5),
            (None, None, None),
        ]
        await get("/groups/r/none.json", 404)

    ask(stack, tmp_path, scenario)


def test_forests_differences_times_and_texts(stack: Stack, tmp_path: Path) -> None:
    async def scenario(get: Get) -> None:
        found = await get("/trajectories/g1-a/forest.json")
        assert (found["steps"], found["step_tokens"], found["tokens"], found["lost"]) == (4, 9 + 11 + 3 + 13, 21, 0)
        group = await get("/groups/r/g1/forest.json")
        assert (group["apart_tokens"], group["tokens"], group["trajectories"]) == (21 + 5, 22, 2)
        assert group["runs"][0]["reward"] == 0.5

        drift = await get("/diff.json", left="g1-a", left_step="d1", right="g1-a", right_step="d2")
        assert (drift["link"]["kind"], drift["link"]["differs_at"], drift["link"]["by"]) == ("drift", 4, "tokens")
        assert (drift["shared"], drift["left_ids"][0], drift["right_ids"][4]) == (4, 5, 99)
        exact = await get("/diff.json", left="g1-a", left_step="d2", right="g1-a", right_step="d3")
        assert (exact["link"]["kind"], exact["link"]["by"]) == ("exact", "merge")
        two = await get("/diff.json", left="g1-a", left_step="d3", right="g1-b", right_step="e1")
        assert (two["link"], two["shared"]) == (None, 4)
        assert (two["texts"]["texts"]["99"], drift["texts"]["texts"]["5"]) == ("\n", HOSTILE_PIECE)
        await get("/diff.json", 404, left="g1-a", left_step="none", right="g1-b", right_step="e1")

        step = await get("/trajectories/g1-a/steps/d1.json")
        assert [step["texts"]["texts"][str(i)] for i in step["ids"][4:7]] == [HOSTILE_PIECE, "\\xe2\\x82", "\\xac"]
        parts = [await get(f"/trajectories/g1-a/steps/d1/{part}.json") for part in ("messages", "tokens")]
        assert step == parts[0] | parts[1]
        assert set(parts[0]) == {"id", "messages"}
        assert "messages" not in parts[1]
        await get("/trajectories/g1-a/steps/d1/signals.json", 400)
        line = (await get("/trajectories/g1-a.json"))["timeline"]
        assert [(b["step"], b["row"], b["new_version"]) for b in line["bars"]] == [
            ("d1", 0, False),
            ("d2", 0, False),
            ("sub", 1, False),
            ("d3", 0, True),
        ]
        assert (line["tools_seconds"], line["agent_seconds"], line["seconds"]) == (2.5, 0, 6)

        curves = await get("/flow/curves.json", recipe="demo")
        assert curves["points"] == [{"sequence": 1, "entropy": None, "mismatch": -0.125, "mismatch_abs": 0.375}]
        assert list(curves["missing"]) == ["entropy"]
        status = await get("/flow.json")
        assert [b["drift"] for r in status["numbers"]["recipes"] for b in r["batches"]] == [0.25]

    ask(stack, tmp_path, scenario)


def test_dead_letters_are_counted_and_those_that_went_back_are_not(stack: Stack) -> None:
    topic = f"claw.console-{uuid.uuid4().hex}.v1"

    async def bury(producer: AIOKafkaProducer, offset: int) -> None:
        record = SimpleNamespace(
            topic=topic, partition=0, offset=offset, timestamp=1, key=b"k", value=b"\xc1", headers=[]
        )
        letter = dead_letter(record, InvalidRecord("undecodable", "why"), stage="test")
        await bus.publish(producer, dlq_topic(topic), letter, deadline=30)

    async def scenario() -> None:
        for spec in (Topic(topic, 1, "key", "test"), dlq_topic_spec(topic)):
            await bus.ensure_topic(stack.kafka, spec)
        producer = await bus.start_producer(stack.kafka, client_id="test")
        try:
            await bury(producer, 1)
            await bury(producer, 2)
            known = await count_waiting(stack.kafka, {})
            assert known[topic] == Waiting(2, 2)
            letters = await DeadLetterTopic.opened(stack.kafka, topic)
            await letters.replay(stack.kafka, lambda letter: letter.offset == 0)
            await letters.close()
            assert (await count_waiting(stack.kafka, known))[topic] == Waiting(3, 1)
            assert (await count_waiting(stack.kafka, {topic: Waiting(3, 99)}))[topic].letters == 99, "not read again"
        finally:
            await bus.stop_producer(producer)
        async with a_console(settings_of(stack)) as url, aiohttp.ClientSession() as http:
            async with asyncio.timeout(60):
                count = None
                while count is None:
                    async with http.get(f"{url}/flow.json") as answer:
                        count = (await answer.json())["dead_letters"]
                    await asyncio.sleep(0.5)
            assert count == sum(waiting.letters for waiting in (await count_waiting(stack.kafka, {})).values()) >= 1

    asyncio.run(scenario())
