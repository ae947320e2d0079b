"""The table of screens: a page's address, the routes of its data, the module that draws it.

To add one: a file here with the statements and the shaping (pure), a function below that serves it as `.json`, a line in
SCREENS, and a file in `static/screens/` with a line in `static/screens.js`. docs/console.md tells the whole.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Never

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from claw_r1.errors import UserError
from claw_r1.settings import ConsoleSettings
from console import contexts, diffs, filters, forest, groups, looks, paging, queries, signals, trajectories, trajectory
from console.board import Board
from console.commands import Commands
from console.exports import Exports
from console.feed import Feed
from console.kept import Kept
from console.reader import Reader, Row
from console.status import shape_curves
from console.texts import Texts

routes: Final = APIRouter()


@dataclass(frozen=True)
class Console:
    """What the routes of every screen share; who has an analyst's key gets one of the key's run."""

    settings: ConsoleSettings
    run: str | None
    """None: every run is shown."""
    reader: Reader
    slow: Reader
    """For questions that people wait for: dry runs, comparisons."""
    board: Board
    feed: Feed
    texts: Texts
    schema: Kept
    """Words of the pool beside the editor."""
    commands: Commands
    exports: Exports
    beside_log: bool
    """Whether there is a broker beside the pool; a recorded run has none."""


PAGES: Final = frozenset({"", "flow", "groups", "trajectories", "curate", "recipes", "batches", "sql"})
"""First parts of the addresses that the page answers; `static/screens.js` has the same words."""


class NotFound(UserError):
    """What was asked for is not in the pool."""


class ReadOnly(UserError):
    """This console writes nothing."""


def writable(request: Request) -> "Console":
    """What routes share, for one that writes. Raises ReadOnly."""
    console = console_of(request)
    if console.run is not None:
        raise ReadOnly(f"a key of the run {console.run} reads, and writes nothing: an admin's key for every run does")
    if console.settings.read_only:
        raise ReadOnly("this console only shows (CLAW_CONSOLE_READ_ONLY): `claw console` beside a running stack writes")
    return console


def console_of(request: Request) -> Console:
    found: Console = request.state.console
    return found


def answer(data: Any) -> Response:
    """A page's data. NaN and infinity are no JSON: shaping has made them None."""
    return Response(json.dumps(data, allow_nan=False, separators=(",", ":")), media_type="application/json")


