"""`claw trajectories` and `claw show`: the rollouts that ended last, or one from its first call to its batch."""

import asyncio
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
import typer

from claw_r1.cli.address import clickhouse_address, database_name
from claw_r1.cli.options import AsJson, ClickHouseUrl, Database
from claw_r1.clickhouse import UNKNOWN_DATABASE, UNKNOWN_TABLE, ClickHouse, QueryRefused
from claw_r1.errors import UserError
from claw_r1.rewards.rollout import text_of

Row = dict[str, Any]

Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Longest wait, seconds.")]

NEWEST: Final = """
WITH newest AS (
    SELECT run_id, prompt_uid, group_id, trajectory_uid, channel, task_id, status, complete, length(step_ids) AS steps,
        rewards, append_time AS ended
    FROM trajectories FINAL
    WHERE ({run:String} = '' OR run_id = {run:String}) AND ({task:String} = '' OR task_id = {task:String})
        AND ({status:String} = '' OR status = {status:String})
    ORDER BY append_time DESC, trajectory_uid
    LIMIT {limit:UInt32}
)
SELECT n.*, f.fates AS fates
FROM newest AS n
LEFT JOIN (
    SELECT run_id, prompt_uid, assumeNotNull(trajectory_uid) AS trajectory_uid,
        groupUniqArray((assumeNotNull(recipe), outcome, reason)) AS fates
    FROM outcomes FINAL
    WHERE (run_id, prompt_uid) IN (SELECT run_id, prompt_uid FROM newest)
        AND recipe IS NOT NULL AND trajectory_uid IS NOT NULL AND fact_id IS NULL
    GROUP BY run_id, prompt_uid, trajectory_uid
) AS f ON n.run_id = f.run_id AND n.prompt_uid = f.prompt_uid AND n.trajectory_uid = f.trajectory_uid
ORDER BY ended DESC, trajectory_uid
"""
_PLACES: Final = """
SELECT DISTINCT run_id, prompt_uid FROM trajectory_lookup
WHERE trajectory_uid = {uid:String} AND ({run:String} = '' OR run_id = {run:String}) ORDER BY run_id, prompt_uid
"""
_MINE: Final = "run_id = {run:String} AND prompt_uid = {prompt:String}"
_ONE: Final = f"{_MINE} AND trajectory_uid = {{uid:String}}"
_PARTS: Final[Mapping[str, str]] = {
    "ended": f"SELECT group_id, channel, task_id, status, complete, metadata, at FROM trajectories FINAL WHERE {_ONE}",
    "steps": f"""
        SELECT s.step_id AS step_id, s.status AS status, s.parent_step_id AS parent_step_id, s.prompt_len AS prompt_len,
            s.response_len AS response_len, s.finish_reason AS finish_reason, s.policy_version AS policy_version,
            s.version_spans AS version_spans, s.role AS role, s.engine AS engine, s.model AS model, s.dialect AS dialect,
            s.capture_reasons AS capture_reasons, s.retry_of AS retry_of, s.repeats AS repeats, s.received AS received,
            s.done AS done, t.new_messages AS new_messages, t.reply AS reply, t.new_prompt_ids AS new_prompt_ids,
            t.response_ids AS response_ids, t.rollout_log_probs AS rollout_log_probs, s.prefix_len AS prefix_len
        FROM (SELECT * FROM steps FINAL WHERE {_ONE}) AS s
        INNER JOIN (SELECT * FROM step_tokens FINAL WHERE {_ONE}) AS t ON s.step_id = t.step_id
        ORDER BY s.partition, s.offset""",
    "rewards": f"""
        SELECT step_id, source, revision, value, components, self_reported FROM effective_rewards
        WHERE {_ONE} ORDER BY step_id, source""",
    "decisions": f"""
        SELECT d.fact_id AS fact_id, action, value, step_id, undoes, author, reason, append_time,
            ifNull(l.late, []) AS late
        FROM (
            SELECT * FROM decisions FINAL
            WHERE {_MINE} AND (trajectory_uid = {{uid:String}} OR trajectory_uid IS NULL)
        ) AS d
        LEFT JOIN (
            SELECT fact_id, groupUniqArray((assumeNotNull(recipe), assumeNotNull(batch))) AS late FROM outcomes FINAL
            WHERE {_MINE} AND outcome = 'late' AND fact_id IS NOT NULL AND recipe IS NOT NULL AND batch IS NOT NULL
            GROUP BY fact_id
        ) AS l ON d.fact_id = l.fact_id
        ORDER BY append_time, fact_id""",
    "outcomes": f"""
        SELECT recipe, recipe_version, group_id, outcome, reason, append_time FROM outcomes FINAL
        WHERE {_ONE} AND fact_id IS NULL ORDER BY recipe, append_time""",
    "batches": """
        SELECT recipe, sequence, batch_id, trained_policy_version, group_id, groupUniqArray(step_id) AS step_ids
        FROM trajectory_batches(trajectory_uid = {uid:String}) WHERE group_run_id = {run:String}
        GROUP BY recipe, sequence, batch_id, trained_policy_version, group_id ORDER BY recipe, sequence""",
}
TOKENS: Final = ("new_prompt_ids", "response_ids", "rollout_log_probs", "prefix_len")


