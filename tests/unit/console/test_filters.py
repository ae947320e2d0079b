"""What people type becomes conditions with parameters, and what says nothing is refused with its place."""

import pytest

from console import filters, trajectories
from console.filters import Term, WrongFilter, parse
from console.trajectories import FIELDS, KEYS, WORDS


def test_terms_stand_beside_each_other() -> None:
    terms = parse('reward<0.2 env:swe,web -tag:"reward hack"  guess', FIELDS)
    assert [(t.name, t.operator, t.values, t.negated) for t in terms] == [
        ("reward", "<", ("0.2",), False),
        ("env", ":", ("swe", "web"), False),
        ("tag", ":", ("reward hack",), True),
        ("", ":", ("guess",), False),
    ]
    assert [t.position for t in terms] == [0, 11, 23, 43]


def test_a_name_behind_a_dot_is_a_part() -> None:
    assert parse("reward.judge>=0.5 meta.kind:solo", FIELDS) == (
        Term("reward.", "judge", ">=", ("0.5",), False, 0),
        Term("meta", "kind", ":", ("solo",), False, 18),
    )


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("rewrd<1", 0, "did you mean reward?"),
        ("steps>3 reward<x", 15, "'x' is not a number"),
        ("state:lost", 6, "state is one of running, waiting"),
        ("env<3", 3, "env is no number"),
        ("env:", 4, "a value is missing"),
        ('env:"swe', 4, "the quote is not closed"),
        ('env:"swe"x', 9, "a space is missing"),
        ("reward<1,2", 7, "takes one value"),
        ("meta:solo", 4, "needs a name behind a dot"),
        ("env.kind:solo", 3, "takes no name"),
        ("reward<nan", 7, "is not a number"),
        ("a " * 31, 60, "30 terms at most"),
    ],
)
def test_a_wrong_filter_says_where_and_what(text: str, position: int, says: str) -> None:
    with pytest.raises(WrongFilter, match=says.replace("?", r"\?")) as caught:
        parse(text, FIELDS)
    assert caught.value.position == position


def test_values_are_parameters_and_never_text_of_the_statement() -> None:
    evil = "x'); DROP TABLE steps; --"
    _, where = trajectories.question(f'env:"{evil}" "{evil}" meta.k:"{evil}" policy>=3')
    assert evil not in where.sql
    assert list(where.parameters.values()) == [evil, evil, "k", evil, 3.0]
    assert all(f"{{{name}:" in where.sql for name in where.parameters)


def test_a_star_is_any_text_and_other_signs_are_themselves() -> None:
    made = filters.where(parse(r"task:50%_*", FIELDS), FIELDS, KEYS, WORDS)
    assert made.parameters == {"f0": r"50\%\_%"}
    assert "LIKE {f0:String}" in made.sql


def test_a_term_that_is_turned_round_twice_stands() -> None:
    def condition(text: str) -> str:
        return trajectories.question(text)[1].sql

    assert condition("-env!=swe") == condition("env:swe")
    assert condition("-env:swe") == condition("env!=swe") != condition("env:swe")
    assert condition("") == "true"


def test_every_field_is_described_for_the_page() -> None:
    described = filters.describe(FIELDS)
    assert {f["name"] for f in described} >= {"reward", "reward.", "meta.", "state", "tag"}
    assert all(f["meaning"] for f in described)
