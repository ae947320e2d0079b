"""Trajectories become a list that is narrowed, paged and followed: the statements of the screen Trajectories, and its rows.

Pure. A page is two steps: the keys of its rows, by the filter; then what else is shown, of those keys alone. So a page costs
the same however much the pool knows of each row.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from console import filters, looks, paging
from console.filters import Field, Term, Where

KEYS: Final = "(run_id, prompt_uid, trajectory_uid)"
WORDS: Final = "concat(trajectory_uid, ' ', prompt_uid, ' ', ifNull(task_id, ''))"
CURSOR: Final = (int, str)
"""Of a row: its time in milliseconds, its trajectory."""

_OF_OUTCOMES: Final = (
    "SELECT run_id, prompt_uid, assumeNotNull(trajectory_uid) FROM ${database}.outcomes FINAL "
    "WHERE trajectory_uid IS NOT NULL AND fact_id IS NULL AND {condition}"
)
_OF_STEPS: Final = "SELECT run_id, prompt_uid, trajectory_uid FROM ${database}.steps WHERE {condition}"
_IN_FORCE: Final = (
    "fact_id NOT IN (SELECT assumeNotNull(undoes) FROM ${database}.decisions WHERE undoes IS NOT NULL AND fact_id NOT IN "
    "(SELECT assumeNotNull(undoes) FROM ${database}.decisions WHERE action = 'undo' AND undoes IS NOT NULL))"
)
"""Not made void by an undo, or by one that is itself undone."""
_TAGGED: Final = (
    "SELECT t.run_id, t.prompt_uid, t.trajectory_uid FROM ${database}.trajectories AS t INNER JOIN "
    "(SELECT run_id, prompt_uid, trajectory_uid, value FROM ${database}.decisions FINAL WHERE action = 'tag' AND "
    f"{_IN_FORCE}) AS d ON t.run_id = d.run_id AND t.prompt_uid = d.prompt_uid "
    "WHERE (d.trajectory_uid IS NULL OR d.trajectory_uid = t.trajectory_uid) AND {condition}"
)
_DECIDED: Final = (
    "SELECT t.run_id, t.prompt_uid, t.trajectory_uid FROM ${database}.trajectories AS t INNER JOIN "
    "(SELECT run_id, prompt_uid, trajectory_uid, author FROM ${database}.decisions FINAL WHERE {which} AND "
    f"{_IN_FORCE}) AS d ON t.run_id = d.run_id AND t.prompt_uid = d.prompt_uid "
    "WHERE (d.trajectory_uid IS NULL OR d.trajectory_uid = t.trajectory_uid) AND {condition}"
)
_OF_SAMPLES: Final = "SELECT run_id, prompt_uid, trajectory_uid FROM ${database}.samples WHERE {condition}"
_IN_BATCHES: Final = "SELECT group_run_id, group_id FROM ${database}.cut_members FINAL WHERE taken AND {condition}"
_JUDGED: Final = _DECIDED.replace("{which}", "action IN ('veto', 'keep')").replace("{condition}", "true")
_MEMBERS: Final = (
    "SELECT group_run_id, group_id FROM ${database}.cut_members FINAL WHERE taken AND batch_id {what} "
    "(SELECT batch_id FROM ${database}.trained)"
)
_REWARD: Final = "if(empty(rewards), NULL, arraySum(rewards.value))"


def _fate(*outcomes: str) -> str:
    said = ", ".join(f"'{outcome}'" for outcome in outcomes)
    return f"{KEYS} IN ({_OF_OUTCOMES.replace('{condition}', f'outcome IN ({said})')})"


def _batched(*, trained: bool) -> str:
    return f"(run_id, group_id) IN ({_MEMBERS.replace('{what}', 'IN' if trained else 'NOT IN')})"


_ANY_BATCH: Final = (
    "(run_id, group_id) IN (SELECT group_run_id, group_id FROM ${database}.cut_members FINAL WHERE taken)"
)

STATES: Final[Mapping[str, str]] = {
    "running": "status = 'running'",
    "waiting": f"status != 'running' AND NOT {_fate('emitted', 'discarded', 'held')}",
    "ready": f"{_fate('emitted')} AND NOT {_ANY_BATCH}",
    "batched": f"{_fate('emitted')} AND {_batched(trained=False)}",
    "trained": f"{_fate('emitted')} AND {_batched(trained=True)}",
    "held": _fate("held"),
    "discarded": _fate("discarded"),
}

FIELDS: Final[Mapping[str, Field]] = {
    f.name: f
    for f in (
        Field("reward", "number", "sum of the rewards in force at the end; reward.SOURCE is one of them", _REWARD),
        Field(
            "reward.",
            "number",
            "reward of one source",
            "arrayFirstOrNull(x -> x.source = {part}, rewards).value",
        ),
        Field("state", "choice", "how far it came", "", choices=STATES),
        Field("reason", "text", "why a recipe took it or left it out", "reason", _OF_OUTCOMES),
        Field("recipe", "text", "a recipe that judged it", "ifNull(recipe, '')", _OF_OUTCOMES),
        Field("status", "text", "completed, failed, aborted, truncated or running", "status"),
        Field(
            "complete",
            "choice",
            "whether every announced call has its step",
            "",
            choices={"yes": "complete", "no": "NOT complete"},
        ),
        Field("steps", "number", "model calls", "steps"),
        Field("tokens", "number", "tokens of a step with its prompt", "prompt_len + response_len", _OF_STEPS),
        Field("policy", "number", "policy version of a step", "policy_version", _OF_STEPS),
        Field("model", "text", "model that answered", "model", _OF_STEPS),
        Field("engine", "text", "engine that answered", "engine", _OF_STEPS),
        Field("fault", "text", "what a capture lacks", "arrayJoin(capture_reasons)", _OF_STEPS),
        Field("tag", "text", "a tag that someone gave and nobody undid", "ifNull(d.value, '')", _TAGGED),
        Field("author", "text", "who decided on it", "d.author", _DECIDED.replace("{which}", "action != 'undo'")),
        Field(
            "decided",
            "choice",
            "whether a person vetoed or kept it",
            "",
            choices={"yes": f"{KEYS} IN ({_JUDGED})", "no": f"{KEYS} NOT IN ({_JUDGED})"},
        ),
        Field(
            "spread",
            "number",
            "largest less smallest of its sources' rewards",
            "if(length(rewards) < 2, NULL, arrayMax(rewards.value) - arrayMin(rewards.value))",
        ),
        Field(
            "drift",
            "number",
            "steps whose prompt's tokens did not go on as those before",
            "links['drift']",
            _OF_SAMPLES,
        ),
        Field(
            "batch",
            "text",
            "batch that has its group: batch:RECIPE/7",
            "concat(recipe, '/', toString(sequence))",
            _IN_BATCHES,
            keys="(run_id, group_id)",
        ),
        Field("run", "text", "training experiment", "run_id"),
        Field("channel", "text", "split inside the run", "ifNull(channel, '')"),
        Field("env", "text", "environment: `env` of the metadata", "JSONExtractString(metadata, 'env')"),
        Field("meta", "text", "any field of the metadata: meta.KIND:value", "JSONExtractString(metadata, {part})"),
        Field("task", "text", "item of the dataset", "ifNull(task_id, '')"),
        Field("group", "text", "group or prompt", "group_id"),
        Field("id", "text", "trajectory", "trajectory_uid"),
        Field("text", "text", "words of the last conversation: text:*sorry*", "messages"),
    )
}
"""What a filter may say."""

_ENDED: Final = """
SELECT run_id, prompt_uid, group_id, trajectory_uid, channel, task_id, status, complete, step_ids.size0 AS steps, rewards,
    metadata, {messages} AS messages, partition, offset, append_time
