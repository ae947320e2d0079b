"""Every question of docs/questions.md is one that the engine answers, with the columns that the page shows."""

import asyncio
import itertools

import pytest

from claw_r1.clickhouse import ClickHouse
from sinks import migrations
from sinks.rows import TABLES, Place, list_rows
from sinks.writer import build_stream
from tests.conftest import Stack
from tests.pool import every_event
from tests.questions import read_questions

DATABASE = "questions"


def test_there_are_twenty() -> None:
    assert [question.number for question in read_questions()] == list(range(1, 21))


@pytest.mark.stack
def test_every_question_is_answered(stack: Stack) -> None:
    async def ask() -> dict[int, tuple[str, ...]]:
        await migrations.apply(stack.clickhouse, DATABASE)
        async with await ClickHouse.connect(stack.clickhouse, DATABASE) as pool:
            rows: dict[str, list[tuple[object, ...]]] = {}
            offsets = itertools.count()
            for topic, event in every_event("demo", "demo"):
                for table, row in list_rows(event, Place(topic, 0, next(offsets), 1_700_000_000_000)):
                    rows.setdefault(table, []).append(row)
            for table, some in rows.items():
                stream = build_stream(TABLES[table], some)
                await pool.insert_arrow(table, TABLES[table].names, stream, token=table)
            answers = {one.number: await pool.raw(one.sql, "TSVWithNames") for one in read_questions()}
        return {number: tuple(answer.decode().splitlines()[0].split("\t")) for number, answer in answers.items()}

    columns = asyncio.run(ask())
    assert columns == {question.number: question.columns for question in read_questions()}
