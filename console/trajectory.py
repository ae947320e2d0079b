"""One trajectory becomes what people look at: its steps as a tree, its facts, and the tokens of a step with every signal.

Pure. A signal that nobody recorded is named with the reason, never drawn as zero.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from console import curating, timeline
from console.contexts import ADDED, MINE, STEPS
from console.trajectories import read_object, state_of

Row = Mapping[str, Any]

_BESIDE: Final = "(run_id, prompt_uid) IN {places:Array(Tuple(String, String))}"
_MINE_OR_GROUPS: Final = f"{_BESIDE} AND (trajectory_uid IS NULL OR trajectory_uid = {{uid:String}})"

ENDED: Final = (
    "SELECT run_id, prompt_uid, group_id, trajectory_uid, channel, task_id, status, complete, "
    "if(trajectory_uid = {uid:String}, metadata, '') AS metadata, append_time, "
    "if(empty(rewards), NULL, arraySum(rewards.value)) AS reward "
    f"FROM ${{database}}.trajectories FINAL WHERE {_BESIDE} "
    "ORDER BY trajectory_uid != {uid:String}, group_id, trajectory_uid LIMIT 1000"
)
"""The trajectory, then those beside it."""
CALLS: Final = f"SELECT step_id, model, append_time FROM ${{database}}.calls FINAL WHERE {MINE} LIMIT 10000"
REWARDS: Final = (
    "SELECT trajectory_uid, step_id, source, revision, value, components, self_reported, append_time "
    f"FROM ${{database}}.rewards FINAL WHERE {_MINE_OR_GROUPS} ORDER BY append_time LIMIT 5000"
)
OUTCOMES: Final = (
    "SELECT group_id, recipe, recipe_version, trajectory_uid, fact_id, batch, outcome, reason, append_time "
    f"FROM ${{database}}.outcomes FINAL WHERE {_MINE_OR_GROUPS} ORDER BY append_time LIMIT 1000"
)
DECISIONS: Final = (
    "SELECT fact_id, trajectory_uid, step_id, action, value, undoes, author, reason, append_time "
    f"FROM ${{database}}.decisions FINAL WHERE {_MINE_OR_GROUPS} ORDER BY append_time LIMIT 1000"
)
EVENTS: Final = (
    "SELECT kind, status, reason, metadata, append_time FROM ${database}.trajectory_events FINAL "
    f"WHERE {MINE} ORDER BY append_time LIMIT 100"
)
SAMPLED: Final = (
    "SELECT run_id, group_id, recipe, sample_id, trained_tokens "
    f"FROM ${{database}}.samples FINAL WHERE {MINE} LIMIT 10000"
)
TAKEN: Final = (
    "SELECT m.recipe AS recipe, m.run_id AS run_id, m.sequence AS sequence, m.batch_id AS batch_id, "
    "m.group_run_id AS group_run_id, m.group_id AS group_id, m.decisions AS decisions, m.sample_ids AS sample_ids, "
    "m.taken AS taken, t.policy_version AS policy_version "
    "FROM (SELECT * FROM ${database}.cut_members FINAL WHERE group_id IN "
    f"(SELECT group_id FROM ${{database}}.trajectories WHERE {MINE})) AS m "
    "LEFT JOIN (SELECT batch_id, policy_version FROM ${database}.trained FINAL) AS t ON m.batch_id = t.batch_id "
    "ORDER BY recipe, sequence LIMIT 1000"
)
"""The batches that have its group, or left it out."""
STATEMENTS: Final = {
    "steps": STEPS,
    "ended": ENDED,
    "calls": CALLS,
    "rewards": REWARDS,
    "outcomes": OUTCOMES,
    "decisions": DECISIONS,
    "events": EVENTS,
    "sampled": SAMPLED,
    "taken": TAKEN,
}
"""Asked beside each other for `/trajectories/{uid}.json`; the parameters are `uid` and `places`."""

SAMPLES: Final = (
    "SELECT sample_id, recipe, spans, token_ids, loss_mask, rollout_log_probs, version_spans, annotation_values, append_time "
    f"FROM ${{database}}.samples FINAL WHERE {MINE} AND has(spans.step_id, {{step:String}}) "
    "ORDER BY recipe, recipe_version, sample_index LIMIT 20"
)
STATS: Final = (
    "SELECT sample_id, name, argMax(values, sequence) AS values "
    f"FROM ${{database}}.token_stats FINAL WHERE {MINE} GROUP BY sample_id, name LIMIT 200"
)
ANNOTATIONS: Final = (
    "SELECT name, argMax(values, revision) AS values "
    f"FROM ${{database}}.annotations FINAL WHERE {MINE} AND step_id = {{step:String}} GROUP BY name LIMIT 100"
)
OF_STEP: Final = {"added": ADDED, "samples": SAMPLES, "stats": STATS, "annotations": ANNOTATIONS}
"""Asked beside each other for `/trajectories/{uid}/steps/{step_id}.json`; the parameters are `uid`, `places` and those of
`contexts.of_chain`."""
LAST: Final = "last"
"""In place of a step's id: the last one that the log has."""


