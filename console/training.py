"""Routes of the screens Recipes and Batches: what a recipe would do, its publication, batches, and one made again."""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from claw_r1 import batch_diff, batch_questions, registry, supply
from claw_r1.dry_run import dry_run_members_sql, dry_run_sql, open_members_sql, open_sql
from claw_r1.errors import Overloaded, UserError
from claw_r1.recipes import FROM_LOG, Recipe
from console import batches, recipes
from console.screens import Console, NotFound, answer, ask_all, console_of, writable

routes: Final = APIRouter()
APPLY_WAIT: Final = 10.0
"""Seconds that the stream workers have to take a recipe in."""
REBUILD_WAIT: Final = 120.0
NEXT_WAIT: Final = 60.0


# -------------------------------------------------------------------------------------------------------------- recipes


@routes.get("/recipes.json")
async def list_recipes(request: Request) -> Response:
    found = await ask_all(console_of(request).reader, recipes.STATEMENTS, {})
    return answer({"recipes": recipes.shape(found)})


@routes.get("/recipes/form.json")
async def form() -> Response:
    return answer(recipes.form())


@routes.post("/recipes/check.json")
async def check(draft: recipes.Draft) -> Response:
    """The whole recipe that a draft says, or its faults."""
    return answer(recipes.describe(*recipes.check(draft.fields)))


@routes.post("/recipes/dry-run.json")
async def dry_run(request: Request, draft: recipes.Draft) -> Response:
    """What would become of the run's ended trajectories; nothing is changed."""
    rows = await console_of(request).slow.ask(_literal(dry_run_sql(_asked(draft))), join_use_nulls=False)
    return answer({"counts": rows})


@routes.post("/recipes/dry-run/list.json")
async def dry_run_list(request: Request, wanted: recipes.Listed) -> Response:
    """Who stands behind one of its numbers."""
    sql = dry_run_members_sql(_asked(wanted), wanted.about, wanted.outcome, wanted.reason, recipes.LISTED)
    return answer(
        {"rows": await console_of(request).slow.ask(_literal(sql), join_use_nulls=False), "most": recipes.LISTED}
    )


@routes.post("/recipes.json")
async def apply(request: Request, draft: recipes.Draft) -> Response:
    """Put a recipe in force, and warn of what nothing is known to produce."""
    settings = writable(request).settings
    recipe = _recipe(draft)
    version = await registry.apply_recipe(settings.kafka, recipe, deadline=APPLY_WAIT)
    warnings = await supply.warn(recipe, settings.clickhouse, settings.database)
    return answer({"name": recipe.name, "version": version, "warnings": warnings})


@routes.post("/recipes/{name}/delete.json")
async def delete(request: Request, name: str) -> Response:
    """End a recipe; its batches stay."""
    version = await registry.delete_recipe(writable(request).settings.kafka, name, deadline=APPLY_WAIT)
    return answer({"name": name, "version": version})


@routes.get("/recipes/{name}/next.json")
async def next_batch(request: Request, name: str) -> Response:
    """What the streams have for a recipe in force: ready groups as its next cut would take them, and open ones."""
    console = console_of(request)
    rows = await console.reader.ask(recipes.ONE, {"name": name})
    if not rows or not rows[0]["recipe"]:
        raise NotFound(f"no recipe {name[:80]} is in force: /recipes lists those that are")
    recipe = Recipe.model_validate_json(rows[0]["recipe"], context=FROM_LOG)
    now = time.time()
    counted, listed, told = await asyncio.gather(
        console.slow.ask(_literal(open_sql(recipe, now)), join_use_nulls=False),
        console.slow.ask(_literal(open_members_sql(recipe, now, recipes.LISTED)), join_use_nulls=False),
        _preview(console, name, recipe.run_id),
    )
    return answer({"open": recipes.shape_open(counted[0], listed, now), **told})


async def _preview(console: Console, name: str, run: str) -> dict[str, Any]:
    """`next`: what `claw batches next` says; None where that is not known, for the reason `why`."""
    if not console.beside_log:
        return {"next": None, "why": "there is no broker beside this pool, which would tell what its topic has"}
    what = f"the next batch of {name} is not known"
    try:
        told = await console.commands.run("batches", "next", "--recipe", name, wait=NEXT_WAIT, what=what)
    except (UserError, Overloaded) as error:
        return {"next": None, "why": str(error)}
    if told["run_id"] != run:  # the name is of another run by now
        return {"next": None, "why": f"{name} is a recipe of another run now"}
    return {"next": recipes.shape_next(told), "why": None}


