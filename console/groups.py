"""Groups become a list that is narrowed and paged, and one group its rollouts side by side: statements and shaping.

Pure. A row of the list is a group's fate for a recipe. A group's deviation is the population's, over its rewarded members; one
that has none of it teaches nothing, and says so. What all rollouts begin with is there once.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from console import filters, looks, paging
from console.filters import Field, Where
from console.trajectories import BATCHES, read_object
from console.trajectories import STEPS as STEPS_OF

Row = Mapping[str, Any]

KEYS: Final = "(run_id, group_id)"
WORDS: Final = "group_id"
CURSOR: Final = (int, str)
"""Of a row: its time in milliseconds, its outcome's id."""
MEMBERS: Final = 64
"""Rollouts of a group that are shown beside each other."""
LONGEST: Final = 1_000_000
"""Characters of a conversation that is shown beside others."""

_REWARD: Final = "if(empty(rewards), NULL, arraySum(rewards.value))"
_OF_MEMBERS: Final = (
    "SELECT run_id, group_id FROM ${database}.trajectories FINAL GROUP BY run_id, group_id HAVING {condition}"
)
_OF_TRAJECTORIES: Final = "SELECT run_id, group_id FROM ${database}.trajectories FINAL WHERE {condition}"
_DEVIATION: Final = f"stddevPop({_REWARD})"
_FLAT: Final = (
    f"(run_id, group_id) IN ({_OF_MEMBERS.replace('{condition}', f'count({_REWARD}) > 1 AND {_DEVIATION} = 0')})"
)

FIELDS: Final[Mapping[str, Field]] = {
    f.name: f
    for f in (
        Field("reward", "number", "mean of its rewarded rollouts", f"avg({_REWARD})", _OF_MEMBERS),
        Field("deviation", "number", "of its rewards, of the population", _DEVIATION, _OF_MEMBERS),
        Field("size", "number", "rollouts that ended", "count()", _OF_MEMBERS),
        Field(
            "flat",
            "choice",
            "whether all its rewards are alike",
            "",
            choices={"yes": _FLAT, "no": f"NOT {_FLAT}"},
        ),
        Field("outcome", "text", "emitted, discarded or held", "outcome"),
        Field("reason", "text", "why", "reason"),
        Field("recipe", "text", "the recipe that judged it", "ifNull(recipe, '')"),
        Field("run", "text", "training experiment", "run_id"),
        Field("task", "text", "item of the dataset", "ifNull(task_id, '')", _OF_TRAJECTORIES),
        Field("channel", "text", "split inside the run", "ifNull(channel, '')", _OF_TRAJECTORIES),
        Field("trajectory", "text", "a rollout of it", "trajectory_uid", _OF_TRAJECTORIES),
        Field("group", "text", "its id", "group_id"),
    )
}
"""What a filter may say."""

SOURCE: Final = (
    "SELECT outcome_id, run_id, prompt_uid, group_id, recipe, recipe_version, outcome, reason, "
    "topic, partition, offset, toUnixTimestamp64Milli(append_time) AS at_ms FROM ${database}.outcomes FINAL "
    "WHERE trajectory_uid IS NULL AND fact_id IS NULL AND outcome != 'closed'"
)


def question(text: str) -> Where:
    """What a filter asks. Raises WrongFilter."""
    return filters.where(filters.parse(text, FIELDS), FIELDS, KEYS, WORDS)


def page(text: str, after: str | None, limit: int) -> tuple[str, dict[str, Any]]:
    """The rows of a page behind a cursor, newest first, and one more if there are more. Raises WrongFilter, UserError."""
    asked = question(text)
    behind = ""
    if after is not None:
        at_ms, outcome = paging.decode(after, CURSOR)
        asked.parameters |= {"after_ms": at_ms, "after_id": outcome}
        behind = " AND (at_ms, outcome_id) < ({after_ms:Int64}, {after_id:String})"
    return (
        f"SELECT * FROM ({SOURCE}) WHERE {asked.sql}{behind} "
        f"ORDER BY at_ms DESC, outcome_id DESC LIMIT {paging.limit(limit) + 1}"
    ), asked.parameters


