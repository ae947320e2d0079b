"""Routes of the screen Curate: what decisions would do, decisions written, decisions taken back.

They go where `claw decide` and POST /decisions of the gateway send theirs: onto the log of events.
"""

import asyncio
import time
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from claw_r1.deciding import Subject, make_decisions, publish_decisions
from claw_r1.errors import UserError
from claw_r1.events import Decision
from console import curating
from console.screens import Console, answer, console_of, writable

routes: Final = APIRouter()
SOURCE: Final = "claw/console"


@routes.get("/curate.json")
async def queues() -> Response:
    names = ("name", "title", "q", "meaning")
    return answer({"queues": [dict(zip(names, queue, strict=True)) for queue in curating.QUEUES]})


@routes.post("/decisions/preview.json")
async def preview(request: Request, wanted: curating.Wanted, action: str = "veto") -> Response:
    """What an action would change; nothing is written."""
    return answer(await _foretell(console_of(request), wanted, action))


@routes.post("/decisions.json")
async def decide(request: Request, word: curating.Word) -> Response:
    """Write one decision for each trajectory (or group) that is meant."""
    console = writable(request)
    said = {"action": word.action, "value": curating.read_value(word), "reason": word.reason}
    said["author"] = word.author
    sql, parameters = curating.subjects(word)
    rows = await console.reader.ask(sql, parameters)
    if not rows:
        raise UserError("no trajectory is meant: the filter finds none any more")
    if len(rows) > curating.MOST:
        raise UserError(f"one call decides on {curating.MOST:,} at most: narrow the filter")
    if word.expect is not None and word.expect != len(rows):
        raise UserError(f"{len(rows):,} are meant now, and {word.expect:,} were shown: look again, then decide")
    foretold = await _foretell(console, word, word.action)
    found: list[Subject] = [(row["run_id"], row["prompt_uid"], row.get("trajectory_uid")) for row in rows]
    decisions = make_decisions(found, said, time.time())
    await publish_decisions(console.settings.kafka, decisions, source=SOURCE)
    return answer({"written": len(decisions), "words": foretold["words"], "decisions": [_place(d) for d in decisions]})


@routes.post("/decisions/undo.json")
async def undo(request: Request, wanted: curating.Undo) -> Response:
    """Take decisions back: an undo is a decision of its own, and can be undone."""
    console = writable(request)
    now = time.time()
    decisions = [
        made
        for place in wanted.of
        for made in make_decisions(
            [(place.run, place.prompt, place.trajectory)],
            {
                "action": "undo",
                "undoes": place.id,
                "step_id": place.step,
                "author": wanted.author,
                "reason": wanted.reason,
            },
            now,
        )
    ]
    await publish_decisions(console.settings.kafka, decisions, source=SOURCE)
    return answer({"written": len(decisions), "decisions": [_place(d) for d in decisions]})


def _place(decision: Decision) -> dict[str, Any]:
    return {
        "id": decision.fact_id,
        "run": decision.run_id,
        "prompt": decision.prompt_uid,
        "trajectory": decision.trajectory_uid,
        "step": decision.step_id,
    }


async def _foretell(console: Console, wanted: curating.Wanted, action: str) -> dict[str, Any]:
    asked = curating.preview(wanted)
    found = await asyncio.gather(*(console.reader.ask(sql, parameters) for sql, parameters in asked.values()))
    return curating.foretell(action, dict(zip(asked, found, strict=True)))
