"""`claw batches`: which batches were cut, what one got and left out and why, what tells two apart, and one made again."""

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from claw_r1.cli.address import clickhouse_address, database_name
from claw_r1.cli.batch_diff import compare
from claw_r1.cli.trajectories import AsJson, Clickhouse, Database, Row, Timeout, ask_rows, clock, to_json
from claw_r1.clickhouse import ClickHouse
from claw_r1.errors import UserError
from claw_r1.ids import split_batch_name

app = typer.Typer(help="List, show and compare batches, and make one again.", no_args_is_help=True)

Batch = Annotated[str, typer.Argument(help="RECIPE/SEQUENCE, such as grpo-main/7, or the batch's id.")]

_SUMMARY: Final = """
SELECT c.recipe AS recipe, c.recipe_version AS recipe_version, c.run_id AS run_id, c.sequence AS sequence,
    c.batch_id AS batch_id, if(t.policy_version IS NULL, 'cut', 'trained') AS state, c.groups AS groups,
    c.excluded AS excluded, c.samples AS samples, c.tokens AS tokens, c.trained_tokens AS trained_tokens,
    c.policy_version AS policy_version, c.oldest_version AS oldest_version, c.newest_version AS newest_version,
    c.policy_version - c.oldest_version AS staleness, t.policy_version AS trained_policy_version,
    t.trainer_step AS trainer_step, t.weights_digest AS weights_digest, c.digest AS digest, c.holder AS holder,
    c.append_time AS cut_time, t.append_time AS trained_time
FROM newest AS c
LEFT JOIN (
    SELECT * FROM trained FINAL WHERE (recipe, run_id, sequence) IN (SELECT recipe, run_id, sequence FROM newest)
) AS t ON c.batch_id = t.batch_id
ORDER BY cut_time DESC, sequence DESC
"""
_NEWEST: Final = f"""
WITH newest AS (
    SELECT * FROM cuts FINAL WHERE (recipe, run_id, sequence) IN (
        SELECT recipe, run_id, sequence FROM cuts FINAL
        WHERE ({{recipe:String}} = '' OR recipe = {{recipe:String}}) AND ({{run:String}} = '' OR run_id = {{run:String}})
        ORDER BY append_time DESC, sequence DESC LIMIT {{limit:UInt32}}
    )
)
{_SUMMARY}
"""
_NAMED: Final = f"""
WITH newest AS (
    SELECT * FROM cuts FINAL WHERE {{where}} ORDER BY offset LIMIT 1
)
{_SUMMARY}
"""
_BY_SEQUENCE: Final = _NAMED.format(where="recipe = {recipe:String} AND sequence = {sequence:UInt64}")
_BY_ID: Final = _NAMED.format(where="batch_id = {batch:String}")
_OF_TRAJECTORY: Final = """
SELECT * FROM trajectory_batches(trajectory_uid = {uid:String})
WHERE ({run:String} = '' OR group_run_id = {run:String}) AND ({step:String} = '' OR step_id = {step:String})
    AND ({recipe:String} = '' OR recipe = {recipe:String})
ORDER BY recipe, sequence, step_index, start LIMIT {limit:UInt32}
"""
_PLACE_OF_STEP: Final = """
SELECT DISTINCT run_id, trajectory_uid FROM steps
WHERE step_id = {step:String} AND ({run:String} = '' OR run_id = {run:String}) LIMIT 2
"""
_GROUPS: Final = """
WITH members AS (
    SELECT *, splitByRegexp('[#+]', group_id)[1] AS prompt_uid FROM cut_members FINAL
    WHERE recipe = {recipe:String} AND run_id = {run:String} AND sequence = {sequence:UInt64} AND batch_id = {batch:String}
)
SELECT m.position AS position, m.taken AS taken, m.reason AS reason, m.group_run_id AS group_run_id, m.prompt_uid AS prompt_uid,
    m.group_id AS group_id, g.task_id AS task_id, g.recipe_version AS recipe_version, m.sample_ids AS sample_ids,
    m.left_out AS left_out, g.tokens AS emitted_tokens, g.trained_tokens AS emitted_trained_tokens,
    g.min_version AS oldest_version, g.max_version AS newest_version, g.reward_mean AS reward_mean,
    g.reward_std AS reward_std, g.members AS members, g.decisions AS decisions_before, m.decisions AS decisions
FROM members AS m
LEFT JOIN (
    SELECT * FROM groups FINAL
    WHERE (run_id, prompt_uid, group_id) IN (SELECT group_run_id, prompt_uid, group_id FROM members)
        AND recipe = {recipe:String}
) AS g ON m.group_run_id = g.run_id AND m.group_id = g.group_id AND m.ready_offset = g.offset
ORDER BY taken DESC, position
"""
_DECISIONS: Final = """
WITH prompts AS (
    SELECT group_run_id, splitByRegexp('[#+]', group_id)[1] AS prompt_uid FROM cut_members FINAL
    WHERE recipe = {recipe:String} AND run_id = {run:String} AND sequence = {sequence:UInt64} AND batch_id = {batch:String}
)
SELECT d.fact_id AS fact_id, d.prompt_uid AS prompt_uid, d.trajectory_uid AS trajectory_uid, d.step_id AS step_id,
    d.action AS action, d.value AS value, d.undoes AS undoes, d.author AS author, d.reason AS reason,
    d.append_time AS append_time, o.late_reason AS late_reason
FROM (SELECT * FROM decisions FINAL WHERE (run_id, prompt_uid) IN prompts) AS d
LEFT JOIN (
    SELECT run_id, prompt_uid, fact_id, any(reason) AS late_reason FROM outcomes FINAL
    WHERE (run_id, prompt_uid) IN prompts AND outcome = 'late' AND recipe = {recipe:String}
        AND batch = {sequence:UInt64} AND fact_id IS NOT NULL
    GROUP BY run_id, prompt_uid, fact_id
) AS o ON d.run_id = o.run_id AND d.prompt_uid = o.prompt_uid AND d.fact_id = o.fact_id
ORDER BY append_time, fact_id
"""
_STEPS: Final = "SELECT * EXCEPT (recipe, run_id, sequence, batch_id) FROM batch_steps(batch_id = {batch:String})"
_TRAJECTORIES: Final = """
WITH members AS (
    SELECT position, group_run_id, group_id, splitByRegexp('[#+]', group_id)[1] AS prompt_uid, sample_ids, decisions
    FROM cut_members FINAL
    WHERE recipe = {recipe:String} AND run_id = {run:String} AND sequence = {sequence:UInt64} AND batch_id = {batch:String}
        AND taken
)
SELECT m.group_run_id AS group_run_id, m.group_id AS group_id, s.trajectory_uid AS trajectory_uid, count() AS samples,
    sum(s.tokens) AS tokens, sum(s.trained_tokens) AS trained_tokens,
    hex(sipHash64(arraySort(groupArray((s.sample_index, s.ids))))) AS ids,
    hex(sipHash64(arraySort(groupArray((s.sample_index, s.mask))))) AS mask, any(s.reward) AS reward,
    arraySort(arrayDistinct(arrayFlatten(groupArray(s.versions)))) AS versions, any(m.decisions) AS decisions
FROM (SELECT *, arrayJoin(sample_ids) AS sample_id FROM members) AS m
INNER JOIN (
    SELECT run_id, group_id, sample_id, trajectory_uid, sample_index, tokens, trained_tokens, reward,
        sipHash64(token_ids) AS ids, sipHash64(loss_mask) AS mask,
        arrayFilter(v -> isNotNull(v), version_spans.version) AS versions
    FROM samples FINAL
    WHERE (run_id, prompt_uid, group_id) IN (SELECT group_run_id, prompt_uid, group_id FROM members)
        AND recipe = {recipe:String}
) AS s ON m.group_run_id = s.run_id AND m.group_id = s.group_id AND m.sample_id = s.sample_id
GROUP BY group_run_id, group_id, trajectory_uid
ORDER BY min(m.position), trajectory_uid
"""


