"""The rest of an answer that an engine gave up is asked of an engine that takes tokens.

Invariants: an engine that is busy, as while its weights change, is asked again up to the bound for which calls are held;
whatever else does not fit gives None, and the call is tried anew or is an error.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from claw_r1.metrics import GATEWAY_CONTINUED
from gateway.calls.continuation import next_request
from gateway.calls.preparation import Prepared
from gateway.calls.token_in import token_field
from gateway.dialects.captured import Captured
from gateway.replies import Headers, Refusal
from gateway.upstream.engines import Engine
from gateway.upstream.fleet import Fleet
from gateway.upstream.wire import Reply

FIRST_WAIT: Final = 0.1
LONGEST_WAIT: Final = 2.0
"""Between two tries of an engine that is busy, seconds."""


class Resuming:
    """Asks for the rest of answers."""

    def __init__(self, fleet: Fleet, hold: float) -> None:
        self._fleet = fleet
        self._hold = hold

    def request(self, prepared: Prepared, captured: Captured, last: bytes, *, streamed: bool) -> bytes | None:
        """What is to be sent for the rest; None if no engine could go on as if the first had not stopped."""
        field = token_field(self._fleet, prepared.placement)
        if field is None:
            GATEWAY_CONTINUED.labels("unable").inc()
            return None
        request = None
        if not prepared.call.media:
            request = next_request(prepared.asked, captured, last, streamed=streamed, field=field)
        if request is None:
            GATEWAY_CONTINUED.labels("unfit").inc()
        return request

    async def send(
        self, prepared: Prepared, body: bytes, headers: Headers, chosen: Callable[[Engine], None], *, streamed: bool
    ) -> tuple[Engine, Reply] | None:
        """The engine that goes on, and the head of its answer; None if none does."""
        loop = asyncio.get_running_loop()
        until, wait = loop.time() + self._hold, FIRST_WAIT
        while True:
            try:
                engine, response = await self._fleet.engines.send(
                    "POST",
                    prepared.asked.api.path,
                    key=prepared.call.trajectory_uid,
                    headers=headers,
                    body=body,
                    among=prepared.placement.engines,
                    chosen=chosen,
                )
            except Refusal:
                break
            if response.status == 200 and (response.content_type == "text/event-stream") is streamed:
                return engine, response
            response.close()
            if response.status != 503 or loop.time() + wait > until:
                break
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)
        GATEWAY_CONTINUED.labels("refused").inc()
        return None
