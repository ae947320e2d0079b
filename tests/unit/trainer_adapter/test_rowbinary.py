"""ClickHouse's RowBinaryWithNamesAndTypes comes back as Python's values, exact in every bit."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_adapter.rowbinary import Truncated, read_rows


def number(value: int) -> bytes:
    """LEB128."""
    out = bytearray()
    while True:
        out.append(value & 0x7F | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(out)


def text(value: str) -> bytes:
    return number(len(value.encode())) + value.encode()


def an_answer(columns: dict[str, str], *rows: bytes) -> io.BufferedReader:
    head = number(len(columns)) + b"".join(map(text, columns)) + b"".join(map(text, columns.values()))
    return io.BufferedReader(io.BytesIO(head + b"".join(rows)))


def one(kind: str, packed: bytes) -> Any:
    (row,) = read_rows(an_answer({"value": kind}, packed))
    return row["value"]


@pytest.mark.parametrize(
    ("kind", "packed", "value"),
    [
        ("UInt64", struct.pack("<Q", 2**64 - 1), 2**64 - 1),
        ("Int64", struct.pack("<q", -(2**63)), -(2**63)),
        ("Bool", b"\x01", True),
        ("String", text("ü" * 100), "ü" * 100),
        ("LowCardinality(Nullable(String))", b"\x01", None),
        ("Nullable(Float64)", b"\x00" + struct.pack("<d", -0.0), -0.0),
        ("DateTime64(6, 'UTC')", struct.pack("<q", 1_500_000), 1.5),
        ("Array(String)", number(2) + text("a") + text("b"), ["a", "b"]),
        ("Array(UInt64)", number(1) + struct.pack("<Q", 7), [7]),
        ("Array(Array(UInt8))", number(2) + number(0) + number(1) + b"\x05", [b"", b"\x05"]),
        ("Map(String, UInt64)", number(1) + text("a") + struct.pack("<Q", 7), {"a": 7}),
        ("Tuple(String, UInt8)", text("a") + b"\x02", ("a", 2)),
        (
            "Array(Tuple(version Nullable(Int64), start UInt32, `end` UInt32))",
            number(1) + b"\x01" + struct.pack("<II", 1, 2),
            [{"version": None, "start": 1, "end": 2}],
        ),
        (
            "Tuple(\n    a Array(Tuple(b String, c Map(String, Float32))),\n    d UInt8)",
            number(0) + b"\x03",
            {"a": [], "d": 3},
        ),
    ],
)
def test_a_value_of_each_type(kind: str, packed: bytes, value: Any) -> None:
    assert one(kind, packed) == value


@given(st.lists(st.floats(width=32), max_size=300), st.lists(st.integers(0, 2**32 - 1), max_size=300))
def test_numbers_of_tokens_stay_packed(floats: list[float], ids: list[int]) -> None:
    columns = {"log_probs": "Array(Float32)", "ids": "Array(UInt32)"}
    packed = np.array(floats, "<f4").tobytes(), np.array(ids, "<u4").tobytes()
    row = number(len(floats)) + packed[0] + number(len(ids)) + packed[1]
    rows = list(read_rows(an_answer(columns, row, row)))
    assert [(found["log_probs"], found["ids"]) for found in rows] == [packed] * 2


def test_an_answer_without_rows_or_without_anything_has_none() -> None:
    assert list(read_rows(an_answer({"a": "String"}))) == []
    assert list(read_rows(io.BufferedReader(io.BytesIO(b"")))) == []


def test_an_answer_that_breaks_off_is_no_short_one() -> None:
    with pytest.raises(Truncated, match="3 bytes too early"):
        list(read_rows(an_answer({"a": "Array(UInt32)"}, number(1) + b"\x00" * 4, number(1) + b"\x00")))


@pytest.mark.parametrize("kind", ["Variant(String, UInt8)", "(", "Date"])
def test_a_type_that_is_not_known_is_named(kind: str) -> None:
    with pytest.raises(ValueError, match=r"are not read here|is no type"):
        list(read_rows(an_answer({"a": kind}, b"\x00")))
