"""What a person typed to narrow a list becomes conditions on the pool: the filter language.

`reward<0.2 env:swe policy>=40 state:waiting -tag:hack "two words"`: terms stand beside each other and all hold; `-` turns one
round; `a,b` is any of them; `*` stands for any characters of a text; a word alone is looked for in ids and tasks. Pure. Values
reach the pool as parameters only, never as text of a statement. A wrong filter raises WrongFilter, which says where and what
to write.
"""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from claw_r1.errors import UserError

Kind = Literal["text", "number", "choice"]
OPERATORS: Final = ("<=", ">=", "!=", "<", ">", "=", ":")
LONGEST: Final = 2000
MOST_TERMS: Final = 30
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_.-]+)?")


class WrongFilter(UserError):
    """A filter that says nothing; `position` is the place of the fault, from 0."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True, slots=True)
class Field:
    """A name that a filter may use.

    `value` is an expression; `{part}` in it is what stands behind the dot. With `among`, a SELECT of keys in which
    `{condition}` is the test of that value; without, the value is one of the list's own columns.
    """

    name: str
    kind: Kind
    meaning: str
    value: str
    among: str | None = None
    choices: Mapping[str, str] = field(default_factory=dict)
    """Of a choice: the word and its condition."""
    keys: str | None = None
    """What `among` selects, where that is not a row's own key."""

    @property
    def dotted(self) -> bool:
        return "{part}" in self.value


@dataclass(frozen=True, slots=True)
class Term:
    """One condition: `name.part operator values`, or turned round."""

    name: str
    part: str
    operator: str
    values: tuple[str, ...]
    negated: bool
    position: int


@dataclass
class Where:
    """A condition in SQL and its parameters."""

    sql: str
    parameters: dict[str, Any]


def parse(text: str, fields: Mapping[str, Field]) -> tuple[Term, ...]:
    """The terms of a filter. Raises WrongFilter."""
    if len(text) > LONGEST:
        raise WrongFilter(f"a filter has {LONGEST} characters at most", LONGEST)
    terms: list[Term] = []
    at = 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            return tuple(terms)
        if len(terms) == MOST_TERMS:
            raise WrongFilter(f"a filter has {MOST_TERMS} terms at most", at)
        term, at = _term(text, at, fields)
        terms.append(term)


def _term(text: str, start: int, fields: Mapping[str, Field]) -> tuple[Term, int]:
    negated = text[start] == "-"
    at = start + negated
    name = _NAME.match(text, at)
    operator = next((o for o in OPERATORS if name and text.startswith(o, name.end())), None)
    if name is None or operator is None:
        values, end = _values(text, at, split=False)
        return Term("", "", ":", values, negated, start), end
    head, _, part = name.group().partition(".")
    found = fields.get(head)
    if found is None:
        near = difflib.get_close_matches(head, fields, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise WrongFilter(f"{head} is not a field{hint} Fields: {', '.join(fields)}", at)
    if found.dotted and not part:
        raise WrongFilter(f"{head} needs a name behind a dot, as in {head}.NAME:value", name.end())
    if part and not found.dotted and f"{head}." not in fields:
        raise WrongFilter(f"{head} takes no name behind a dot", at + len(head))
    values, end = _values(text, name.end() + len(operator), split=True)
    term = Term(f"{head}." if part and not found.dotted else head, part, operator, values, negated, start)
    _check(term, fields[term.name], name.end() + len(operator))
    return term, end


def _values(text: str, at: int, *, split: bool) -> tuple[tuple[str, ...], int]:
    values: list[str] = []
    while True:
        if text.startswith('"', at):
            end = text.find('"', at + 1)
            if end < 0:
                raise WrongFilter('the quote is not closed: write "two words"', at)
            values.append(text[at + 1 : end])
            at = end + 1
            if at < len(text) and not text[at].isspace() and not (split and text[at] == ","):
                raise WrongFilter("a space is missing behind the quote", at)
        else:
            stop = r"[\s,]" if split else r"\s"
            found = re.compile(stop).search(text, at)
            end = found.start() if found else len(text)
            values.append(text[at:end])
            at = end
        if not values[-1]:
            raise WrongFilter("a value is missing", at)
        if not (split and text.startswith(",", at)):
            return tuple(values), at
        at += 1


def _check(term: Term, found: Field, at: int) -> None:
    if found.kind != "number" and term.operator not in (":", "=", "!="):
        raise WrongFilter(f"{found.name} is no number: write {found.name}:value", at - len(term.operator))
    if term.operator in ("<", "<=", ">", ">=") and len(term.values) > 1:
        raise WrongFilter(f"{term.operator} takes one value", at)
    for value in term.values:
        if found.kind == "number" and not _is_number(value):
            raise WrongFilter(f"{value!r} is not a number, and {found.name} is one", at)
        if found.kind == "choice" and value not in found.choices:
            raise WrongFilter(f"{found.name} is one of {', '.join(found.choices)}, not {value!r}", at)


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def where(terms: tuple[Term, ...], fields: Mapping[str, Field], keys: str, words: str) -> Where:
    """The condition that all terms hold; `keys` is what an `among` selects, a lone word is looked for in `words`."""
    made = Where("", {})
    conditions = []
    for term in terms:
        condition = _word(term, words, made) if not term.name else _field(term, fields[term.name], keys, made)
        conditions.append(f"NOT ({condition})" if term.negated != (term.operator == "!=") else f"({condition})")
    made.sql = " AND ".join(conditions) or "true"
    return made


def _word(term: Term, words: str, made: Where) -> str:
    return f"positionCaseInsensitiveUTF8({words}, {_give(term.values[0], 'String', made)}) > 0"


def _field(term: Term, found: Field, keys: str, made: Where) -> str:
    if found.kind == "choice":
        return " OR ".join(f"({found.choices[value]})" for value in term.values)
    value = found.value
    if found.dotted:
        value = value.replace("{part}", _give(term.part, "String", made))
    condition = _number(term, value, made) if found.kind == "number" else _text(term, value, made)
    if found.among is None:
        return f"ifNull({condition}, false)"
    return f"{found.keys or keys} IN ({found.among.replace('{condition}', condition)})"


def _number(term: Term, value: str, made: Where) -> str:
    if term.operator in (":", "=", "!="):
        given = ", ".join(_give(float(v), "Float64", made) for v in term.values)
        return f"toFloat64({value}) IN ({given})"
    return f"{value} {term.operator} {_give(float(term.values[0]), 'Float64', made)}"


def _text(term: Term, value: str, made: Where) -> str:
    tests = []
    for wanted in term.values:
        if "*" in wanted:
            escaped = re.sub(r"([\\%_])", r"\\\1", wanted).replace("*", "%")
            tests.append(f"{value} LIKE {_give(escaped, 'String', made)}")
        else:
            tests.append(f"{value} = {_give(wanted, 'String', made)}")
    return " OR ".join(tests)


def _give(value: str | float, kind: str, made: Where) -> str:
    name = f"f{len(made.parameters)}"
    made.parameters[name] = value
    return f"{{{name}:{kind}}}"


def describe(fields: Mapping[str, Field]) -> list[dict[str, Any]]:
    """The fields as the page completes them."""
    return [
        {
            "name": f.name.rstrip(".") + ("." if f.dotted else ""),
            "kind": f.kind,
            "meaning": f.meaning,
            "choices": list(f.choices),
        }
        for f in fields.values()
    ]
