"""The two forms of a condition say the same of the same values, on the real engine."""

import asyncio
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from claw_r1.clickhouse import ClickHouse
from claw_r1.rules import COLUMN_TYPES, FIELDS, OPS, Condition, Field, compile_python, compile_sql
from tests.conftest import Stack

pytestmark = pytest.mark.stack

TEXTS = st.one_of(
    st.sampled_from(("", "a", "b", "it's", "\\", "ü", "\x00", "a\n", "𝔘")), st.text("ab'\\\n\x00é𐍈", max_size=4)
)
INTEGERS = st.one_of(
    st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1), st.sampled_from((2**53, 2**53 + 1, -(2**63)))
)
FLOATS = st.one_of(
    st.sampled_from((0.0, -0.0, 0.1, 0.30000000000000004, 1e300, 5e-324, -1.5)), st.floats(allow_nan=False)
)
NUMBERS = st.one_of(INTEGERS, FLOATS.filter(lambda x: abs(x) < 1e309))
SCALARS = st.one_of(st.booleans(), NUMBERS, TEXTS)
KEYS = st.sampled_from(("a", "b", "c d", "é", "0"))
JSON = st.dictionaries(
    KEYS, st.one_of(st.none(), SCALARS, st.lists(NUMBERS, max_size=2), st.dictionaries(KEYS, SCALARS, max_size=2))
)

ARROW: Final[dict[str, pa.DataType]] = {
    "number": pa.float64(),
    "text": pa.string(),
    "flag": pa.bool_(),
    "texts": pa.list_(pa.string()),
    "json": pa.string(),
}


def value_of(field: Field) -> st.SearchStrategy[Any]:
    if field.name == "rewards.*":
        return st.dictionaries(st.sampled_from(("x", "y.z")), FLOATS, max_size=2)
    return {
        "number": st.one_of(st.none(), NUMBERS, st.just(float("nan"))),
        "text": st.one_of(st.none(), TEXTS),
        "flag": st.one_of(st.none(), st.booleans()),
        "texts": st.lists(TEXTS, max_size=3),
        "json": JSON,
    }[field.kind]


ROWS = st.fixed_dictionaries({field.name.removesuffix(".*"): value_of(field) for field in FIELDS})


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    field = draw(st.sampled_from(FIELDS))
    op = draw(st.sampled_from(OPS[field.kind]))
    paths = {"metadata.*": ("a", "b.a", "c d", "é", "0"), "rewards.*": ("x", "y.z")}.get(field.name, ("",))
    one = {
        "number": NUMBERS,
        "text": TEXTS,
        "flag": st.booleans(),
        "texts": TEXTS,
        "json": st.one_of(NUMBERS, TEXTS) if op in ("lt", "le", "gt", "ge") else SCALARS,
    }[field.kind]
    value = draw(st.booleans() if op == "exists" else st.lists(one, max_size=3) if op in ("in", "not_in") else one)
    name = field.name.replace("*", draw(st.sampled_from(paths)))
    return Condition.model_validate({"field": name, "op": op, "value": value})


def a_stream(rows: list[dict[str, Any]], first: int) -> bytes:
    columns: dict[str, pa.Array] = {"row": pa.array(range(first, first + len(rows)), pa.uint32())}
    for field in FIELDS:
        head = field.name.removesuffix(".*")
        values = [row[head] for row in rows]
        if head == "rewards":
            columns[head] = pa.array([list(v.items()) for v in values], pa.map_(pa.string(), pa.float64()))
        elif head == "metadata":
            columns[head] = pa.array([msgspec.json.encode(v).decode() for v in values], pa.string())
        elif field.kind == "number":
            columns[head] = pa.array([None if v is None else float(v) for v in values], pa.float64())
        else:
            columns[head] = pa.array(values, ARROW[field.kind])
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


class Seen:
    """A table of values; every batch of rows is asked once."""

    def __init__(self, url: str) -> None:
        self.runner = asyncio.Runner()
        self.pool = self.runner.run(ClickHouse.connect(url))
        self.batch = 0

    def make(self) -> None:
        columns = [f"`{f.name.removesuffix('.*')}` {COLUMN_TYPES[f.kind]}" for f in FIELDS if f.name != "rewards.*"]
        columns += ["`rewards` Map(String, Float64)", "`row` UInt32"]
        self.runner.run(
            self.pool.command(f"CREATE TABLE seen_values ({', '.join(columns)}) ENGINE = MergeTree ORDER BY row")
        )

    def ask(self, rows: list[dict[str, Any]], expressions: list[str]) -> list[tuple[Any, ...]]:
        """Row by row what the expressions give."""
        first, self.batch = self.batch, self.batch + len(rows)
        names = ["row", *(f.name.removesuffix(".*") for f in FIELDS)]
        self.runner.run(self.pool.insert_arrow("seen_values", names, a_stream(rows, first), token=""))
        columns = ", ".join(f"toUInt8({sql}) AS c{n}" for n, sql in enumerate(expressions))
        found = self.runner.run(self.pool.query(f"SELECT {columns} FROM seen_values WHERE row >= {first} ORDER BY row"))
        return found.rows

    def close(self) -> None:
        self.runner.run(self.pool.close())
        self.runner.close()


@pytest.fixture(scope="module")
def seen(stack: Stack) -> Iterator[Seen]:
    table = Seen(stack.clickhouse)
    table.make()
    yield table
    table.close()


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(ROWS, min_size=1, max_size=12), asked=st.lists(conditions(), min_size=1, max_size=40))
def test_predicate_and_sql_agree(seen: Seen, rows: list[dict[str, Any]], asked: list[Condition]) -> None:
    found = seen.ask(rows, [compile_sql(condition) for condition in asked])
    for row, said in zip(rows, found, strict=True):
        for condition, sql in zip(asked, said, strict=True):
            assert compile_python(condition)(row) == bool(sql), (condition, row, compile_sql(condition))