FROM ${database}.trajectories FINAL
"""
_RUNNING: Final = """
SELECT run_id, prompt_uid, prompt_uid AS group_id, trajectory_uid, any(steps.channel) AS channel,
    CAST(NULL, 'Nullable(String)') AS task_id, 'running' AS status, true AS complete, count() AS steps,
    CAST([], 'Array(Tuple(source String, value Float64, revision Int64, self_reported Bool))') AS rewards,
    '' AS metadata, '' AS messages, toUInt32(0) AS partition, toUInt64(0) AS offset, max(steps.append_time) AS append_time
FROM ${database}.steps AS steps
WHERE steps.append_time > now64(3) - INTERVAL 1 DAY AND (run_id, prompt_uid, trajectory_uid) NOT IN (
    SELECT run_id, prompt_uid, trajectory_uid FROM ${database}.trajectories
)
GROUP BY run_id, prompt_uid, trajectory_uid
"""
"""Trajectories of the last day that have steps and no end."""

_KEY: Final = "run_id, prompt_uid, group_id, trajectory_uid"
"""Of the table: a trajectory of a later round of its prompt has another group."""
_SHOWN: Final = (
    "run_id, prompt_uid, group_id, trajectory_uid, channel, task_id, status, complete, steps, rewards.source AS sources, "
    "rewards.value AS rewards_by_source, metadata, partition, offset, toUnixTimestamp64Milli(append_time) AS at_ms"
)


def question(text: str) -> tuple[tuple[Term, ...], Where]:
    """What a filter asks. Raises WrongFilter."""
    terms = filters.parse(text, FIELDS)
    return terms, filters.where(terms, FIELDS, KEYS, WORDS)


def source(terms: Sequence[Term]) -> str:
    """The SELECT that a filter narrows: ended trajectories, or those that run."""
    for term in terms:
        if not term.negated and term.name in ("state", "status") and "running" in term.values:
            return _RUNNING
    return _ended(terms)


def _ended(terms: Sequence[Term]) -> str:
    """The ended ones; their messages are read only where a term asks for them."""
    return _ENDED.replace("{messages}", "messages" if any(term.name == "text" for term in terms) else "''")


def page(text: str, after: str | None, limit: int) -> tuple[str, dict[str, Any]]:
    """The rows of a page behind a cursor, newest first, and one more if there are more. Raises WrongFilter, UserError."""
    terms, asked = question(text)
    behind = ""
    if after is not None:
        at_ms, uid = paging.decode(after, CURSOR)
        asked.parameters |= {"after_ms": at_ms, "after_uid": uid}
        behind = " AND (toUnixTimestamp64Milli(append_time), trajectory_uid) < ({after_ms:Int64}, {after_uid:String})"
    rows, chosen = source(terms), f"{asked.sql}{behind}"
    newest = f"ORDER BY append_time DESC, trajectory_uid DESC LIMIT {paging.limit(limit) + 1}"
    if not terms:  # what is shown is read of these rows alone; a filter reads most of it anyway
        chosen = f"({_KEY}) IN (SELECT {_KEY} FROM ({rows}) WHERE {chosen} {newest})"
    return f"SELECT {_SHOWN} FROM ({rows}) WHERE {chosen} {newest}", asked.parameters


def count(text: str) -> tuple[str, dict[str, Any]]:
    """How many rows a filter has."""
    terms, asked = question(text)
    return f"SELECT count() AS n FROM ({source(terms)}) WHERE {asked.sql}", asked.parameters


ENDS: Final = "SELECT partition, max(offset) AS last FROM ${database}.trajectories GROUP BY partition LIMIT 10000"
"""The newest row of each partition: where news begin."""


def news(text: str, ends: Mapping[int, int], now: Mapping[int, int]) -> tuple[str, dict[str, Any]]:
    """The rows behind the offsets `ends` up to those of `now`, by partition; of one that `ends` does not name, from its first.

    They come as the log has them, partition by partition, `looks.MOST` at most: `read_to` says how far they reach.
    """
    terms, asked = question(text)
    asked.parameters |= {
        "partitions": list(now),
        "last": list(now.values()),
        "first": [ends.get(p, -1) + 1 for p in now],
    }
    bounds = [
        f"transform(partition, {{partitions:Array(UInt32)}}, {{{b}:Array(UInt64)}}, toUInt64(0))"
        for b in ("first", "last")
    ]
    behind = f"has({{partitions:Array(UInt32)}}, partition) AND offset BETWEEN {bounds[0]} AND {bounds[1]}"
    source = f"{_ended(terms)} WHERE {behind}"
    return (
        f"SELECT {_SHOWN} FROM ({source}) WHERE {asked.sql} ORDER BY partition, offset LIMIT {looks.MOST}",
        asked.parameters,
    )


def read_to(rows: Sequence[Mapping[str, Any]], ends: Mapping[int, int], now: Mapping[int, int]) -> dict[int, int]:
    """How far a look has read: to `now`, or to its last row if there may be more behind it."""
    whole = int(rows[-1]["partition"]) if rows else 0
    return looks.read_to(rows, whole, ends, now)


# -------------------------------------------------------------------------------------------------------------- details

_PLACES: Final = (
    "(run_id, prompt_uid) IN {places:Array(Tuple(String, String))} AND trajectory_uid IN {uids:Array(String)}"
)
STEPS: Final = (
    "SELECT run_id, prompt_uid, trajectory_uid, min(policy_version) AS oldest, max(policy_version) AS newest, "
    "max(prompt_len + response_len) AS tokens, sum(response_len) AS sampled, any(model) AS model, "
    "countIf(NOT capture_ok) AS faulty, toUnixTimestamp64Milli(min(received)) AS began_ms, "
    "toUnixTimestamp64Milli(max(done)) AS done_ms "
    f"FROM ${{database}}.steps FINAL WHERE {_PLACES} GROUP BY run_id, prompt_uid, trajectory_uid"
)
FATES: Final = (
    "SELECT run_id, prompt_uid, group_id, trajectory_uid, recipe, outcome, reason FROM ${database}.outcomes FINAL "
    f"WHERE fact_id IS NULL AND {_PLACES}"
)
BATCHES: Final = (
    "SELECT group_run_id AS run_id, group_id, recipe, sequence, batch_id IN (SELECT batch_id FROM ${database}.trained) "
    "AS trained FROM ${database}.cut_members FINAL "
    "WHERE taken AND (group_run_id, group_id) IN {groups:Array(Tuple(String, String))}"
)
TAGS: Final = (
    "SELECT run_id, prompt_uid, trajectory_uid, value FROM ${database}.decisions FINAL "
    f"WHERE action = 'tag' AND (run_id, prompt_uid) IN {{places:Array(Tuple(String, String))}} AND {_IN_FORCE}"
)
DETAILS: Final = {"steps": STEPS, "fates": FATES, "batches": BATCHES, "tags": TAGS}
"""Asked of a page's keys, beside each other."""


