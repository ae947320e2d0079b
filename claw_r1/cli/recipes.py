"""`claw recipes`: say what a trainer wants, see what is in force, and judge what came before."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from claw_r1 import registry, supply
from claw_r1.cli.address import clickhouse_address, database_name, kafka_address
from claw_r1.cli.options import AsJson, ClickHouseUrl, Database, Kafka
from claw_r1.clickhouse import ClickHouse
from claw_r1.dry_run import dry_run_sql, list_untold
from claw_r1.errors import UserError
from claw_r1.recipes import Recipe, list_unhonoured
from claw_r1.settings import SinksSettings

app = typer.Typer(help="Apply, try, list, delete and backfill recipes.", no_args_is_help=True)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML or JSON file. Raises UserError naming the field that is wrong."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text("utf-8")
        fields: Any = json.loads(text) if path.suffix == ".json" else msgspec.yaml.decode(text)
        if not isinstance(fields, dict):
            raise UserError(f"{path} is not a recipe: it must hold fields, `name` among them")
        recipe = Recipe.model_validate(fields)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, msgspec.DecodeError) as error:
        if isinstance(error, ValidationError):
            wrong = "; ".join(_fault(e["loc"], e["msg"]) for e in error.errors())
            raise UserError(f"{path} is not a recipe: {wrong}") from error
        raise UserError(f"{path} is neither YAML nor JSON: {error}") from error
    if unhonoured := list_unhonoured(recipe):
        raise UserError(f"{path} asks for what is not done yet: {'; '.join(unhonoured)}")
    return recipe


def _fault(place: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    named = [str(part) for part in place if part != "[key]"]
    return f"{'.'.join(named)}: {message}" if named else message


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(help="Recipe file, YAML or JSON; - reads standard input.")],
    kafka: Kafka = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file, and write nothing.")] = False,
    wait: Annotated[float, typer.Option("--wait", min=0.1, help="Seconds to wait for the stream workers.")] = 30.0,
    clickhouse: ClickHouseUrl = None,
    database: Database = None,
) -> None:
    """Put a recipe in force: it judges the groups that begin from now on. Warns of what nothing is known to produce."""
    recipe = read_recipe(file)
    if dry_run:
        print(recipe.model_dump_json(indent=1))
        return
    version = asyncio.run(registry.apply_recipe(kafka_address(kafka), recipe, deadline=wait))
    print(f"recipe {recipe.name} version {version} is in force for run {recipe.run_id}, channel {recipe.channel}")
    for warning in asyncio.run(supply.warn(recipe, clickhouse_address(clickhouse), database_name(database))):
        print(f"warning: {warning}", file=sys.stderr)


@app.command("dry-run")
def dry_run(
    file: Annotated[Path, typer.Argument(help="Recipe file, YAML or JSON; - reads standard input.")],
    clickhouse: ClickHouseUrl = None,
    database: Database = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Longest wait, seconds.")] = 300.0,
    as_json: AsJson = False,
) -> None:
    """Ask the pool what would become of the run's ended trajectories and their groups, by reason; nothing is changed."""
    recipe = read_recipe(file)
    if untold := list_untold(recipe):
        raise UserError(f"the pool does not tell {', '.join(untold)}: leave these filters out to try the others")
    found = asyncio.run(_ask(clickhouse_address(clickhouse), database_name(database), dry_run_sql(recipe), timeout))
    if as_json:
        print(json.dumps({"recipe": recipe.name, "run_id": recipe.run_id, "channel": recipe.channel, "counts": found}))
        return
    _print_counts(found)
    if not found:
        print(f"the pool has no ended trajectory of run {recipe.run_id}, channel {recipe.channel}", file=sys.stderr)
    missing = sum(row["number"] for row in found if row["about"] == "trajectory" and row["reason"] == "reward_missing")
    if missing and missing == sum(row["number"] for row in found if row["about"] == "trajectory"):
        wanted = ", ".join(recipe.rewards.required) or "any source"
        print(f"no trajectory has a reward of {wanted}: nothing produces what the recipe requires", file=sys.stderr)