def _recipe(draft: recipes.Draft) -> Recipe:
    recipe, faults = recipes.check(draft.fields)
    if recipe is None or faults:
        raise UserError("; ".join(f"{fault['path']}: {fault['message']}" for fault in faults))
    return recipe


def _asked(draft: recipes.Draft) -> Recipe:
    recipe = _recipe(draft)
    if untold := recipes.describe(recipe, ())["untold"]:
        raise UserError(f"the pool does not tell {', '.join(untold)}: leave these filters out to try the others")
    return recipe


def as_dry_run(fields: str) -> str:
    """The question of a dry run, as a person may ask and change it; `fields` are the draft's, as JSON. Raises UserError."""
    try:
        draft = recipes.Draft.model_validate_json(f'{{"fields": {fields}}}')
    except ValueError as error:
        raise UserError("the draft is no JSON object of a recipe's fields") from error
    return dry_run_sql(_asked(draft)).strip()


def _literal(sql: str) -> str:
    """A statement without templates, as the reader takes it."""
    return sql.replace("$", "$$")


# -------------------------------------------------------------------------------------------------------------- batches


@routes.get("/batches.json")
async def list_batches(request: Request, recipe: str = "", run: str = "") -> Response:
    asked = {"recipe": recipe, "run": run, "limit": batches.LISTED}
    rows = await console_of(request).reader.ask(batch_questions.NEWEST, asked)
    return answer({"batches": [batches.plain(row) for row in rows], "most": batches.LISTED})


@routes.get("/batches/compare.json")
async def compare(request: Request, a: str, b: str) -> Response:
    console = console_of(request)
    heads = [await find_batch(console, *name.rpartition("/")[::2]) for name in (a, b)]
    first, second = await asyncio.gather(
        *(console.slow.ask(batch_questions.TRAJECTORIES, batch_questions.key_of(head)) for head in heads)
    )
    told = batch_diff.compare(first, second)
    shown = {
        name: [batches.plain(row) for row in told[name][: batches.MEMBERS]] for name in ("only_a", "only_b", "differ")
    }
    counts = {f"{name}_total": len(told[name]) for name in ("only_a", "only_b", "differ")}
    return answer({"a": batches.plain(heads[0]), "b": batches.plain(heads[1]), **shown, **counts, "same": told["same"]})


@routes.get("/batches/{recipe}/{sequence}.json")
async def one_batch(request: Request, recipe: str, sequence: str) -> Response:
    console = console_of(request)
    head = await find_batch(console, recipe, sequence)
    statements = {
        "groups": batch_questions.GROUPS,
        "decisions": batch_questions.DECISIONS,
        "stale": batches.STALENESS,
    }
    found = await ask_all(console.reader, statements, batch_questions.key_of(head))
    return answer(batches.tell(head, found["groups"], found["decisions"], found["stale"]))


@routes.post("/batches/{recipe}/{sequence}/rebuild.json")
async def rebuild(request: Request, recipe: str, sequence: str) -> Response:
    """Make a batch again from the pool: the same in every byte, or what is missing or differs."""
    console = console_of(request)
    head = await find_batch(console, recipe, sequence)
    return answer(await _rebuild(console, head, None))


@routes.get("/exports/{recipe}/{sequence}.npz")
async def export(request: Request, recipe: str, sequence: str) -> Response:
    """The batch's columns as a file, made again from the pool."""
    console = console_of(request)
    head = await find_batch(console, recipe, sequence)
    folder = tempfile.TemporaryDirectory(prefix="claw-batch-")
    out = Path(folder.name) / f"{recipe}-{sequence}.npz"
    try:
        await _rebuild(console, head, out)
    except BaseException:
        folder.cleanup()
        raise
    return FileResponse(
        out, media_type="application/octet-stream", filename=out.name, background=BackgroundTask(folder.cleanup)
    )


async def find_batch(console: Console, recipe: str, sequence: str) -> dict[str, Any]:
    """The summary of a batch. Raises UserError if it is not named, NotFound if there is none."""
    name = batches.name_of(recipe, sequence)
    rows = await console.reader.ask(batch_questions.BY_SEQUENCE, {"recipe": recipe, "sequence": int(sequence)})
    if not rows:
        raise NotFound(f"the pool has no batch {name}: /batches lists those there are")
    return rows[0]


async def _rebuild(console: Console, head: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """What `claw batches rebuild` says: the trainer's adapter makes the batch."""
    words = ["batches", "rebuild", head["batch_id"], *(() if out is None else ("--out", str(out)))]
    what = f"batch {head['recipe']}/{head['sequence']} is not made again"
    found: dict[str, Any] = await console.commands.run(*words, wait=REBUILD_WAIT, what=what)
    return {**found, "out": None}
