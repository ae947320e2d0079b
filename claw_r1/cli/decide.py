"""`claw decide`: a person's word on a step, a trajectory or a group, or on all trajectories that conditions find."""

import asyncio
import contextlib
import getpass
import json
import sys
import time
from typing import Annotated, Any

import msgspec
import typer
from pydantic import ValidationError

from claw_r1.cli.address import clickhouse_address, database_name, kafka_address
from claw_r1.cli.options import AsJson, Kafka
from claw_r1.clickhouse import ClickHouse
from claw_r1.curation import ACTIONS, NUMBERED, why_unfit
from claw_r1.deciding import make_decisions, publish_decisions
from claw_r1.dry_run import list_untold, matching_sql
from claw_r1.events import Decision
from claw_r1.ids import check_id
from claw_r1.recipes import Recipe
from claw_r1.rules import Condition


def decide(
    action: Annotated[str, typer.Argument(help=f"What is decided: {', '.join(ACTIONS)}.")],
    run: Annotated[str, typer.Option("--run", help="The run.")] = "default",
    prompt: Annotated[str | None, typer.Option("--prompt", help="The prompt: the decision is about its group.")] = None,
    trajectory: Annotated[str | None, typer.Option("--trajectory", help="About one trajectory of the prompt.")] = None,
    step: Annotated[str | None, typer.Option("--step", help="About one step of the trajectory.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where", help="Instead of a prompt: 'FIELD OP VALUE', of ended trajectories; repeated, all hold."
        ),
    ] = None,
    channel: Annotated[str, typer.Option("--channel", help="With --where: the channel.")] = "train",
    value: Annotated[
        str | None, typer.Option("--value", help="A number (override_reward, quality) or a text (relabel, tag, note).")
    ] = None,
    undoes: Annotated[
        str | None, typer.Option("--undoes", help="undo: the id of the decision that becomes void.")
    ] = None,
    author: Annotated[str | None, typer.Option("--author", help="Who decides (default: the user's name).")] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Why.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be decided, and write nothing.")] = False,
    as_json: AsJson = False,
    kafka: Kafka = None,
    clickhouse: Annotated[
        str | None,
        typer.Option(
            "--clickhouse", help="With --where: ClickHouse URL (default: CLAW_CLICKHOUSE, or the running stack)."
        ),
    ] = None,
    database: Annotated[str | None, typer.Option("--database", help="With --where: database of the pool.")] = None,
) -> None:
    """Write decisions to the log: they change what is trained until a batch has their group, and are late afterwards."""
    if (prompt is None) == (not where):
        raise typer.BadParameter("say which: --prompt PROMPT, or --where CONDITION", param_hint="--prompt")
    if (step is not None and trajectory is None) or (trajectory is not None and prompt is None):
        raise typer.BadParameter("a step needs its --trajectory, a trajectory its --prompt", param_hint="--step")
    for name, given in (("--run", run), ("--prompt", prompt), ("--trajectory", trajectory)):
        if given is not None:
            check_id(name, given)
    said = {"action": action, "value": read_value(action, value), "undoes": undoes, "reason": reason, "step_id": step}
    if (action == "undo") != (undoes is not None):
        raise typer.BadParameter("undo takes the id of a decision, other actions take none", param_hint="--undoes")
    said["author"] = author or getpass.getuser()
    if prompt is not None:
        subjects: list[tuple[str, str | None]] = [(prompt, trajectory)]
    else:
        recipe = Recipe(name="decide", run_id=run, channel=channel, filters=tuple(map(read_condition, where or ())))
        subjects = asyncio.run(_find(clickhouse_address(clickhouse), database_name(database), recipe))
    decisions = make_decisions([(run, prompt, uid) for prompt, uid in subjects], said, time.time())
    if not dry_run:
        asyncio.run(publish_decisions(kafka_address(kafka), decisions, source="claw/decide"))
    _show(decisions, as_json=as_json, written=not dry_run)


def read_value(action: str, value: str | None) -> str | float | None:
    """The value as the action takes it. Raises BadParameter if it is none that it can take."""
    if action not in ACTIONS:
        raise typer.BadParameter(f"{action} is not one of {', '.join(ACTIONS)}", param_hint="ACTION")
    said: str | float | None = value
    if action in NUMBERED and value is not None:
        with contextlib.suppress(ValueError):
            said = float(value)
    if (why := why_unfit(action, said)) is not None:
        raise typer.BadParameter(why, param_hint="--value")
    return said


def read_condition(text: str) -> Condition:
    """A condition on trajectories. Raises BadParameter naming what is wrong."""
    condition = parse_condition(text)
    if condition.level == "group":
        raise typer.BadParameter(
            f"{condition.field} is a field of groups; trajectories are asked for", param_hint="--where"
        )
    return condition


def parse_condition(text: str) -> Condition:
    """`reward lt 0.5`: field, op, and a value in YAML. Raises BadParameter naming what is wrong."""
    words = text.split(None, 2)
    try:
        fields: dict[str, Any] = dict(zip(("field", "op"), words, strict=False))
        if len(words) > 2:
            fields["value"] = msgspec.yaml.decode(words[2])
        return Condition.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        raise typer.BadParameter(f"{text!r}: {first['loc'][0]}: {message}", param_hint="--where") from error
    except msgspec.DecodeError as error:
        raise typer.BadParameter(f"{text!r}: the value is no YAML", param_hint="--where") from error


async def _find(url: str, database: str, recipe: Recipe) -> list[tuple[str, str | None]]:
    if untold := list_untold(recipe):
        raise typer.BadParameter(f"the pool does not tell {', '.join(untold)}", param_hint="--where")
    async with await ClickHouse.connect(url, database, timeout=300) as client:
        await client.check_schema()
        return [(prompt, trajectory) for prompt, trajectory in (await client.query(matching_sql(recipe))).rows]


def _show(decisions: list[Decision], *, as_json: bool, written: bool) -> None:
    if as_json:
        shown = [
            {"fact_id": d.fact_id, "prompt_uid": d.prompt_uid, "trajectory_uid": d.trajectory_uid} for d in decisions
        ]
        print(json.dumps({"written": written, "decisions": shown}))
        return
    for decision in decisions:
        print(decision.fact_id, decision.prompt_uid, decision.trajectory_uid or "")
    print(f"{len(decisions)} decisions {'written' if written else 'would be written'}", file=sys.stderr)
