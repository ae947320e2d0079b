"""`claw rewards`: which reward functions there are, and what one says of a trajectory."""

import asyncio
import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from claw_r1.cli.options import AsJson
from claw_r1.errors import UserError
from claw_r1.rewards.finding import load, load_function, offered
from claw_r1.rewards.function import Missing, RewardFunction, Rollout, Score
from claw_r1.rewards.running import Runner

app = typer.Typer(help="List reward functions, and try one.", no_args_is_help=True)


@app.command("list")
def list_functions(as_json: AsJson = False) -> None:
    """Show the reward functions that installed packages offer."""
    rows = [_describe(name, value) for name, value in sorted(offered().items())]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['entry_point']}: {row['reference']}, source {row['source']}, in a {row['place']}")
    if not rows:
        print("no installed package offers one; module:name names any other", file=sys.stderr)


@app.command("try")
def try_function(
    function: Annotated[str, typer.Argument(help="Entry point of claw_r1.rewards, or module:name.")],
    file: Annotated[
        Path, typer.Argument(help="JSON, one rollout a line: messages, metadata, task_id, …; - reads standard input.")
    ],
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Longest time of a call, seconds.")] = 60.0,
    calls: Annotated[int, typer.Option("--calls", min=1, help="Calls at once.")] = 8,
) -> None:
    """Score rollouts from a file, one JSON line for each; nothing is recorded. Exit code 1 if one has no reward."""
    sys.path.insert(0, "")
    found = load_function(function, setting="FUNCTION")
    rows = asyncio.run(_score(found, list(read_rollouts(file)), timeout, calls))
    for row in rows:
        print(json.dumps(row))
    if any("missing" in row for row in rows):
        raise typer.Exit(1)


def read_rollouts(file: Path) -> list[Rollout]:
    """Raises UserError naming the line that is no rollout."""
    known = {field.name for field in dataclasses.fields(Rollout)} - {"steps"}
    rollouts = []
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            rollouts.append(Rollout(**{name: value for name, value in fields.items() if name in known}))
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{file} line {number} is no rollout: {error}") from error
    return rollouts


async def _score(function: RewardFunction, rollouts: list[Rollout], timeout: float, calls: int) -> list[dict[str, Any]]:
    runner = Runner(function, timeout=timeout, attempts=1, calls=calls)
    try:
        found = await asyncio.gather(*(_one(runner, rollout) for rollout in rollouts))
    finally:
        await runner.close()
    return list(found)


async def _one(runner: Runner, rollout: Rollout) -> dict[str, Any]:
    about = {"trajectory_uid": rollout.trajectory_uid} if rollout.trajectory_uid else {}
    try:
        score: Score = await runner.score(rollout)
    except Missing as error:
        return {**about, "missing": error.reason, "why": str(error)}
    said = {name: value for name, value in dataclasses.asdict(score).items() if value not in (None, {})}
    return {**about, "source": runner.function.name, **said}


def _describe(name: str, reference: str) -> dict[str, Any]:
    found = load(name, setting="claw_r1.rewards")
    if not isinstance(found, RewardFunction):  # for /compute_reward only
        return {"entry_point": name, "reference": reference, "source": None, "place": "gateway"}
    return {"entry_point": name, "reference": reference, "source": found.name, "place": found.place}
