"""What a person asks for becomes a question whose answer is the keys of ended trajectories.

Pure. Three ways to ask: conditions in the vocabulary of a recipe's filters, what a recipe emitted, or SQL that gives ids.
Only trajectories that ended are found.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from claw_r1.dry_run import picking_sql
from claw_r1.recipes import Recipe
from claw_r1.rules import Condition, sql_literal

KEYS: Final = ("run_id", "prompt_uid", "group_id", "trajectory_uid")
IDS: Final = ("trajectory_uid", "group_id", "prompt_uid")
"""Columns by one of which a person's SQL must name what it means."""


class Member(NamedTuple):
    """The key of a trajectory; what is selected is ordered by it."""

    run_id: str
    prompt_uid: str
    group_id: str
    trajectory_uid: str


class Selection(BaseModel):
    """What was asked for; stored with what it gave."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    run_id: str | None = None
    """The run; None: that of the SQL's answer."""
    channel: str = "train"
    where: tuple[Condition, ...] = ()
    recipe: str | None = Field(None, min_length=1)
    """What this recipe emitted of the run."""
    sql: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum((bool(self.where), self.recipe is not None, self.sql is not None)) > 1:
            raise ValueError("choose by conditions, by a recipe, or by SQL: not by several")
        if self.sql is None and self.run_id is None:
            raise ValueError("say the run")
        return self

    def document(self) -> dict[str, Any]:
        """As JSON, without what was not asked."""
        return {name: value for name, value in self.model_dump(mode="json").items() if value not in (None, [], ())}

    def question(self, columns: Sequence[str] = ()) -> str:
        """A SELECT of KEYS, in any order; `columns`: what the person's SQL gives, of which one must be of IDS."""
        if self.sql is not None:
            given = [name for name in (*IDS, "run_id") if name in columns]
            mine = _among(given, f"SELECT {', '.join(given)} FROM ({self.sql}\n)")
            return mine if self.run_id is None else f"{mine} AND run_id = {sql_literal(self.run_id)}"
        assert self.run_id is not None
        run = sql_literal(self.run_id)
        if self.recipe is not None:
            emitted = (  # a further group of a round's late trajectories is the round's
                "SELECT run_id, prompt_uid, splitByChar('+', group_id)[1], assumeNotNull(trajectory_uid) FROM outcomes FINAL "
                f"WHERE run_id = {run} AND recipe = {sql_literal(self.recipe)} AND outcome = 'emitted' "
                "AND trajectory_uid IS NOT NULL AND fact_id IS NULL"
            )
            return _among(KEYS, emitted)
        recipe = Recipe(name="selection", run_id=self.run_id, channel=self.channel, filters=self.where)
        return f"{_among(('prompt_uid', 'trajectory_uid'), picking_sql(recipe))} AND run_id = {run}"


PURGED: Final = """
SELECT e.run_id, e.prompt_uid
FROM ({begun}) AS e
INNER JOIN (SELECT run_id, partition, max(offset) AS below FROM purges GROUP BY run_id, partition) AS p
    ON e.run_id = p.run_id AND e.partition = p.partition
WHERE e.offset < p.below
""".format(
    begun=" UNION ALL ".join(
        f"SELECT run_id, prompt_uid, partition, offset FROM {table} WHERE run_id IN (SELECT run_id FROM purges)"
        for table in ("steps", "trajectory_events", "group_events")
    )
)
"""Prompts that began before their run was to be forgotten."""


def _among(names: Sequence[str], ids: str) -> str:
    """The trajectories with these ids that are not to be forgotten."""
    return (
        f"SELECT {', '.join(KEYS)} FROM trajectories FINAL "
        f"WHERE ({', '.join(names)}) IN ({ids}) AND (run_id, prompt_uid) NOT IN ({PURGED})"
    )


def paged(question: str, after: Member | None, limit: int, more: Sequence[str] = ()) -> str:
    """The next `limit` rows of a question after a key, ordered by key."""
    keys = ", ".join(KEYS)
    behind = "" if after is None else f"WHERE ({keys}) > ({', '.join(map(sql_literal, after))})"
    return f"SELECT {', '.join((*KEYS, *more))} FROM ({question}) {behind} ORDER BY {keys} LIMIT {limit}"