@app.command("list")
def list_batches(
    recipe: Annotated[str, typer.Option("--recipe", help="Only of this recipe.")] = "",
    run: Annotated[str, typer.Option("--run", help="Only of this run.")] = "",
    trajectory: Annotated[str, typer.Option("--trajectory", help="The batches that have this trajectory.")] = "",
    step: Annotated[str, typer.Option("--step", help="The batches that have this step.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many at the most.")] = 20,
    clickhouse: Clickhouse = None,
    database: Database = None,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """List the batches that were cut last, or those that have a trajectory or a step."""
    asked = {"recipe": recipe, "run": run, "limit": limit}
    if trajectory or step:
        found = asyncio.run(_find_lineage(clickhouse, database, timeout, trajectory, step, asked))
        lines = map(_lineage_line, found)
    else:
        found = asyncio.run(_ask(clickhouse, database, timeout, _NEWEST, asked))
        lines = map(_summary_line, found)
    if as_json:
        print(to_json(found))
        return
    for line in lines:
        print(line)
    if not found:
        what = "has it" if trajectory or step else "that fits was cut"
        print(f"no batch {what}: `claw batches list` lists those that were cut last", file=sys.stderr)


@app.command()
def show(
    batch: Batch,
    steps: Annotated[bool, typer.Option("--steps", help="The steps of each group too.")] = False,
    clickhouse: Clickhouse = None,
    database: Database = None,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Show one batch: its groups and those left out with the reason, rewards, versions, decisions, and its commit."""
    story = asyncio.run(_tell(clickhouse, database, timeout, batch, steps=steps))
    print(to_json(story) if as_json else "\n".join(_lines(story)))


@app.command()
def diff(
    a: Batch,
    b: Batch,
    clickhouse: Clickhouse = None,
    database: Database = None,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Tell two batches apart: trajectories that only one has, and those whose tokens, masks, rewards, versions or decisions
    differ. Masks and rewards are those of the emission; decisions that a cut applied are compared by name."""
    heads, document = asyncio.run(_compare(clickhouse, database, timeout, a, b))
    if as_json:
        print(to_json({"a": heads[0], "b": heads[1], **document}))
        return
    for sign, only, head in (("-", document["only_a"], heads[0]), ("+", document["only_b"], heads[1])):
        for row in only:
            print(f"{sign} {row['group_id']}  {row['trajectory_uid']}  only in {head['recipe']}/{head['sequence']}")
    for row in document["differ"]:
        changes = "; ".join(f"{name}: {_short(one)} → {_short(other)}" for name, (one, other) in row["differs"].items())
        print(f"~ {row['group_id']}  {row['trajectory_uid']}  {changes}")
    print(
        f"{len(document['only_a'])} only in the first, {len(document['only_b'])} only in the second, "
        f"{len(document['differ'])} differ, {document['same']} are the same",
        file=sys.stderr,
    )


@app.command()
def rebuild(
    batch: Batch,
    out: Annotated[Path | None, typer.Option("--out", help="Write its columns to this file, NumPy's npz.")] = None,
    clickhouse: Clickhouse = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Make a batch again from the pool, the same in every byte, or say what is missing or differs."""
    from trainer_adapter.files import write_batch
    from trainer_adapter.rebuild import rebuild_batch

    made = rebuild_batch(batch, clickhouse=clickhouse_address(clickhouse), database=database_name(database))
    if out is not None:
        write_batch(made, out)
    document = {
        "recipe": made.recipe,
        "sequence": made.sequence,
        "batch_id": made.batch_id,
        "digest": made.digest,
        "samples": len(made),
        "tokens": made.tokens,
        "out": None if out is None else str(out),
    }
    if as_json:
        print(json.dumps(document))
        return
    where = "" if out is None else f", written to {out}"
    print(f"{made.recipe}/{made.sequence} is the same: {len(made)} samples, {made.tokens} tokens, {made.digest}{where}")


# ------------------------------------------------------------------------------------------------------------- questions


async def _ask(
    clickhouse: str | None, database: str | None, timeout: float, question: str, asked: Mapping[str, Any]
) -> list[Row]:
    async with await _connect(clickhouse, database, timeout) as client:
        return await ask_rows(client, question, asked)


async def _connect(clickhouse: str | None, database: str | None, timeout: float) -> ClickHouse:
    return await ClickHouse.connect(clickhouse_address(clickhouse), database_name(database), timeout=timeout)


async def _find_lineage(
    clickhouse: str | None, database: str | None, timeout: float, trajectory: str, step: str, asked: Mapping[str, Any]
) -> list[Row]:
    async with await _connect(clickhouse, database, timeout) as client:
        if not trajectory:
            places = await ask_rows(client, _PLACE_OF_STEP, {"step": step, "run": asked["run"]})
            if not places:
                raise UserError(f"the pool has no step {step}: `claw show TRAJECTORY_UID` names a trajectory's steps")
            if len(places) > 1:
                raise UserError(f"several trajectories have a step {step}: say which with --trajectory or --run")
            trajectory = places[0]["trajectory_uid"]
            asked = {**asked, "run": places[0]["run_id"]}
        return await ask_rows(client, _OF_TRAJECTORY, {**asked, "uid": trajectory, "step": step})


async def _find(client: ClickHouse, name: str) -> Row:
    """The summary of a batch. Raises UserError if there is none of the name."""
    place = split_batch_name(name)
    if place is None:
        found = await ask_rows(client, _BY_ID, {"batch": name})
    else:
        found = await ask_rows(client, _BY_SEQUENCE, dict(zip(("recipe", "sequence"), place, strict=True)))
    if not found:
        raise UserError(f"the pool has no batch {name}: `claw batches list` shows those there are")
    return found[0]


def _key(head: Row) -> Row:
    return {
        "recipe": head["recipe"],
        "run": head["run_id"],
        "sequence": head["sequence"],
        "batch": head["batch_id"],
    }


async def _tell(clickhouse: str | None, database: str | None, timeout: float, name: str, *, steps: bool) -> Row:
    async with await _connect(clickhouse, database, timeout) as client:
        head = await _find(client, name)
        groups = await ask_rows(client, _GROUPS, _key(head))
        decisions = await ask_rows(client, _DECISIONS, _key(head))
        lineage = await ask_rows(client, _STEPS, _key(head)) if steps else None
    applied = {fact_id for group in groups for fact_id in group["decisions"]}
    before = {fact_id for group in groups for fact_id in group["decisions_before"] or ()}
    for decision in decisions:
        decision["bore"] = "cut" if decision["fact_id"] in applied else None
        if decision["fact_id"] in before:
            decision["bore"] = "emission"
        elif decision["late_reason"] is not None:
            decision["bore"] = "late"
    return {**head, "members": groups, "decisions": decisions, **({} if lineage is None else {"steps": lineage})}


async def _compare(
    clickhouse: str | None, database: str | None, timeout: float, a: str, b: str
) -> tuple[list[Row], dict[str, Any]]:
    async with await _connect(clickhouse, database, timeout) as client:
        heads = [await _find(client, name) for name in (a, b)]
        first, second = [await ask_rows(client, _TRAJECTORIES, _key(head)) for head in heads]
    return heads, compare(first, second)


# ------------------------------------------------------------------------------------------------------------ for people


def _summary_line(row: Row) -> str:
    left_out = f" ({row['excluded']} left out)" if row["excluded"] else ""
    versions = f"{_known(row['oldest_version'])}..{_known(row['newest_version'])}"
    return (
        f"{clock(row['cut_time'])}  {row['recipe']}/{row['sequence']}  {_state(row)}  {row['groups']} groups{left_out}  "
        f"{_known(row['samples'])} samples  {_known(row['trained_tokens'])} of {_known(row['tokens'])} tokens  "
        f"versions {versions}, staleness {_known(row['staleness'])}  {row['digest'][:12]}"
    )


def _state(row: Row) -> str:
    return "cut" if row["state"] == "cut" else f"trained to version {row['trained_policy_version']}"


def _lineage_line(row: Row) -> str:
    version = row["trained_policy_version"]
    state = "not trained yet" if version is None else f"trained to version {version}"
    decided = f", decisions {' '.join(row['decisions'])}" if row["decisions"] else ""
    return (
        f"{row['recipe']}/{row['sequence']}  {state}  step {row['step_id']}: {row['trained_tokens']} of "
        f"{row['end'] - row['start']} tokens trained{decided}"
    )


def _lines(story: Row) -> Iterator[str]:
    yield f"{story['recipe']}/{story['sequence']} ({story['batch_id']}): {_state(story)}"
    yield (
        f"recipe version {story['recipe_version']}, run {story['run_id']}, cut by {story['holder']} at policy version "
        f"{_known(story['policy_version'])}, sampled by {_known(story['oldest_version'])}..{_known(story['newest_version'])}"
    )
    yield f"{_known(story['samples'])} samples, {_known(story['trained_tokens'])} of {_known(story['tokens'])} tokens trained"
    yield f"digest {story['digest']}"
    if story["trained_time"] is not None:
        step = "" if story["trainer_step"] is None else f", trainer step {story['trainer_step']}"
        weights = "" if story["weights_digest"] is None else f", weights {story['weights_digest']}"
        yield f"committed {clock(story['trained_time'])}{step}{weights}"
    for group in story["members"]:
        yield ""
        fate = f"{len(group['sample_ids'])} samples" if group["taken"] else f"left out ({group['reason']})"
        task = f", task {group['task_id']}" if group["task_id"] else ""
        yield f"group {group['group_id']}{task}: {fate}"
        for member in group["members"] or ():
            reward = "no reward" if member["reward"] is None else f"reward {member['reward']:g}"
            yield f"  {member['trajectory_uid']}  {reward}  {member['outcome']} ({member['reason']})"
        if group["left_out"]:
            yield f"  taken out by decisions: {', '.join(group['left_out'])}"
        for step in story.get("steps", ()):
            if step["group_id"] == group["group_id"] and step["group_run_id"] == group["group_run_id"]:
                yield f"  step {step['step_id']}: {step['trained_tokens']} of {step['end'] - step['start']} tokens trained"
    if story["decisions"]:
        yield ""
    for decision in story["decisions"]:
        about = decision["step_id"] or decision["trajectory_uid"] or f"group of {decision['prompt_uid']}"
        value = "" if decision["value"] is None else f" {decision['value']}"
        how = {
            "cut": "applied by the cut",
            "emission": "in force when the group was emitted",
            "late": f"too late ({decision['late_reason']})",
            None: "not in the cut: the recipe's next cut answers it",
        }[decision["bore"]]
        yield f"decision: {decision['action']}{value} on {about} by {decision['author']}, {how} ({decision['fact_id']})"


def _known(value: Any) -> str:
    return "?" if value is None else str(value)


def _short(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else _known(value)
