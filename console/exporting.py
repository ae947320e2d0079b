"""Routes of exports: `claw export` makes the file of what was picked, and the page says what is in it before it is taken."""

import tempfile
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from claw_r1.errors import UserError
from console import exports
from console.screens import NotFound, answer, console_of

routes: Final = APIRouter()
WAIT: Final = 120.0
POOL_WAIT: Final = 15.0
"""Seconds that the sinks have to store what the log has now."""


@routes.get("/exports.json")
async def bounds() -> Response:
    """What a file may hold, and how much of it."""
    forms = [{"name": name, "meaning": meaning} for name, meaning in exports.FORMS.items()]
    return answer({"forms": forms, "most": exports.MOST, "most_bytes": exports.MOST_BYTES})


@routes.post("/exports.json")
async def export(request: Request, order: exports.Order) -> Response:
    """Make a file of JSON lines; what gave no row is counted by reason."""
    console = console_of(request)
    if not console.beside_log:
        raise UserError(
            "an export asks the broker how far the log is, and there is none beside this pool: `claw export` beside a stack"
        )
    (row,) = await console.reader.ask(*exports.count(order))
    meant = int(row["n"])
    if meant > exports.MOST:
        raise UserError(
            f"{meant:,} trajectories are meant, and one export takes {exports.MOST:,} at most: narrow the filter, or "
            "`claw export`, which has no bound"
        )
    folder = tempfile.TemporaryDirectory(prefix="claw-export-")
    to = Path(folder.name) / "rows"
    words = ["--to", str(to), "--form", order.form, "--format", "jsonl", "--wait", f"{POOL_WAIT:g}"]
    words += ["--sql", exports.question(order)] + (["--run", console.run] if console.run is not None else [])
    try:
        said = await console.commands.run(
            "export", *words, wait=WAIT, what="nothing is exported", watch=lambda: exports.so_far(Path(folder.name))
        )
    except BaseException:
        folder.cleanup()
        raise
    file = exports.File(folder, order.form)
    told = {name: said[name] for name in ("rows", "trajectories", "left_out")}
    return answer({**told, "meant": meant, "bytes": file.size, "file": f"/exports/{console.exports.keep(file)}.jsonl"})


@routes.get("/exports/{name}.jsonl")
async def fetch(request: Request, name: str) -> Response:
    """The file of an export."""
    file = console_of(request).exports.find(name)
    if file is None:
        raise NotFound("this file is gone: export again")
    headers = {
        "content-disposition": f'attachment; filename="trajectories-{file.form}.jsonl"',
        "content-length": str(file.size),
    }
    return StreamingResponse(file.read(), media_type="application/jsonl", headers=headers)