def details(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The parameters of DETAILS for these rows."""
    kept = list(rows)
    return {
        "places": sorted({(row["run_id"], row["prompt_uid"]) for row in kept}),
        "uids": sorted({row["trajectory_uid"] for row in kept}),
        "groups": sorted({(row["run_id"], row["group_id"]) for row in kept}),
    }


def shape(rows: Iterable[Mapping[str, Any]], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rows as the page shows them. Unknown is None."""
    steps = {_key(row): row for row in found["steps"]}
    fates = _by(found["fates"], "run_id", "prompt_uid", "trajectory_uid")
    batches = _by(found["batches"], "run_id", "group_id")
    tags = _by(found["tags"], "run_id", "prompt_uid")
    return [
        _row(
            row,
            steps.get(_key(row), {}),
            fates.get(_key(row), []),
            batches.get((row["run_id"], row["group_id"]), []),
            sorted(
                {
                    tag["value"]
                    for tag in tags.get((row["run_id"], row["prompt_uid"]), ())
                    if tag["trajectory_uid"] in (None, row["trajectory_uid"])
                }
            ),
        )
        for row in rows
    ]


def _by(rows: Iterable[Mapping[str, Any]], *names: str) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Rows by their values of these names."""
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["run_id"], row["prompt_uid"], row["trajectory_uid"]


def _row(
    row: Mapping[str, Any],
    steps: Mapping[str, Any],
    fates: Sequence[Mapping[str, Any]],
    batches: Sequence[Mapping[str, Any]],
    tags: Sequence[str],
) -> dict[str, Any]:
    rewards = dict(zip(row["sources"], row["rewards_by_source"], strict=True))
    metadata = read_object(row["metadata"])
    began, done = steps.get("began_ms"), steps.get("done_ms")
    return {
        "id": row["trajectory_uid"],
        "run": row["run_id"],
        "prompt": row["prompt_uid"],
        "group": row["group_id"],
        "channel": row["channel"],
        "task": row["task_id"],
        "env": metadata.get("env"),
        "status": row["status"],
        "complete": bool(row["complete"]),
        "steps": int(row["steps"]),
        "reward": sum(rewards.values()) if rewards else None,
        "rewards": rewards,
        "tokens": steps.get("tokens"),
        "sampled": steps.get("sampled"),
        "policy": steps.get("newest"),
        "policy_oldest": steps.get("oldest"),
        "model": steps.get("model"),
        "faulty": steps.get("faulty", 0),
        "seconds": (done - began) / 1000 if began is not None and done is not None else None,
        "state": state_of(row["status"], fates, batches),
        "reasons": sorted({fate["reason"] for fate in fates if fate["outcome"] != "emitted"}),
        "recipes": sorted({fate["recipe"] for fate in fates if fate["recipe"]}),
        "batches": [
            {"recipe": b["recipe"], "sequence": int(b["sequence"]), "trained": bool(b["trained"])} for b in batches
        ],
        "tags": list(tags),
        "metadata": metadata,
        "at": row["at_ms"] / 1000,
        "cursor": paging.encode((int(row["at_ms"]), row["trajectory_uid"])),
    }


def state_of(status: str, fates: Sequence[Mapping[str, Any]], batches: Sequence[Mapping[str, Any]]) -> str:
    """One of STATES: how far a trajectory came, by the recipe that brought it farthest."""
    if status == "running":
        return "running"
    outcomes = {fate["outcome"] for fate in fates}
    if "emitted" in outcomes:
        if any(batch["trained"] for batch in batches):
            return "trained"
        return "batched" if batches else "ready"
    return "held" if "held" in outcomes else "discarded" if "discarded" in outcomes else "waiting"


def read_object(text: str) -> dict[str, Any]:
    """The JSON object of a column, empty if it has none."""
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
