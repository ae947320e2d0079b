"""A conversation that goes on is sent as the tokens that are held: the engine is asked to render what is new.

Invariants: whatever does not fit, or does not come in time, sends the request as the agent wrote it, and is counted.
"""

import asyncio
import logging
from dataclasses import replace
from typing import Final

import aiohttp

from claw_r1.metrics import GATEWAY_TOKEN_IN
from gateway.calls.chains import Chains
from gateway.calls.tito import extend, goes_on_itself, render_requests, rendered, sense, setting, with_tokens
from gateway.dialects.base import Asked
from gateway.replies import Refusal
from gateway.upstream.fleet import Fleet
from gateway.upstream.models import Placement

log = logging.getLogger("claw.gateway.token_in")

RENDER_TIMEOUT: Final = 10.0
"""Longest wait for the engine's rendering, seconds."""
MAX_RENDERED_BYTES: Final = 64 * 2**20


def token_field(fleet: Fleet, placement: Placement, *, renders: bool = False) -> str | None:
    """How all engines that may serve a call take tokens; None if one cannot, or, with `renders`, has no `/tokenize`."""
    known = [engine.capabilities for engine in fleet.able(placement)]
    fields = {None if can is None or (renders and not can.tokenize) else can.token_in for can in known}
    return fields.pop() if len(fields) == 1 else None


class TokenIn:
    """Sends tokens where a run wants it and its engines can."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def extend(
        self, asked: Asked, chains: Chains, trajectory_uid: str, placement: Placement
    ) -> tuple[Asked, tuple[bytes, ...]]:
        """The call with its prompt as tokens if that is possible, and what its setting and its messages mean."""
        senses = (setting(asked), *(sense(message) for message in asked.messages))
        held = chains.held(senses)
        if held is None:
            GATEWAY_TOKEN_IN.labels("new" if not chains.bytes else "rewritten").inc()
            return asked, senses
        field = None if goes_on_itself(asked) else token_field(self._fleet, placement, renders=True)
        if field is None:
            GATEWAY_TOKEN_IN.labels("unable").inc()
            return asked, senses
        kept, tokens, response = held
        whole, before = await asyncio.gather(
            *(self._render(body, trajectory_uid, placement) for body in render_requests(asked, kept - 1))
        )
        ids = None if whole is None or before is None else extend(tokens, response, whole, before)
        if ids is None:
            GATEWAY_TOKEN_IN.labels("unfit").inc()
            return asked, senses
        GATEWAY_TOKEN_IN.labels("extended").inc()
        return replace(asked, upstream_body=with_tokens(asked, ids, field)), senses

    async def _render(self, request: bytes, trajectory_uid: str, placement: Placement) -> list[int] | None:
        try:
            async with asyncio.timeout(RENDER_TIMEOUT):
                _, response = await self._fleet.engines.send(
                    "POST",
                    "/tokenize",
                    key=trajectory_uid,
                    headers=[(b"content-type", b"application/json")],
                    body=request,
                    among=placement.engines,
                )
                async with response:
                    if response.status != 200:
                        return None
                    body = await response.read(MAX_RENDERED_BYTES)
                    return None if body is None else rendered(body)
        except (Refusal, aiohttp.ClientError, TimeoutError) as error:
            log.warning("an engine did not render a conversation", extra={"error": str(error)})
            return None