async def ask_all(reader: Reader, statements: Mapping[str, str], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The answers of statements that do not need each other, by name."""
    found = await asyncio.gather(*(reader.ask(sql, parameters) for sql in statements.values()))
    return dict(zip(statements, found, strict=True))


# ----------------------------------------------------------------------------------------------------------------- flow


@routes.get("/flow.json")
async def flow(request: Request) -> Response:
    status = await console_of(request).board.status()
    return answer(status.model_dump(mode="json"))


@routes.get("/flow/curves.json")
async def flow_curves(request: Request, recipe: str) -> Response:
    """Curves of a recipe's trained tokens, which cost more than the numbers of the page."""
    return answer(shape_curves(await console_of(request).reader.ask(queries.TOKEN_CURVES, {"recipe": recipe})))


# --------------------------------------------------------------------------------------------------------- trajectories


@routes.get("/trajectories.json")
async def list_trajectories(
    request: Request, q: str = "", after: str | None = None, limit: int = paging.PAGE
) -> Response:
    reader = console_of(request).reader
    rows = await reader.ask(*trajectories.page(q, after, limit))
    kept = rows[: paging.limit(limit)]
    shown = await with_details(reader, kept)
    return answer({"rows": shown, "next": shown[-1]["cursor"] if len(rows) > len(kept) else None})


@routes.get("/trajectories/count.json")
async def count_trajectories(request: Request, q: str = "") -> Response:
    (row,) = await console_of(request).reader.ask(*trajectories.count(q))
    return answer({"count": int(row["n"])})


@routes.get("/trajectories/fields.json")
async def list_fields() -> Response:
    return answer({"fields": filters.describe(trajectories.FIELDS)})


async def with_details(reader: Reader, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the list as the page shows them."""
    if not rows:
        return []
    found = await ask_all(reader, trajectories.DETAILS, trajectories.details(rows))
    return trajectories.shape(rows, found)


Look = tuple[list[dict[str, Any]], dict[Any, int]]


async def look(reader: Reader, text: str, ends: dict[int, int] | None) -> Look:
    """News of a filter of trajectories, for the feed."""
    now = {int(row["partition"]): int(row["last"]) for row in await reader.ask(trajectories.ENDS)}
    if ends is None or now == ends:
        return [], now
    rows = await reader.ask(*trajectories.news(text, ends, now))
    return await with_details(reader, rows), trajectories.read_to(rows, ends, now)


# ----------------------------------------------------------------------------------------------------------- trajectory


@routes.get("/trajectories/{uid}.json")
async def one_trajectory(request: Request, uid: str) -> Response:
    reader = console_of(request).reader
    shaped = trajectory.shape(uid, await ask_all(reader, trajectory.STATEMENTS, await place_of(reader, uid)))
    if shaped is None:
        raise _unknown(uid)
    return answer(shaped)


async def place_of(reader: Reader, uid: str) -> dict[str, Any]:
    """The parameters of questions about a trajectory: its id, and where its facts are. Raises NotFound."""
    places = await reader.ask(contexts.PLACES, {"uid": uid})
    if not places:
        raise _unknown(uid)
    return {"uid": uid, "places": [(row["run_id"], row["prompt_uid"]) for row in places]}


def _unknown(uid: str) -> NotFound:
    return NotFound(f"the pool has no trajectory {uid}: its id may be wrong, or its run was purged")


@routes.get("/trajectories/{uid}/steps/{step_id}.json")
async def one_step(request: Request, uid: str, step_id: str) -> Response:
    """A step with its context and its signals; `last` is the last one, for who does not know its id yet, or none."""
    return answer(await tell_step(console_of(request), uid, step_id, "messages", "tokens"))


@routes.get("/trajectories/{uid}/steps/{step_id}/{part}.json")
async def part_of_step(request: Request, uid: str, step_id: str, part: Literal["messages", "tokens"]) -> Response:
    """Its messages alone, or its tokens: who reads what was said waits for no signals."""
    return answer(await tell_step(console_of(request), uid, step_id, part))


async def tell_step(console: Console, uid: str, step_id: str, *parts: str) -> dict[str, Any]:
    """The step's id, and of its context `messages`, `tokens` with their signals and texts, or both. Raises NotFound."""
    place, steps = await steps_of(console.reader, uid)
    if step_id == trajectory.LAST and not steps:
        return {"id": None}
    chain = chain_of(uid, step_id, steps)
    step = chain[-1]
    statements = trajectory.OF_STEP if "tokens" in parts else {"added": contexts.ADDED}
    found = await ask_all(console.reader, statements, {**place, **contexts.of_chain(chain)})
    context = whole(chain, found["added"])
    told: dict[str, Any] = {"id": step["step_id"]}
    if "messages" in parts:
        told["messages"] = context["messages"]
    if "tokens" in parts:
        told |= signals.read(step, context, found["samples"], found["stats"], found["annotations"])
        told["texts"] = await console.texts.of(step["model"], told["ids"])
    return told


async def steps_of(reader: Reader, uid: str) -> tuple[dict[str, Any], list[Row]]:
    """The parameters of questions about a trajectory, and its steps. Raises NotFound."""
    place = await place_of(reader, uid)
    return place, await reader.ask(contexts.STEPS, place)


def chain_of(uid: str, step_id: str, steps: list[Row]) -> Sequence[Mapping[str, Any]]:
    """The steps that a step's context goes through, it last. Raises NotFound."""
    step = trajectory.find_step(step_id, steps)
    if step is None:
        raise NotFound(f"the pool has no step {step_id} of {uid}")
    return contexts.chain_of(step, steps) or _broken(step_id)


def whole(chain: Sequence[Mapping[str, Any]], added: list[Row]) -> Row:
    """The context behind a chain of steps. Raises NotFound."""
    return contexts.restore(chain, added) or _broken(chain[-1]["step_id"])


def _broken(step_id: str) -> Never:
    raise NotFound(f"the context of step {step_id} cannot be restored: a step that it goes on from is missing")


@routes.get("/trajectories/{uid}/forest.json")
async def forest_of_trajectory(request: Request, uid: str) -> Response:
    reader = console_of(request).reader
    found = await ask_all(
        reader, {"steps": forest.OF_TRAJECTORY, "rewards": forest.REWARD}, await place_of(reader, uid)
    )
    rewards = {row["trajectory_uid"]: row["reward"] for row in found["rewards"]}
    return answer(await asyncio.to_thread(forest.draw, found["steps"], rewards))


@routes.get("/diff.json")
async def diff(request: Request, left: str, left_step: str, right: str, right_step: str) -> Response:
    """Two contexts beside each other: step `left_step` of trajectory `left`, and the right ones."""
    console = console_of(request)
    one, other = await asyncio.gather(
        whole_context(console.reader, left, left_step), whole_context(console.reader, right, right_step)
    )
    links = await console.reader.ask(diffs.LINKS, {**await place_of(console.reader, right), "step": right_step})
    shaped = await asyncio.to_thread(diffs.shape, [(left, left_step, one), (right, right_step, other)], links)
    texts = await console.texts.of(other["model"], [*shaped["left_ids"], *shaped["right_ids"]])
    return answer({**shaped, "texts": texts})


async def whole_context(reader: Reader, uid: str, step_id: str) -> Row:
    """The context of a step, with the model that answered it. Raises NotFound."""
    place, steps = await steps_of(reader, uid)
    chain = chain_of(uid, step_id, steps)
    added = await reader.ask(contexts.ADDED, {**place, **contexts.of_chain(chain)})
    return {**whole(chain, added), "model": chain[-1]["model"]}


# --------------------------------------------------------------------------------------------------------------- groups


@routes.get("/groups.json")
async def list_groups(request: Request, q: str = "", after: str | None = None, limit: int = paging.PAGE) -> Response:
    reader = console_of(request).reader
    rows = await reader.ask(*groups.page(q, after, limit))
    kept = rows[: paging.limit(limit)]
    shown = await with_members(reader, kept)
    return answer({"rows": shown, "next": shown[-1]["cursor"] if len(rows) > len(kept) else None})


async def with_members(reader: Reader, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the list as the page shows them."""
    return groups.shape_list(rows, await ask_all(reader, groups.DETAILS, groups.details(rows))) if rows else []


async def look_for_groups(reader: Reader, text: str, ends: dict[groups.Place, int] | None) -> Look:
    """News of a filter of groups, for the feed."""
    now = {groups.place_of(row): int(row["last"]) for row in await reader.ask(groups.ENDS)}
    if ends is None or now == ends:
        return [], now
    rows = await reader.ask(*groups.news(text, ends, now))
    whole = groups.place_of(rows[-1]) if rows else ("", 0)
    return await with_members(reader, rows), looks.read_to(rows, whole, ends, now)


@routes.get("/groups/fields.json")
async def list_group_fields() -> Response:
    return answer({"fields": filters.describe(groups.FIELDS)})


@routes.get("/groups/{run}/{group}.json")
async def one_group(request: Request, run: str, group: str, q: str = "") -> Response:
    reader = console_of(request).reader
    found, beside = await asyncio.gather(
        ask_all(reader, groups.ONE, groups.place(run, group)), reader.ask(*groups.neighbours(q, run, group))
    )
    shaped = groups.shape(run, group, found, beside)
    if shaped is None:
        raise NotFound(f"the pool has no group {group} of the run {run}: its id may be wrong, or none of it has ended")
    return answer(shaped)


@routes.get("/groups/{run}/{group}/forest.json")
async def forest_of_group(request: Request, run: str, group: str) -> Response:
    found = await ask_all(
        console_of(request).reader, {"steps": forest.OF_GROUP, "rewards": forest.REWARDS}, groups.place(run, group)
    )
    rewards = {row["trajectory_uid"]: row["reward"] for row in found["rewards"]}
    return answer(await asyncio.to_thread(forest.draw, found["steps"], rewards))


# --------------------------------------------------------------------------------------------------------------- events


QUESTIONS: Final[Mapping[str, Callable[[str], Any]]] = {
    "trajectories": trajectories.question,
    "groups": groups.question,
}
"""The lists that are followed live, and what reads their filters."""


@routes.get("/events")
async def events(
    request: Request, q: str | None = None, status: bool = False, after: str | None = None, of: str = "trajectories"
) -> Response:
    """Server-sent events: `rows` of a filter (q; empty is all) of trajectories or groups (of), `status` of the flow; resumes
    behind Last-Event-ID."""
    feed = console_of(request).feed
    if of not in QUESTIONS:
        raise UserError(f"news are of {' or '.join(QUESTIONS)}, not of {of[:40]!r}")
    if q is not None:
        QUESTIONS[of](q)
    feed.check(q, of)
    last = request.headers.get("last-event-id") or after
    return StreamingResponse(feed.follow(q, status, last, of), media_type="text/event-stream")
