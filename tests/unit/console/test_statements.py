"""Answers to people's statements are read within bounds."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from claw_r1.errors import UserError
from console.statements import LISTS, SHOWN, as_statement, literal, read_lines

HEAD = b'["n"]\n["UInt64"]\n'


async def _pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def read(*pieces: bytes) -> dict[str, object]:
    return asyncio.run(read_lines(_pieces(*pieces)))


def test_rows_are_whole_wherever_the_answer_was_cut() -> None:
    data = HEAD + b"[1]\n[18446744073709551615]\n"
    for cut in range(len(data)):
        assert read(data[:cut], data[cut:])["rows"] == [[1], ["18446744073709551615"]]


def test_no_more_is_read_than_is_shown() -> None:
    seen = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal seen
        yield HEAD
        while True:
            seen += 1
            yield b"[1]\n"

    found = asyncio.run(read_lines(endless()))
    assert (len(found["rows"]), found["more"]) == (SHOWN, True)
    assert seen <= SHOWN + 2


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'"n"\n1\n', "leave FORMAT out"),
        (b"n\n1\n", "leave FORMAT out"),
        (b"", "leave FORMAT out"),
        (HEAD + b"[1]\nCode: 241. DB::Exception: Memory limit", "broke off: Code: 241"),
    ],
)
def test_what_is_no_answer_is_said(data: bytes, why: str) -> None:
    with pytest.raises(UserError, match=why):
        read(data)


def test_values_of_a_filter_are_literals_of_the_statement() -> None:
    sql = as_statement("trajectories", {"q": "id:a'b reward>0.5"})
    assert "{f" not in sql
    assert "a\\x27b" in sql
    assert "> 0.5" in sql
    assert "${" not in sql


def test_parameters_are_written_out_by_their_kind() -> None:
    asked = {"text": "it's", "list": ["a", "b"], "whole": 7, "part": 0.5}
    sql = "{text:String} {list:Array(String)} {whole:UInt64} {part:Float64} ${database}.steps"
    assert literal(sql, asked) == "'it\\x27s' ['a', 'b'] 7 0.5 steps"


@pytest.mark.parametrize(
    ("name", "words", "why"),
    [
        ("snapshots", {}, "not a table of the screens"),
        ("steps", {}, "steps needs uid"),
        ("groups", {"q": "", "run": "r"}, "groups takes no run"),
        ("groups", {"q": "rewrd<1"}, "did you mean reward"),
    ],
)
def test_a_table_that_is_not_named_well_is_said(name: str, words: dict[str, str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        as_statement(name, words)


@pytest.mark.parametrize("name", LISTS)
def test_no_table_leaves_a_template_in_its_statement(name: str) -> None:
    words = {"steps": {"uid": "t"}, "members": {"run": "r", "group": "g#2"}}.get(name, {})
    sql = as_statement(name, words)
    assert "${" not in sql
    assert "{" not in sql
