"""A call as the agent made it becomes the call that goes to an engine: placed, with its media pinned, as its run wants it.

Invariants: nothing is announced before all of this is done; what is refused here has left no fact.
"""

from dataclasses import dataclass
from typing import Literal

from claw_r1.errors import RetryableError
from claw_r1.events import BlobRef
from claw_r1.metrics import GATEWAY_LEFT_OUT
from gateway.calls.capture import Call
from gateway.calls.chains import ChainMemory
from gateway.calls.media import Media
from gateway.calls.parts import hold_media
from gateway.calls.shaping import for_sglang, shape, with_messages
from gateway.calls.steps import ChainKey, not_recorded
from gateway.calls.token_in import TokenIn
from gateway.dialects.base import Asked
from gateway.places import Session
from gateway.rollouts.gate import Gate
from gateway.routes import Route
from gateway.sessions import Sessions
from gateway.upstream.fleet import Fleet
from gateway.upstream.models import Placement


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call that is ready to be announced."""

    asked: Asked
    call: Call
    placement: Placement
    unplaced: Session | None
    """Its place, if the trajectory index does not have it yet."""


class Preparation:
    """Prepares calls."""

    def __init__(
        self,
        sessions: Sessions,
        gate: Gate,
        fleet: Fleet,
        media: Media,
        memory: ChainMemory[ChainKey],
        log_probs_mode: Literal["raw", "processed"] | None,
    ) -> None:
        self._log_probs_mode = log_probs_mode
        self._sessions = sessions
        self._gate = gate
        self._fleet = fleet
        self._media = media
        self._memory = memory
        self._token_in = TokenIn(fleet)

    async def prepare(
        self, asked: Asked, route: Route, call_id: str, retry_of: str | None, repeats: bool, traceparent: str | None
    ) -> Prepared:
        """Raises Refusal: of the place, the model, the media; 429 for a new group that nobody wants now; 503 if the index or
        the blob store cannot be reached."""
        for name in asked.left_out:
            GATEWAY_LEFT_OUT.labels(name).inc()
        media: tuple[BlobRef, ...] = ()
        senses: tuple[bytes, ...] | None = None
        try:
            session, fresh = await self._place(route)
            placement = self._fleet.place(session.run_id, asked.model)
            if fresh:
                self._gate.check(session, admitted=route.admitted)
            if hold_media(asked.messages):
                pinned = await self._media.pin(asked.messages)
                asked = with_messages(asked, pinned.messages, pinned.recorded) if pinned.refs else asked
                media = pinned.refs
        except RetryableError as error:
            raise not_recorded(error) from error
        recorded = asked.messages
        config = self._fleet.models.config(session.run_id)
        asked = shape(asked, config)
        if self._is_sglang(placement):
            asked = for_sglang(asked)
        sampling = asked.sampling
        if self._log_probs_mode is not None:
            sampling = sampling.model_copy(update={"log_probs_mode": self._log_probs_mode})
        if config.tito and asked.messages and not media:
            chains = self._memory.of((session.run_id, session.prompt_uid, session.trajectory_uid))
            asked, senses = await self._token_in.extend(asked, chains, session.trajectory_uid, placement)
        call = Call(
            step_id=call_id,
            run_id=session.run_id,
            prompt_uid=session.prompt_uid,
            trajectory_uid=session.trajectory_uid,
            channel=session.channel,
            n=asked.n,
            model=asked.model,
            messages=recorded,
            request=asked.request,
            sampling=sampling,
            dialect=asked.dialect,
            role=placement.role,
            retry_of=retry_of,
            repeats=repeats,
            media=media,
            senses=senses,
            traceparent=traceparent,
        )
        return Prepared(asked, call, placement, session if fresh else None)

    def _is_sglang(self, placement: Placement) -> bool:
        """Whether every engine that may serve the call is an SGLang; a mixed fleet is asked in vLLM's words."""
        able = self._fleet.able(placement)
        return bool(able) and all(engine.speaks == "sglang" for engine in able)

    async def _place(self, route: Route) -> tuple[Session, bool]:
        assert route.trajectory_uid is not None
        assert route.prompt_uid is not None
        return await self._sessions.resolve(
            route.trajectory_uid, route.prompt_uid, run_id=route.run_id, channel=route.channel
        )
