"""What a person asks in SQL: the words of the pool beside the editor, answers within bounds, a list as a statement. Pure."""

import inspect
import json
import math
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from claw_r1 import batch_questions
from claw_r1.errors import UserError
from claw_r1.local.analyst import LIMITS, PARAMETER_VIEWS, TABLES, VIEWS
from claw_r1.rules import sql_literal
from console import batches, groups, queries, recipes, trajectories

SHOWN: Final = 1000
"""Rows of an answer on the page."""
LINES: Final = "JSONCompactEachRowWithNamesAndTypes"
_OTHER_FORMAT: Final = "leave FORMAT out: the page reads the answer itself, and links give csv and parquet"
LONGEST: Final = 20_000
FORMATS: Final[Mapping[str, tuple[str, str]]] = {
    "csv": ("CSVWithNames", "text/csv; charset=utf-8"),
    "parquet": ("Parquet", "application/vnd.apache.parquet"),
}
"""By the address's ending: ClickHouse's format, and the type of the file."""

Row = Mapping[str, Any]

WORDS: Final = """
SELECT name, comment, engine LIKE '%View' AS is_view FROM system.tables
WHERE database = {database:String} AND name IN {names:Array(String)} ORDER BY name
"""
COLUMNS: Final = """
SELECT table, name, type, comment FROM system.columns
WHERE database = {database:String} AND table IN {names:Array(String)} AND name != 'version' ORDER BY table, position
"""


STEPS: Final = "SELECT * FROM ${database}.trajectory_steps(trajectory_uid = {uid:String}) LIMIT 10000"


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sql: str = Field(min_length=1, max_length=LONGEST)


def names() -> list[str]:
    """The relations that an analyst may read."""
    return sorted(TABLES | VIEWS | PARAMETER_VIEWS)


def parameter_of(view: Row) -> str | None:
    """What a view is called with, None for one that is not called."""
    return str(view["comment"]).rpartition("parameter: ")[2] if view["name"] in PARAMETER_VIEWS else None


def describe(view: Row) -> str:
    """A question for the columns of a view that is called."""
    return f"DESCRIBE (SELECT * FROM ${{database}}.{view['name']}({parameter_of(view)} = '0'))"


