"""The pool's benchmark fits the schema: what it generates answers every question that it asks."""

import asyncio

import pytest

from benchmarks import pool_queries
from tests.conftest import Stack

pytestmark = pytest.mark.stack


def test_every_question_has_an_answer(stack: Stack) -> None:
    size = 80_000
    figures = {str(figure["question"]): figure for figure in asyncio.run(pool_queries.measure(stack.clickhouse, size))}
    rows = {question: figure["answer_rows"] for question, figure in figures.items()}
    assert rows["one trajectory, its steps"] == rows["one trajectory, whole contexts"] == pool_queries.STEPS
    assert rows["the 50 that ended last"] == rows["the 50 that ended last, of a run"] == 50
    assert rows["trajectories with a tag, of a run"] == size // pool_queries.STEPS // pool_queries.RUNS // 100
    assert rows["funnel by reason, of a run"] == 2
    assert all(rows.values()), rows
