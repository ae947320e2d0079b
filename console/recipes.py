"""Recipes become a list with what each has, a form, and the faults of what somebody wrote. Pure."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from claw_r1.algorithms import PRESETS
from claw_r1.dry_run import list_untold
from claw_r1.recipes import Recipe, list_unhonoured
from claw_r1.rules import FIELDS, OPS
from console import queries

Row = Mapping[str, Any]
LISTED: Final = 500
"""Trajectories or groups shown behind one number of a dry run."""

ALL: Final = """
SELECT name, argMax(run_id, recipe_version) AS run_id, max(recipe_version) AS version, argMax(recipe, recipe_version) AS recipe,
    toUnixTimestamp64Milli(argMax(append_time, recipe_version)) / 1000 AS at
FROM ${database}.recipes GROUP BY name ORDER BY name LIMIT 200
"""
ONE: Final = """
SELECT argMax(recipe, recipe_version) AS recipe FROM ${database}.recipes WHERE name = {name:String} GROUP BY name
"""
BATCHES: Final = """
SELECT recipe, count() AS batches, max(sequence) AS last, toUnixTimestamp64Milli(max(append_time)) / 1000 AS at
FROM ${database}.cuts FINAL GROUP BY recipe LIMIT 1000
"""
FATES: Final = """
SELECT recipe, about, outcome, reason, count() AS n FROM (
    SELECT recipe, outcome, reason,
        multiIf(fact_id IS NOT NULL, 'fact', trajectory_uid IS NOT NULL, 'trajectory', 'group') AS about
    FROM ${database}.outcomes FINAL WHERE recipe IS NOT NULL
) WHERE about != 'fact' AND outcome != 'closed' GROUP BY recipe, about, outcome, reason ORDER BY n DESC LIMIT 2000
"""
STATEMENTS: Final = {
    "recipes": ALL,
    "batches": BATCHES,
    "fates": FATES,
    "ready": queries.READY,
    "oldest": queries.OLDEST,
}


class Draft(BaseModel):
    """What somebody wrote in the form."""

    model_config = ConfigDict(extra="forbid")
    fields: dict[str, Any]


class Listed(Draft):
    """One number of a dry run, whose trajectories or groups are wanted."""

    about: str = Field(max_length=20)
    outcome: str = Field(max_length=40)
    reason: str = Field(max_length=200)


def shape(found: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """The recipes, those in force first, with their backlog: groups that are ready and in no batch."""
    batches = {row["recipe"]: row for row in found["batches"]}
    ready = {row["recipe"]: int(row["ready"]) - int(row["cut"]) for row in found["ready"]}
    oldest = {row["recipe"]: row["since"] for row in found["oldest"]}
    lines = []
    for row in found["recipes"]:
        name = row["name"]
        recipe = json.loads(row["recipe"]) if row["recipe"] else None
        batch = (recipe or {}).get("batch", {})
        groups = None if batch.get("tokens") else batch.get("groups")  # by tokens, its size in groups is not known
        waiting = max(0, ready.get(name, 0))
        lines.append(
            {
                "name": name,
                "run": row["run_id"],
                "version": int(row["version"]),
                "in_force": recipe is not None,
                "recipe": recipe,
                "at": row["at"],
                "ready": waiting,
                "batches_ready": waiting // groups if groups else None,
                "oldest_ready": oldest.get(name) if waiting else None,
                "batches": int(batches[name]["batches"]) if name in batches else 0,
                "last_batch": int(batches[name]["last"]) if name in batches else None,
                "last_at": batches[name]["at"] if name in batches else None,
                "fates": [
                    {"about": f["about"], "outcome": f["outcome"], "reason": f["reason"], "count": int(f["n"])}
                    for f in found["fates"]
                    if f["recipe"] == name
                ][:30],
            }
        )
    return sorted(lines, key=lambda line: (not line["in_force"], line["name"]))


def shape_open(counted: Row, listed: Sequence[Row], now: float) -> dict[str, Any]:
    """Groups that the recipe will judge and has not: numbers, and the first of them, the oldest first; `now` in seconds."""
    sources, numbers = counted["short"]
    return {
        "groups": int(counted["groups"]),
        "unfinished": int(counted["unfinished"]),
        "held": int(counted["held"]),
        "short_of": [{"name": s, "count": int(n)} for s, n in sorted(zip(sources, numbers, strict=True))],
        "oldest": None if counted["began"] is None else max(0.0, now - counted["began"]),
        "list": [
            {
                "group": row["group_id"],
                "unfinished": bool(row["unfinished"]),
                "held": bool(row["held"]),
                "short_of": list(row["lacks"]),
            }
            for row in listed
        ],
        "most": LISTED,
    }


def shape_next(told: Mapping[str, Any]) -> dict[str, Any]:
    """The next batch of a recipe as `claw batches next` tells it: members and what is left out by reason, with their tokens."""
    reasons = sorted({group["reason"] for group in told["excluded"]})
    left_out = {reason: [g for g in told["excluded"] if g["reason"] == reason] for reason in reasons}
    waiting = told["waiting"]
    return {
        "sequence": told["sequence"],
        "version": told["recipe_version"],
        "is_full": told["is_full"],
        "policy": told["policy_version"],
        "holder": told["holder"],
        "untrained": told["untrained"],
        "ready": waiting["ready"],
        "needed": waiting["needed"],
        "needed_tokens": waiting["needed_tokens"],
        "tokens": told["tokens"],
        "members": _listed(told["members"]),
        "left_out": [{"reason": reason, **_listed(groups)} for reason, groups in left_out.items()],
        "most": LISTED,
        "waits_for": told["why"],
    }


def _listed(groups: Sequence[Row]) -> dict[str, Any]:
    return {
        "count": len(groups),
        "tokens": sum(group["tokens"] for group in groups),
        "trained_tokens": sum(group["trained_tokens"] for group in groups),
        "list": [
            {
                "run": group["run_id"],
                "group": group["group_id"],
                "tokens": group["tokens"],
                "reward": group["reward_mean"],
                "staleness": group["staleness"],
            }
            for group in groups[:LISTED]
        ],
    }


def form() -> dict[str, Any]:
    """What the form is made of: the schema, the presets, the words of filters."""
    return {
        "schema": Recipe.model_json_schema(),
        "presets": [
            {"name": p.name, "paper": p.paper, "url": p.url, "does": p.does, "shapes": p.shapes, "defaults": p.defaults}
            for p in PRESETS.values()
        ],
        "conditions": [
            {
                "name": f.name,
                "level": f.level,
                "kind": f.kind,
                "meaning": f.doc,
                "in_pool": f.in_pool,
                "ops": OPS[f.kind],
            }
            for f in FIELDS
        ],
    }


def check(fields: Mapping[str, Any]) -> tuple[Recipe | None, list[dict[str, str]]]:
    """The recipe that these fields say, and what is wrong with them: the field's path and a sentence."""
    try:
        recipe = Recipe.model_validate(fields)
    except ValidationError as error:
        return None, [
            {
                "path": ".".join(str(part) for part in fault["loc"] if part != "[key]"),
                "message": fault["msg"].removeprefix("Value error, "),
            }
            for fault in error.errors()
        ]
    faults = [{"path": s.split(":")[0], "message": s.partition(": ")[2]} for s in list_unhonoured(recipe)]
    return recipe, faults


def describe(recipe: Recipe | None, faults: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The answer to a check: the whole recipe with its preset, and what a dry run cannot tell."""
    return {
        "recipe": recipe.model_dump(mode="json") if recipe is not None else None,
        "faults": list(faults),
        "untold": list_untold(recipe) if recipe is not None else [],
    }