def schema(tables: Sequence[Row], columns: Iterable[Row], called: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """The relations with their columns and words."""
    of: dict[str, list[dict[str, str]]] = {}
    for row in columns:
        of.setdefault(row["table"], []).append(_column(row))
    return [
        {
            "name": t["name"],
            "meaning": t["comment"],
            "view": bool(t["is_view"]),
            "parameter": parameter_of(t),
            "columns": [_column(row) for row in called[t["name"]]] if t["name"] in called else of.get(t["name"], []),
        }
        for t in tables
    ]


def _column(row: Row) -> dict[str, str]:
    return {"name": row["name"], "type": " ".join(str(row["type"]).split()), "meaning": row.get("comment") or ""}


def limits() -> dict[str, int]:
    """What bounds a statement, as the page says it."""
    return {
        "seconds": int(LIMITS["max_execution_time"]),
        "memory": int(LIMITS["max_memory_usage"]),
        "shown": SHOWN,
        "in_a_file": int(LIMITS["max_result_rows"]),
    }


async def read_lines(pieces: AsyncIterator[bytes]) -> dict[str, Any]:
    """Columns and the first SHOWN rows of an answer in LINES; no more than these is read. Raises UserError for what is no such
    answer: another format, or the words of an error behind some rows."""
    lines: list[Any] = []
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        lines += [_line(line) for line in whole if line]
        if len(lines) > SHOWN + 2:
            break
    if rest and len(lines) <= SHOWN + 2:
        lines.append(_line(rest))
    if len(lines) < 2 or not all(isinstance(line, list) for line in lines):
        raise UserError(_OTHER_FORMAT)
    names, types, *rows = lines
    columns = [{"name": name, "type": kind} for name, kind in zip(names, types, strict=True)]
    return {"columns": columns, "rows": [[_cell(v) for v in row] for row in rows[:SHOWN]], "more": len(rows) > SHOWN}


def _line(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        if b"Exception" in line:
            raise UserError(f"the answer broke off: {line.decode(errors='replace')[:1000]}") from error
        raise UserError(_OTHER_FORMAT) from error


_EXACT: Final = 2**53


def _cell(value: Any) -> Any:
    """A value as a browser reads it: integers that it would round are texts."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _EXACT:
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return [_cell(one) for one in value]
    if isinstance(value, dict):
        return {name: _cell(one) for name, one in value.items()}
    return value


# ------------------------------------------------------------------------------------------------- a table as a statement

_PARAMETER: Final = re.compile(r"\{(\w+):(\w+(?:\(\w+\))?)\}")


def literal(sql: str, parameters: Mapping[str, Any]) -> str:
    """A statement of the console with its parameters written out, for who asks the pool's database."""

    def write(found: re.Match[str]) -> str:
        value, kind = parameters[found[1]], found[2]
        if kind.startswith("Array("):
            return f"[{', '.join(map(sql_literal, value))}]"
        return str(int(value)) if kind.startswith("UInt") else sql_literal(value)

    return _PARAMETER.sub(write, sql).replace("${database}.", "").strip()


def as_trajectories(q: str = "") -> str:
    """The list of a filter. Raises WrongFilter."""
    terms, asked = trajectories.question(q)
    return literal(
        "SELECT append_time, run_id, group_id, trajectory_uid, status, complete, steps, rewards, task_id\n"
        f"FROM ({trajectories.source(terms).strip()})\nWHERE {asked.sql}\n"
        "ORDER BY append_time DESC, trajectory_uid DESC\nLIMIT 100",
        asked.parameters,
    )


def as_groups(q: str = "") -> str:
    """The list of a filter of groups. Raises WrongFilter."""
    asked = groups.question(q)
    return literal(
        "SELECT fromUnixTimestamp64Milli(at_ms) AS decided, run_id, group_id, recipe, recipe_version, outcome, reason\n"
        f"FROM ({groups.SOURCE})\nWHERE {asked.sql}\nORDER BY at_ms DESC, outcome_id DESC\nLIMIT 100",
        asked.parameters,
    )


def as_batches(recipe: str = "") -> str:
    """The batches that were cut last."""
    return literal(batch_questions.NEWEST, {"recipe": recipe, "run": "", "limit": batches.LISTED})


def as_steps(uid: str) -> str:
    """The steps of a trajectory."""
    return literal(STEPS, {"uid": uid})


def as_members(run: str, group: str) -> str:
    """The rollouts of a group."""
    return literal(groups.ONE["members"], groups.place(run, group))


def as_fates() -> str:
    """What recipes left out, and why."""
    return literal(recipes.FATES, {})


def as_funnel() -> str:
    """What became of trajectories and groups under all recipes."""
    return literal(queries.FATES, {})


def as_policies() -> str:
    """The newest version of each run's policy, as it was trained and as engines serve it."""
    return literal(queries.POLICIES, {})


LISTS: Final[Mapping[str, Callable[..., str]]] = {
    "trajectories": as_trajectories,
    "groups": as_groups,
    "batches": as_batches,
    "steps": as_steps,
    "members": as_members,
    "fates": as_fates,
    "funnel": as_funnel,
    "policies": as_policies,
}
"""The tables of the screens that a few words name; those of a batch and of a dry run need more."""
OF_BATCH: Final = {
    "batch": batch_questions.GROUPS,
    "staleness": batches.STALENESS,
    "batch-trajectories": batch_questions.TRAJECTORIES,
}
"""Those of a batch."""


def as_statement(name: str, words: Mapping[str, str]) -> str:
    """The table `name` of LISTS as a statement that can be run and changed. Raises UserError, WrongFilter."""
    made = LISTS.get(name)
    if made is None:
        raise UserError(f"{name[:40]} is not a table of the screens: {', '.join([*LISTS, *OF_BATCH, 'dry-run'])} are")
    known = inspect.signature(made).parameters
    if wrong := sorted(set(words) - set(known)):
        raise UserError(f"{name} takes no {wrong[0][:40]}")
    if missing := [n for n, p in known.items() if p.default is p.empty and n not in words]:
        raise UserError(f"{name} needs {missing[0]}")
    return made(**words)