def _print_counts(counts: list[dict[str, Any]]) -> None:
    for row in counts:
        tokens = f"  {row['tokens']:,} tokens" if row.get("tokens") else ""
        print(f"{row['number']:>10}  {row['about']:<10}  {row['outcome']:<9}  {row['reason']}{tokens}")


async def _ask(url: str, database: str, question: str, timeout: float) -> list[dict[str, Any]]:
    async with await ClickHouse.connect(url, database, timeout=timeout) as client:
        await client.check_schema()
        return (await client.query(question)).dicts()


@app.command("list")
def list_recipes(kafka: Kafka = None, as_json: AsJson = False) -> None:
    """Show the recipes in force."""
    found = asyncio.run(registry.active_recipes(kafka_address(kafka)))
    if as_json:
        print(
            json.dumps([{"version": k.version, "recipe": k.recipe.model_dump(mode="json")} for k in found if k.recipe])
        )
        return
    for known in found:
        recipe = known.recipe
        assert recipe is not None
        unit = "groups" if recipe.batch.tokens is None else "tokens"
        print(
            f"{recipe.name} v{known.version}: {recipe.algorithm}, run {recipe.run_id}, channel {recipe.channel}, "
            f"groups of {recipe.group.size}, {recipe.batch.size} {unit} a batch"
            + (f" mixed by {recipe.batch.mix.by}" if recipe.batch.mix else "")
            + (f", {len(recipe.filters)} filters" if recipe.filters else "")
            + (", reviewed" if recipe.review == "required" else "")
        )
    if not found:
        print("no recipe is in force; `claw recipes apply FILE` sets one", file=sys.stderr)


@app.command()
def show(name: Annotated[str, typer.Argument(help="Recipe.")], kafka: Kafka = None) -> None:
    """Print one recipe as JSON."""
    for known in asyncio.run(registry.active_recipes(kafka_address(kafka))):
        if known.name == name and known.recipe is not None:
            print(known.recipe.model_dump_json(indent=1))
            return
    raise UserError(f"there is no recipe {name}: `claw recipes list` shows those there are")


@app.command()
def delete(name: Annotated[str, typer.Argument(help="Recipe.")], kafka: Kafka = None) -> None:
    """End a recipe: groups that begin from now on are not judged by it. Its topic and its batches stay."""
    version = asyncio.run(registry.delete_recipe(kafka_address(kafka), name))
    print(f"recipe {name} ended with version {version}")


@app.command()
def backfill(
    name: Annotated[str, typer.Argument(help="Recipe that is in force.")],
    kafka: Kafka = None,
    clickhouse: ClickHouseUrl = None,
    database: Database = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be decided, and write nothing.")] = False,
    wait: Annotated[float, typer.Option("--wait", min=0.1, help="Seconds to wait for a pool that is behind.")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Judge the groups that began before the recipe, from the pool; each is decided once, however often this is run."""
    from streams.backfill.run import Places, run_backfill

    sinks = SinksSettings.read().group
    places = Places(kafka_address(kafka), clickhouse_address(clickhouse), database_name(database), sinks)
    with _progress() as told:
        report = asyncio.run(run_backfill(places, name, wait=wait, dry_run=dry_run, told=told))
    document = report.document()
    if as_json:
        print(json.dumps(document))
        return
    _print_counts(document["counts"])
    for row in document["left_out"]:
        print(f"{row['number']:>10}  {'group':<10}  {'left out':<9}  {row['reason']}")
    what = "would be written" if dry_run else "written"
    print(
        f"{report.groups} groups began before version {report.version} of recipe {name}: {report.samples} samples {what}",
        file=sys.stderr,
    )


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal that is told how many prompts are done, and of how many."""
    columns = (TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TextColumn("prompts"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("judging", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
