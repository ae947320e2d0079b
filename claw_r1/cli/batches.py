"""`claw batches`: which batches were cut, what one got and left out and why, what tells two apart, one made again, the next."""

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from claw_r1.batch_diff import compare
from claw_r1.batch_questions import BY_ID, BY_SEQUENCE, DECISIONS, GROUPS, NEWEST, TRAJECTORIES, bear, key_of
from claw_r1.cli.address import clickhouse_address, database_name, kafka_address
from claw_r1.cli.options import AsJson, ClickHouseUrl, Database, Kafka
from claw_r1.cli.trajectories import Row, Timeout, ask_rows, clock, to_json
from claw_r1.clickhouse import ClickHouse
from claw_r1.errors import UserError
from claw_r1.ids import split_batch_name

if TYPE_CHECKING:
    from trainer_adapter.preview import Preview

app = typer.Typer(help="List, show and compare batches, make one again, look at the next.", no_args_is_help=True)

Batch = Annotated[str, typer.Argument(help="RECIPE/SEQUENCE, such as grpo-main/7, or the batch's id.")]

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
_STEPS: Final = "SELECT * EXCEPT (recipe, run_id, sequence, batch_id) FROM batch_steps(batch_id = {batch:String})"


@app.command("list")
def list_batches(
    recipe: Annotated[str, typer.Option("--recipe", help="Only of this recipe.")] = "",
    run: Annotated[str, typer.Option("--run", help="Only of this run.")] = "",
    trajectory: Annotated[str, typer.Option("--trajectory", help="The batches that have this trajectory.")] = "",
    step: Annotated[str, typer.Option("--step", help="The batches that have this step.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many at the most.")] = 20,
    clickhouse: ClickHouseUrl = None,
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
        found = asyncio.run(_ask(clickhouse, database, timeout, NEWEST, asked))
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
    clickhouse: ClickHouseUrl = None,
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
    clickhouse: ClickHouseUrl = None,
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
    clickhouse: ClickHouseUrl = None,
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


@app.command("next")
def next_batch(
    recipe: Annotated[str, typer.Option("--recipe", help="The recipe whose next batch it is.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Said or not: nothing is cut, and no trainer loses the recipe.")
    ] = True,
    kafka: Kafka = None,
    clickhouse: ClickHouseUrl = None,
    database: Database = None,
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> None:
    """Show what the next batch of a recipe would be, and why groups wait. Changes nothing."""
    from trainer_adapter.preview import preview_batch

    found = preview_batch(
        recipe,
        kafka=kafka_address(kafka),
        pool=clickhouse_address(clickhouse),
        database=database_name(database),
        deadline=timeout,
    )
    why = found.waiting.describe(found.said_at)
    if as_json:
        print(json.dumps({**asdict(found), "why": None if found.is_full else why}))
        return
    print("\n".join(_preview_lines(found, why)))


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
        found = await ask_rows(client, BY_ID, {"batch": name})
    else:
        found = await ask_rows(client, BY_SEQUENCE, dict(zip(("recipe", "sequence"), place, strict=True)))
    if not found:
        raise UserError(f"the pool has no batch {name}: `claw batches list` shows those there are")
    return found[0]


async def _tell(clickhouse: str | None, database: str | None, timeout: float, name: str, *, steps: bool) -> Row:
    async with await _connect(clickhouse, database, timeout) as client:
        head = await _find(client, name)
        groups = await ask_rows(client, GROUPS, key_of(head))
        decisions = await ask_rows(client, DECISIONS, key_of(head))
        lineage = await ask_rows(client, _STEPS, key_of(head)) if steps else None
    return {
        **head,
        "members": groups,
        "decisions": bear(groups, decisions),
        **({} if lineage is None else {"steps": lineage}),
    }


async def _compare(
    clickhouse: str | None, database: str | None, timeout: float, a: str, b: str
) -> tuple[list[Row], dict[str, Any]]:
    async with await _connect(clickhouse, database, timeout) as client:
        heads = [await _find(client, name) for name in (a, b)]
        first, second = [await ask_rows(client, TRAJECTORIES, key_of(head)) for head in heads]
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


def _preview_lines(found: "Preview", why: str) -> Iterator[str]:
    state = "would be cut now" if found.is_full else "is not full"
    held = "nobody trains it now" if found.holder is None else f"held by {found.holder}"
    yield f"{found.recipe}/{found.sequence} {state}: {len(found.members)} groups, {found.tokens} tokens"
    yield (
        f"recipe version {found.recipe_version}, run {found.run_id}, trained policy version {_known(found.policy_version)}, "
        f"{held}"
    )
    if found.untrained:
        yield f"batches {', '.join(map(str, found.untrained))} are cut and not committed: they come again first"
    groups = [*found.members, *found.excluded]
    if groups:
        width = max(len(group.group_id) for group in groups)
        yield f"{'group':<{width}}  samples  tokens  trained  versions  staleness  reward  decisions  left out"
        for group in groups:
            versions = f"{_known(group.oldest_version)}..{_known(group.newest_version)}"
            reward = "?" if group.reward_mean is None else f"{group.reward_mean:.3g}"
            yield (
                f"{group.group_id:<{width}}  {group.samples:>7}  {group.tokens:>6}  {group.trained_tokens:>7}  {versions:>8}  "
                f"{_known(group.staleness):>9}  {reward:>6}  {group.decisions:>9}  {group.reason or ''}".rstrip()
            )
    if not found.is_full:
        yield why


def _known(value: Any) -> str:
    return "?" if value is None else str(value)


def _short(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else _known(value)