def trajectories(
    run: Annotated[str, typer.Option("--run", help="Only of this run.")] = "",
    task: Annotated[str, typer.Option("--task", help="Only of this task_id.")] = "",
    status: Annotated[str, typer.Option("--status", help="Only completed, failed, aborted or truncated ones.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many at the most.")] = 20,
    clickhouse: ClickHouseUrl = None,
    database: Database = None,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """List the trajectories that ended last, with rewards and what became of them under each recipe."""
    asked = {"run": run, "task": task, "status": status, "limit": limit}
    found = asyncio.run(_ask(clickhouse, database, timeout, NEWEST, asked))
    if as_json:
        print(to_json(found))
        return
    for row in found:
        rewards = " ".join(f"{reward['source']}={reward['value']:g}" for reward in row["rewards"]) or "no reward"
        whole = row["status"] if row["complete"] else f"{row['status']} (incomplete)"
        print(
            f"{clock(row['ended'])}  {row['trajectory_uid']}  {whole}  {row['steps']} steps  {rewards}  {_fates(row)}"
        )
    if not found:
        print("no trajectory that fits has ended: `claw tail` shows what comes in", file=sys.stderr)


def show(
    trajectory_uid: Annotated[str, typer.Argument(help="Trajectory.")],
    run: Annotated[str, typer.Option("--run", help="Its run, where several have a trajectory of this name.")] = "",
    tokens: Annotated[bool, typer.Option("--tokens", help="Token ids and log-probs too.")] = False,
    clickhouse: ClickHouseUrl = None,
    database: Database = None,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Show one trajectory: its calls, rewards, decisions, what became of it, and the batches that trained it."""
    story = asyncio.run(_tell(clickhouse, database, timeout, trajectory_uid, run))
    for step in story["steps"]:
        for name in () if tokens else TOKENS:
            del step[name]
    if as_json:
        print(to_json(story))
        return
    print("\n".join(_lines(story)))


async def _ask(
    clickhouse: str | None, database: str | None, timeout: float, question: str, asked: Mapping[str, Any]
) -> list[Row]:
    async with await ClickHouse.connect(
        clickhouse_address(clickhouse), database_name(database), timeout=timeout
    ) as client:
        return await ask_rows(client, question, asked)


async def ask_rows(client: ClickHouse, question: str, asked: Mapping[str, Any]) -> list[Row]:
    try:
        return (await client.query(question, asked, settings={"join_use_nulls": 1})).dicts()
    except QueryRefused as error:
        if error.code in (UNKNOWN_TABLE, UNKNOWN_DATABASE):
            raise UserError(f"{error}\nThe pool is not there yet: `claw migrate` makes it.") from error
        raise


async def _tell(clickhouse: str | None, database: str | None, timeout: float, uid: str, run: str) -> Row:
    async with await ClickHouse.connect(
        clickhouse_address(clickhouse), database_name(database), timeout=timeout
    ) as client:
        places = await ask_rows(client, _PLACES, {"uid": uid, "run": run})
        if not places:
            raise UserError(f"the pool has no trajectory {uid}: `claw trajectories` lists those that ended last")
        if len({place["run_id"] for place in places}) > 1:
            runs = ", ".join(place["run_id"] for place in places)
            raise UserError(f"several runs have a trajectory {uid}: say which with --run ({runs})")
        place = places[0]
        asked = {"uid": uid, "run": place["run_id"], "prompt": place["prompt_uid"]}
        parts = {name: await ask_rows(client, question, asked) for name, question in _PARTS.items()}
    ended = parts.pop("ended")
    for step in parts["steps"]:
        step["new_messages"] = _decoded(step["new_messages"], [])
        step["reply"] = _decoded(step["reply"], None)
    return {"trajectory_uid": uid, **place, "ended": ended[0] if ended else None, **parts}


def _decoded(text: str, otherwise: Any) -> Any:
    return msgspec.json.decode(text) if text else otherwise


# ------------------------------------------------------------------------------------------------------------ for people


def _lines(story: Row) -> Iterator[str]:
    ended = story["ended"]
    state = "is open" if ended is None else f"{ended['status']}{'' if ended['complete'] else ', incomplete'}"
    yield f"{story['trajectory_uid']}: {state}; prompt {story['prompt_uid']}, run {story['run_id']}"
    for step in story["steps"]:
        yield ""
        yield _head(step)
        for message in step["new_messages"]:
            yield from _said(message)
        if step["reply"] is not None:
            yield from _said(step["reply"])
    yield ""
    for reward in story["rewards"]:
        at = f" of step {reward['step_id']}" if reward["step_id"] else ""
        yield f"reward{at}: {reward['source']} = {reward['value']:g}"
    for decision in story["decisions"]:
        value = "" if decision["value"] is None else f" {decision['value']}"
        late = "".join(f", too late for batch {recipe}/{number}" for recipe, number in sorted(decision["late"]))
        yield f"decision: {decision['action']}{value} by {decision['author']}{late} ({decision['fact_id']})"
    for outcome in story["outcomes"]:
        recipe = "no recipe" if outcome["recipe"] is None else f"{outcome['recipe']} v{outcome['recipe_version']}"
        yield f"outcome: {outcome['outcome']} ({outcome['reason']}) under {recipe}"
    for batch in story["batches"]:
        version = batch["trained_policy_version"]
        trained = "not trained yet" if version is None else f"trained to version {version}"
        yield f"batch: {batch['recipe']} {batch['sequence']}, {len(batch['step_ids'])} of its steps, {trained}"


def _head(step: Row) -> str:
    words = [f"{step['prompt_len']} + {step['response_len']} tokens", step["status"], step["finish_reason"]]
    if step["policy_version"] is not None:
        words.append(f"version {step['policy_version']}")
    words += [step["role"] if step["role"] != "policy" else None, step["model"], *step["capture_reasons"]]
    words.append(f"retry of {step['retry_of']}" if step["retry_of"] else "a retry" if step["repeats"] else None)
    return f"step {step['step_id']}: {', '.join(word for word in words if word)}"


def _said(message: Row) -> Iterator[str]:
    text = text_of(message).strip()
    called = [call.get("function", {}) for call in message.get("tool_calls") or []]
    calls = [f"→ {function.get('name')}({function.get('arguments')})" for function in called]
    lines = [*text.splitlines(), *calls] or ["(no text)"]
    role = f"{message.get('role', '?')}:"
    for number, line in enumerate(lines):
        yield f"  {role if not number else '':11} {line}"


def _fates(row: Row) -> str:
    fates: Iterable[tuple[str, str, str]] = row["fates"] or ()
    return ", ".join(f"{recipe}: {outcome} ({reason})" for recipe, outcome, reason in sorted(fates)) or "undecided"


def clock(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def to_json(value: Any) -> str:
    return json.dumps(value, default=str)