ENDS: Final = (
    "SELECT topic, partition, max(offset) AS last FROM ${database}.outcomes GROUP BY topic, partition LIMIT 10000"
)
"""The newest row of each partition of each topic, since trainers say what became of groups too: where news begin."""
Place = tuple[str, int]
"""Topic, partition."""


def news(text: str, ends: Mapping[Place, int], now: Mapping[Place, int]) -> tuple[str, dict[str, Any]]:
    """The rows behind the offsets `ends` up to those of `now`; of a place that `ends` does not name, from its first.

    They come place by place, `looks.MOST` at most: `looks.read_to` says how far they reach.
    """
    asked = question(text)
    behind = []
    for i, topic in enumerate(sorted({topic for topic, _ in now})):
        places = [place for place in now if place[0] == topic]
        asked.parameters |= {
            f"topic{i}": topic,
            f"partitions{i}": [partition for _, partition in places],
            f"first{i}": [ends.get(place, -1) + 1 for place in places],
            f"last{i}": [now[place] for place in places],
        }
        first, last = (
            f"transform(partition, {{partitions{i}:Array(UInt32)}}, {{{bound}{i}:Array(UInt64)}}, toUInt64(0))"
            for bound in ("first", "last")
        )
        known = f"topic = {{topic{i}:String}} AND has({{partitions{i}:Array(UInt32)}}, partition)"
        behind.append(f"({known} AND offset BETWEEN {first} AND {last})")
    return (
        f"SELECT * FROM ({SOURCE} AND ({' OR '.join(behind) or 'false'})) WHERE {asked.sql} "
        f"ORDER BY topic, partition, offset LIMIT {looks.MOST}",
        asked.parameters,
    )


def place_of(row: Row) -> Place:
    return row["topic"], int(row["partition"])


def neighbours(text: str, run: str, group: str) -> tuple[str, dict[str, Any]]:
    """The group before and the one behind a group, in a filter's list: rows with `way`."""
    asked = question(text)
    here = "run_id = {run:String} AND group_id = {group:String}"
    mine = f"SELECT {{pick}}((at_ms, outcome_id)) FROM ({SOURCE}) WHERE {here}"
    parts = []
    for way, pick, sign, order in (("next", "min", "<", "DESC"), ("previous", "max", ">", "ASC")):
        parts.append(
            f"(SELECT '{way}' AS way, run_id, group_id FROM ({SOURCE}) WHERE {asked.sql} "
            f"AND (at_ms, outcome_id) {sign} ({mine.replace('{pick}', pick)}) "
            f"ORDER BY at_ms {order}, outcome_id {order} LIMIT 1)"
        )
    return " UNION ALL ".join(parts), asked.parameters | {"run": run, "group": group}


REWARDS: Final = (
    "SELECT run_id, group_id, any(task_id) AS task_id, any(channel) AS channel, count() AS size, "
    f"groupArray({MEMBERS})(trajectory_uid) AS uids, groupArray({MEMBERS})(ifNull({_REWARD}, nan)) AS rewards_of "
    "FROM (SELECT * FROM ${database}.trajectories FINAL WHERE (run_id, prompt_uid) IN {places:Array(Tuple(String, String))} "
    "AND (run_id, group_id) IN {groups:Array(Tuple(String, String))} ORDER BY trajectory_uid) GROUP BY run_id, group_id"
)
DETAILS: Final = {"rewards": REWARDS, "batches": BATCHES}
"""Asked of a page's keys, beside each other."""


def details(rows: Sequence[Row]) -> dict[str, Any]:
    """The parameters of DETAILS for these rows."""
    return {
        "places": sorted({(row["run_id"], row["prompt_uid"]) for row in rows}),
        "groups": sorted({(row["run_id"], row["group_id"]) for row in rows}),
    }


