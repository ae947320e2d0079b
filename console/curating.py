"""What a person says of trajectories becomes decisions: whom it is about, what it will change, and what it did. Pure.

Invariants: a decision is about what the person was shown (the number found is compared with that of the preview); the effect
is said before and after, from where the group stands then: before its cut it counts, behind it comes too late.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from claw_r1.curation import ACTIONS, NUMBERED, why_unfit
from claw_r1.errors import UserError
from console.trajectories import STATES, question, source

MOST: Final = 10_000
"""Trajectories that one call decides on at most."""
MOST_IDS: Final = 500
"""Of those that are named one by one."""
BATCHES: Final = 50

Row = Mapping[str, Any]


class Place(BaseModel):
    """A decision that is to be undone, and what it was about."""

    model_config = ConfigDict(extra="forbid")
    id: str = Field(max_length=200)
    run: str = Field(max_length=200)
    prompt: str = Field(max_length=200)
    trajectory: str | None = Field(None, max_length=200)
    step: str | None = Field(None, max_length=200)


class Wanted(BaseModel):
    """Which trajectories are meant: those of a filter, or of these only. `about` group: the groups that they are in."""

    model_config = ConfigDict(extra="forbid")
    q: str = ""
    ids: tuple[str, ...] | None = Field(None, max_length=MOST_IDS)
    about: Literal["trajectory", "group"] = "trajectory"


class Word(Wanted):
    """What a person says of them; `expect` is how many the preview found."""

    action: str
    value: str | float | None = None
    author: str = Field(min_length=1, max_length=100)
    reason: str | None = Field(None, max_length=2000)
    expect: int | None = None


class Undo(BaseModel):
    """What a person takes back."""

    model_config = ConfigDict(extra="forbid")
    of: tuple[Place, ...] = Field(min_length=1, max_length=MOST)
    author: str = Field(min_length=1, max_length=100)
    reason: str | None = Field(None, max_length=2000)


def read_value(word: Word) -> str | float | None:
    """The value as the action takes it. Raises UserError."""
    if word.action not in ACTIONS or word.action == "undo":
        raise UserError(f"{word.action} is not one of {', '.join(a for a in ACTIONS if a != 'undo')}")
    value: str | float | None = word.value
    if word.action in NUMBERED and isinstance(value, str):
        try:
            value = float(value) if value.strip() else None
        except ValueError as error:
            raise UserError(f"{word.action} takes a number, not {value!r}") from error
    if (why := why_unfit(word.action, value)) is not None:
        raise UserError(why)
    return value


def chosen(wanted: Wanted) -> tuple[str, dict[str, Any]]:
    """FROM … WHERE … of the trajectories that are meant. Raises WrongFilter."""
    terms, asked = question(wanted.q)
    if wanted.ids is None:
        return f"FROM ({source(terms)}) WHERE {asked.sql}", asked.parameters
    return f"FROM ({source(terms)}) WHERE trajectory_uid IN {{ids:Array(String)}}", {"ids": list(wanted.ids)}


def subjects(wanted: Wanted) -> tuple[str, dict[str, Any]]:
    """run_id, prompt_uid and trajectory_uid of what is meant (of groups: none), MOST and one more."""
    rows, parameters = chosen(wanted)
    columns = "run_id, prompt_uid, trajectory_uid" if wanted.about == "trajectory" else "run_id, prompt_uid"
    return f"SELECT DISTINCT {columns} {rows} ORDER BY {columns} LIMIT {MOST + 1}", parameters


_ORDER: Final = ("running", "trained", "batched", "ready", "held", "discarded", "waiting")


def preview(wanted: Wanted) -> dict[str, tuple[str, dict[str, Any]]]:
    """How many there are in each state, and in which batches."""
    rows, parameters = chosen(wanted)
    counted = "count()" if wanted.about == "trajectory" else "uniqExact(run_id, prompt_uid)"
    cases = ", ".join(f"{STATES[state]}, '{state}'" for state in _ORDER[:-1])
    return {
        "states": (f"SELECT multiIf({cases}, 'waiting') AS state, {counted} AS n {rows} GROUP BY state", parameters),
        "batches": (
            "SELECT m.recipe AS recipe, m.sequence AS sequence, m.trained AS trained, count() AS n "
            f"FROM (SELECT run_id, group_id {rows}) AS c INNER JOIN ("
            "SELECT recipe, sequence, group_run_id, group_id, "
            "batch_id IN (SELECT batch_id FROM ${database}.trained) AS trained "
            "FROM ${database}.cut_members FINAL WHERE taken) AS m "
            "ON c.run_id = m.group_run_id AND c.group_id = m.group_id "
            f"GROUP BY recipe, sequence, trained ORDER BY sequence DESC, recipe LIMIT {BATCHES}",
            parameters,
        ),
    }


_BEFORE: Final = {
    "veto": "not trained",
    "keep": "filters do not apply, and a group that waits for review goes on",
    "override_reward": "trained with this reward",
    "relabel": "trained with this label",
    "quality": "seen by filters of recipes on quality",
    "tag": "seen by filters of recipes on tags",
}
_DONE: Final = {
    "veto": "vetoed",
    "keep": "kept",
    "override_reward": "given another reward",
    "relabel": "labelled",
    "quality": "given a quality",
    "tag": "tagged",
}


def foretell(action: str, found: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """What an action will change, in numbers and in words, by the rows of `preview`."""
    by_state = {str(row["state"]): int(row["n"]) for row in found["states"]}
    batches = [
        {"recipe": b["recipe"], "sequence": int(b["sequence"]), "trained": bool(b["trained"]), "count": int(b["n"])}
        for b in found["batches"]
    ]
    before = sum(by_state.get(state, 0) for state in ("running", "waiting", "ready", "held"))
    late = sum(by_state.get(state, 0) for state in ("batched", "trained"))
    out = by_state.get("discarded", 0)
    if action == "note":
        words = [f"{before + late + out}: written down; a note changes no training"] if by_state else []
    else:
        words = [f"{before}: {_told(action, 'before the cut')}"] if before else []
        words += [f"{late}: too late: {name_batches(batches)}"] if late else []
        words += (
            [f"{out}: left out already, and a decision does not bring back what its group was judged to be"]
            if out
            else []
        )
    return {"count": sum(by_state.values()), "most": MOST, "states": by_state, "batches": batches, "words": words}


def name_batches(batches: Sequence[Row]) -> str:
    """`trained in batch 42 of grpo, in batch 43 of grpo, which is not trained yet`."""
    shown = [
        f"trained in batch {b['sequence']} of {b['recipe']}"
        if b["trained"]
        else f"in batch {b['sequence']} of {b['recipe']}, which is handed out"
        for b in batches[:3]
    ]
    return ", ".join(shown) + (f" and {len(batches) - 3} more" if len(batches) > 3 else "")


def tell_effects(
    decisions: Iterable[dict[str, Any]], outcomes: Sequence[Row], applied: Mapping[str, int], state: str
) -> list[dict[str, Any]]:
    """Decisions of a trajectory with their effect in words; `applied` is the batch at whose cut one was known, by its id.

    `outcomes` are rows with `fact_id`, `reason` and `batch`.
    """
    kept = list(decisions)
    late = {row["fact_id"]: row for row in outcomes if row["fact_id"] is not None and row["batch"] is not None}
    is_vetoed = any(row["fact_id"] is None and row["reason"] == "vetoed" for row in outcomes)
    void: set[str] = set()
    for one in sorted(kept, key=lambda d: d["at"] or 0, reverse=True):
        if one["action"] == "undo" and one["undoes"] and one["id"] not in void:
            void.add(one["undoes"])
    told = []
    for one in kept:
        effect = None
        if one["id"] in void:
            effect = "undone"
        elif one["id"] in applied:
            effect = _told(one["action"], f"before the cut of batch {applied[one['id']]}")
        elif one["id"] in late:
            effect = _LATE.get(late[one["id"]]["reason"], "too late: batch {batch}").format(
                batch=late[one["id"]]["batch"]
            )
        elif one["action"] == "veto" and is_vetoed:
            effect = _told("veto", "before its group was judged")
        elif one["action"] not in ("note", "undo") and state in ("running", "waiting", "ready", "held"):
            effect = _told(one["action"], "before the cut")
        told.append({**one, "effect": effect, "void": one["id"] in void})
    return told


def _told(action: str, when: str) -> str:
    """`vetoed before the cut of batch 42: not trained`."""
    return f"{_DONE[action]} {when}: {_BEFORE[action]}" if action in _BEFORE else when


_LATE: Final = {
    "in_batch": "too late: in batch {batch}",
    "left_out": "too late: batch {batch} had left its group out",
    "not_emitted": "too late: it was left out when its group was judged",
}
"""By the outcome's reason."""

QUEUES: Final = (
    ("held", "Held for review", "state:held", "Groups whose recipe asks a person before they are trained"),
    ("fresh", "Not decided yet", "state:waiting,ready decided:no", "Newest first, before a batch has them"),
    ("suspicious", "Reward high and short", "reward>=0.9 steps<=1 decided:no", "A good reward for little work"),
    ("judges", "Judges disagree", "spread>=0.5 decided:no", "Sources whose rewards lie far apart"),
    ("drift", "Tokens drifted", "drift>0 decided:no", "Prompts that did not go on as the tokens before them said"),
    ("self", "Tagged hack", "tag:hack decided:no", "Tagged by a rule or a person, and judged by nobody"),
)
"""Name, title, filter, meaning."""
