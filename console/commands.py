"""What a screen cannot do itself is done by `claw`, in a process of its own: batches made again, the next one, exports.

Invariants: one at a time, since each takes whole batches into memory; each has a deadline; none outlives its request.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any, Final

from claw_r1.errors import Overloaded, UserError
from claw_r1.settings import ConsoleSettings

ENTRY: Final = ("-P", "-m", "claw_r1.cli.entry")
LOOK: Final = 0.5
"""Seconds between two looks at what a process has done so far."""
Watch = Callable[[], str | None]
"""Why it must not go on, None if it may."""


class Commands:
    """`claw` against the console's broker and pool."""

    def __init__(self, settings: ConsoleSettings) -> None:
        self._places = {
            "CLAW_KAFKA": settings.kafka,
            "CLAW_CLICKHOUSE": settings.clickhouse,
            "CLAW_DATABASE": settings.database,
        }
        self._busy = asyncio.Lock()

    async def run(self, *words: str, wait: float, what: str, watch: Watch = lambda: None) -> Any:
        """What `claw WORDS --json` says; `what` names the work in errors, as in "batch grpo/7 is not made again".

        Raises Overloaded if another runs or the deadline passes, UserError with the reason if it fails.
        """
        if self._busy.locked():
            raise Overloaded("the console makes something else now, a batch or an export: try again in a moment")
        async with self._busy:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *ENTRY, *words, "--json"),
                env={**os.environ, **self._places},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            talk = asyncio.ensure_future(process.communicate())
            try:
                async with asyncio.timeout(wait):
                    while not talk.done():
                        await asyncio.wait([talk], timeout=LOOK)
                        if (why := watch()) is not None:
                            raise UserError(f"{what}: {why}")
                said, error = talk.result()
            except TimeoutError as late:
                raise Overloaded(f"{what} within {wait:g} s: `claw {' '.join(words[:2])}` takes its time") from late
            finally:
                if process.returncode is None:
                    process.kill()
                await asyncio.wait([talk])
        if process.returncode != 0:
            last = error.decode(errors="replace").strip().rpartition("error: ")[2]
            raise UserError(f"{what}: {last[-2000:]}")
        return json.loads(said)