def shape_list(rows: Sequence[Row], found: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """Rows of the list as the page shows them. Unknown is None."""
    known = {(row["run_id"], row["group_id"]): row for row in found["rewards"]}
    shaped = []
    for row in rows:
        key = row["run_id"], row["group_id"]
        members = known.get(key, {"uids": [], "rewards_of": [], "size": 0, "task_id": None, "channel": None})
        rewards = [None if reward != reward else float(reward) for reward in members["rewards_of"]]
        shaped.append(
            {
                "id": row["outcome_id"],
                "run": row["run_id"],
                "group": row["group_id"],
                "recipe": row["recipe"],
                "recipe_version": row["recipe_version"],
                "outcome": row["outcome"],
                "reason": row["reason"],
                "task": members["task_id"],
                "channel": members["channel"],
                "size": int(members["size"]),
                "rewards": [{"id": u, "reward": r} for u, r in zip(members["uids"], rewards, strict=True)],
                **spread(rewards),
                "batches": _batches(found["batches"], key),
                "at": row["at_ms"] / 1000,
                "cursor": paging.encode((int(row["at_ms"]), row["outcome_id"])),
            }
        )
    return shaped


def spread(rewards: Sequence[float | None]) -> dict[str, Any]:
    """`mean` and `deviation` (of the population) over known rewards, and whether several of them are all alike (`flat`)."""
    known = [reward for reward in rewards if reward is not None]
    if not known:
        return {"mean": None, "deviation": None, "flat": False}
    mean = sum(known) / len(known)
    deviation = (sum((reward - mean) ** 2 for reward in known) / len(known)) ** 0.5
    flat = len(known) > 1 and min(known) == max(known)
    return {"mean": mean, "deviation": 0.0 if flat else deviation, "flat": flat}


def _batches(rows: Sequence[Row], key: tuple[str, str]) -> list[dict[str, Any]]:
    return [
        {"recipe": row["recipe"], "sequence": int(row["sequence"]), "trained": bool(row["trained"])}
        for row in rows
        if (row["run_id"], row["group_id"]) == key
    ]


# ------------------------------------------------------------------------------------------------------------ one group


def place(run: str, group: str) -> dict[str, Any]:
    """The parameters of ONE: a group's prompt is its id, without #n of a later round."""
    return {"run": run, "group": group, "prompts": sorted({group, group.rpartition("#")[0] or group})}


_MINE: Final = "run_id = {run:String} AND prompt_uid IN {prompts:Array(String)} AND group_id = {group:String}"
ONE: Final = {
    "members": (
        "SELECT run_id, prompt_uid, group_id, trajectory_uid, channel, task_id, status, complete, length(step_ids) AS steps, "
        "if(empty(step_ids), NULL, step_ids[-1]) AS last_step, "
        f"{_REWARD} AS reward, rewards.source AS sources, rewards.value AS rewards_by_source, metadata, "
        f"if(lengthUTF8(messages) > {LONGEST}, '', messages) AS conversation, lengthUTF8(messages) AS characters "
        f"FROM ${{database}}.trajectories FINAL WHERE {_MINE} ORDER BY trajectory_uid LIMIT {MEMBERS + 1}"
    ),
    "outcomes": (
        "SELECT trajectory_uid, recipe, recipe_version, outcome, reason, append_time FROM ${database}.outcomes FINAL "
        f"WHERE {_MINE} AND fact_id IS NULL AND outcome != 'closed' ORDER BY append_time LIMIT 1000"
    ),
    "ready": (
        "SELECT recipe, recipe_version, tokens, trained_tokens, step_tokens, links, min_version, max_version "
        f"FROM ${{database}}.groups FINAL WHERE {_MINE} ORDER BY recipe, recipe_version LIMIT 100"
    ),
    "steps": STEPS_OF.replace(
        "(run_id, prompt_uid) IN {places:Array(Tuple(String, String))} AND trajectory_uid IN {uids:Array(String)}",
        "run_id = {run:String} AND prompt_uid IN {prompts:Array(String)}",
    ),
    "batches": BATCHES.replace(
        "(group_run_id, group_id) IN {groups:Array(Tuple(String, String))}",
        "group_run_id = {run:String} AND group_id = {group:String}",
    ),
}
"""Asked beside each other for `/groups/{run}/{group}.json`; the parameters are those of `place`."""


def shape(run: str, group: str, found: Mapping[str, Sequence[Row]], beside: Sequence[Row]) -> dict[str, Any] | None:
    """The group as the page shows it; None: the pool does not know it."""
    members = found["members"][:MEMBERS]
    if not members and not found["outcomes"]:
        return None
    talks = [_talk(row["conversation"]) for row in members]
    shared = _common([talk for talk in talks if talk is not None])
    steps = {row["trajectory_uid"]: row for row in found["steps"]}
    outcomes = [_outcome(row) for row in found["outcomes"]]
    first = members[0] if members else {}
    return {
        "run": run,
        "group": group,
        "task": first.get("task_id"),
        "channel": first.get("channel"),
        **spread([row["reward"] for row in members]),
        "shared": next((talk for talk in talks if talk is not None), [])[:shared],
        "members": [
            _member(row, steps.get(row["trajectory_uid"], {}), talk, shared, outcomes)
            for row, talk in zip(members, talks, strict=True)
        ],
        "more": len(found["members"]) > MEMBERS,
        "outcomes": [outcome for outcome in outcomes if outcome["trajectory"] is None],
        "ready": [{**row, "links": {k: int(v) for k, v in dict(row["links"]).items()}} for row in found["ready"]],
        "batches": _batches(found["batches"], (run, group)),
        "previous": next((_path(row) for row in beside if row["way"] == "previous"), None),
        "next": next((_path(row) for row in beside if row["way"] == "next"), None),
    }


def _path(row: Row) -> dict[str, str]:
    return {"run": row["run_id"], "group": row["group_id"]}


def _outcome(row: Row) -> dict[str, Any]:
    return {
        "trajectory": row["trajectory_uid"],
        "recipe": row["recipe"],
        "recipe_version": row["recipe_version"],
        "outcome": row["outcome"],
        "reason": row["reason"],
        "at": row["append_time"].timestamp(),
    }


def _member(
    row: Row, steps: Row, talk: list[Any] | None, shared: int, outcomes: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "id": row["trajectory_uid"],
        "status": row["status"],
        "complete": bool(row["complete"]),
        "steps": int(row["steps"]),
        "last_step": row["last_step"],
        "reward": row["reward"],
        "rewards": dict(zip(row["sources"], row["rewards_by_source"], strict=True)),
        "metadata": read_object(row["metadata"]),
        "tokens": steps.get("tokens"),
        "sampled": steps.get("sampled"),
        "policy": steps.get("newest"),
        "outcomes": [outcome for outcome in outcomes if outcome["trajectory"] == row["trajectory_uid"]],
        "messages": None if talk is None else talk[shared:],
        "characters": int(row["characters"]),
    }


def _talk(text: str) -> list[dict[str, Any]] | None:
    """A conversation; None if it is not known, or too long to stand beside others."""
    try:
        found = json.loads(text) if text else None
    except ValueError:
        return None
    if not isinstance(found, list):
        return None
    return [one if isinstance(one, dict) else {"role": "unknown", "content": one} for one in found]


def _common(talks: Sequence[list[dict[str, Any]]]) -> int:
    """Messages that all begin with."""
    count = 0
    for row in zip(*talks, strict=False):
        if any(message != row[0] for message in row):
            break
        count += 1
    return count if len(talks) > 1 else 0