def find_step(step_id: str, steps: Sequence[Row]) -> Row | None:
    """The step of an id, or the last one where LAST is asked for."""
    known = next((row for row in steps if row["step_id"] == step_id), None)
    return known or (steps[-1] if step_id == LAST and steps else None)


def shape(uid: str, found: Mapping[str, Sequence[Row]]) -> dict[str, Any] | None:
    """The trajectory as the page shows it; None: the pool does not know it."""
    mine = [row for row in found["ended"] if row["trajectory_uid"] == uid]
    if not (found["steps"] or mine or found["events"] or found["calls"]):
        return None
    ended = max(mine, key=lambda row: row["append_time"], default=None)
    status = ended["status"] if ended else "running"
    fates = [row for row in found["outcomes"] if row["trajectory_uid"] and row["fact_id"] is None]
    batches = _batches(found["taken"], found["sampled"])
    known = {row["step_id"] for row in found["steps"]}
    lost = [row for row in found["calls"] if row["step_id"] not in known]
    steps = tree([_step(index, row) for index, row in enumerate(found["steps"])])
    first = ended or (found["steps"][0] if found["steps"] else found["ended"][0] if found["ended"] else {})
    opened = next((row for row in found["events"] if row["kind"] == "open"), None)
    return {
        "id": uid,
        "run": first.get("run_id"),
        "prompt": first.get("prompt_uid"),
        "group": ended["group_id"] if ended else first.get("prompt_uid"),
        "channel": first.get("channel"),
        "task": ended["task_id"] if ended else None,
        "status": status,
        "complete": bool(ended["complete"]) if ended else None,
        "ended_at": _seconds(ended["append_time"]) if ended else None,
        "metadata": read_object(ended["metadata"] if ended else opened["metadata"] if opened else ""),
        "state": state_of(status, fates, batches),
        "waits_for": waits_for(status, lost, fates, batches),
        "steps": steps,
        "timeline": timeline.draw(steps),
        "lost": [{"id": row["step_id"], "model": row["model"], "at": _seconds(row["append_time"])} for row in lost],
        "rewards": _rewards(found["rewards"]),
        "outcomes": [_outcome(row) for row in found["outcomes"]],
        "decisions": curating.tell_effects(
            _decisions(found["decisions"]),
            found["outcomes"],
            {fact: int(row["sequence"]) for row in found["taken"] for fact in row["decisions"]},
            state_of(status, fates, batches),
        ),
        "batches": batches,
        "siblings": [
            {"id": row["trajectory_uid"], "group": row["group_id"], "status": row["status"], "reward": row["reward"]}
            for row in sorted(found["ended"], key=lambda row: (row["group_id"], row["trajectory_uid"]))
        ],
    }


def _batches(taken: Iterable[Row], sampled: Iterable[Row]) -> list[dict[str, Any]]:
    """The batches that have a sample of the trajectory, of those that have its group."""
    trained = {
        (row["run_id"], row["group_id"], row["recipe"], row["sample_id"]): int(row["trained_tokens"]) for row in sampled
    }
    found = []
    for row in taken:
        if not row["taken"]:
            continue
        group = row["group_run_id"], row["group_id"], row["recipe"]
        tokens = [trained[*group, sample] for sample in row["sample_ids"] if (*group, sample) in trained]
        if tokens:
            found.append(
                {
                    "recipe": row["recipe"],
                    "run": row["run_id"],
                    "sequence": int(row["sequence"]),
                    "batch_id": row["batch_id"],
                    "trained": row["policy_version"] is not None,
                    "policy_version": row["policy_version"],
                    "samples": len(tokens),
                    "trained_tokens": sum(tokens),
                }
            )
    return found


def waits_for(status: str, calls: Sequence[Row], fates: Sequence[Row], batches: Sequence[Row]) -> str | None:
    """What has to happen next, in words; None: nothing any more."""
    if status == "running":
        open_ = f"{len(calls)} calls without a step, and " if calls else ""
        return f"{open_}its end: POST /complete_trajectory says it"
    outcomes = {fate["outcome"] for fate in fates}
    if not fates:
        return "its group: a recipe judges it when the group is whole, or idle for long enough"
    if "held" in outcomes and "emitted" not in outcomes:
        return "a person: its group is held for review"
    if "emitted" in outcomes:
        if not batches:
            return "a batch: the trainer has not asked for its group yet"
        if not any(batch["trained"] for batch in batches):
            return "the trainer: its batch is handed out and not acknowledged"
    return None


def _step(index: int, row: Row) -> dict[str, Any]:
    times = {name: _seconds(row[name]) for name in ("received", "first_byte", "done")}
    return {
        "id": row["step_id"],
        "parent": row["parent_step_id"],
        "index": index,
        "status": row["status"],
        "role": row["role"],
        "choice": int(row["choice"]),
        "prompt_tokens": int(row["prompt_len"]),
        "response_tokens": int(row["response_len"]),
        "shared_tokens": int(row["prefix_len"]),
        "has_log_probs": bool(row["has_log_probs"]),
        "finish_reason": row["finish_reason"],
        "policy_version": row["policy_version"],
        "versions": [
            list(span) if not isinstance(span, dict) else list(span.values()) for span in row["version_spans"]
        ],
        "engine": row["engine"],
        "model": row["model"],
        "dialect": row["dialect"],
        "sampling": {
            n: row[n] for n in ("temperature", "top_p", "top_k", "max_tokens", "seed", "n") if row[n] is not None
        },
        "guided": bool(row["guided"]),
        "retry_of": row["retry_of"],
        "repeats": bool(row["repeats"]),
        "capture_ok": bool(row["capture_ok"]),
        "capture_reasons": list(row["capture_reasons"]),
        "pictures": int(row["pictures"]),
        **times,
    }


def tree(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Steps in the order of the log with where they stand: `lane` 0 is the first chain, each fork and each new root opens one.

    A step goes on its parent's lane if it is the parent's first child; else it begins a lane (`fork`, or `root` without a
    parent). A step whose parent is not in the pool is a root with `orphan`.
    """
    known = {step["id"] for step in steps}
    lanes: dict[str, int] = {}
    taken: set[str] = set()
    depth: dict[str, int] = {}
    count = 0
    placed = []
    for step in steps:
        parent = step["parent"] if step["parent"] in known else None
        if parent is not None and parent in lanes and parent not in taken:
            lane, begins = lanes[parent], None
            taken.add(parent)
        else:
            lane, begins = count, "root" if parent is None else "fork"
            count += 1
        lanes[step["id"]] = lane
        depth[step["id"]] = depth.get(parent, -1) + 1 if parent is not None else 0
        orphan = step["parent"] is not None and parent is None
        placed.append({**step, "lane": lane, "begins": begins, "orphan": orphan, "turn": depth[step["id"]]})
    return placed


def _rewards(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Every reward that was sent, the one in force of a source marked."""
    kept = list(rows)
    newest: dict[tuple[Any, ...], int] = {}
    for row in kept:
        about = row["trajectory_uid"], row["step_id"], row["source"]
        newest[about] = max(newest.get(about, row["revision"]), row["revision"])
    return [
        {
            "about": "step" if row["step_id"] else "trajectory" if row["trajectory_uid"] else "group",
            "step": row["step_id"],
            "source": row["source"],
            "revision": int(row["revision"]),
            "value": finite(row["value"]),
            "components": {name: finite(value) for name, value in dict(row["components"]).items()},
            "self_reported": bool(row["self_reported"]),
            "in_force": row["revision"] == newest[row["trajectory_uid"], row["step_id"], row["source"]]
            and row["value"] is not None,
            "at": _seconds(row["append_time"]),
        }
        for row in kept
    ]


def _outcome(row: Row) -> dict[str, Any]:
    return {
        "about": "fact" if row["fact_id"] else "trajectory" if row["trajectory_uid"] else "group",
        "group": row["group_id"],
        "recipe": row["recipe"],
        "recipe_version": row["recipe_version"],
        "outcome": row["outcome"],
        "reason": row["reason"],
        "batch": row["batch"],
        "at": _seconds(row["append_time"]),
    }


def _decisions(rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [
        {
            "id": row["fact_id"],
            "about": "step" if row["step_id"] else "trajectory" if row["trajectory_uid"] else "group",
            "step": row["step_id"],
            "action": row["action"],
            "value": row["value"],
            "undoes": row["undoes"],
            "author": row["author"],
            "reason": row["reason"],
            "at": _seconds(row["append_time"]),
        }
        for row in rows
    ]


def _seconds(when: Any) -> float | None:
    return None if when is None else when.timestamp()


def finite(value: Any) -> float | None:
    """A number that JSON can say, to six digits; None for what is none."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
