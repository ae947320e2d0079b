"""A call becomes facts: announced before it goes to an engine, and answered by a Step for each choice, whatever happens.

Invariants: a step is committed when the broker (or what stands in for it) has acknowledged the announcement and the step;
only then may its end be shown.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from claw_r1 import topics
from claw_r1.blobs import Blobs
from claw_r1.errors import InvalidRecord, RetryableError
from claw_r1.events import Step, StepStarted, Timings
from claw_r1.ids import derived_id
from claw_r1.metrics import GATEWAY_CAPTURE_FAILED, GATEWAY_MASKED
from claw_r1.trainable import MENDS, why_masked
from gateway.calls.capture import MENDS as FAULT_MENDS
from gateway.calls.capture import UNKNOWN, Call, Recorded, Served, Status, make_steps, step_ids
from gateway.calls.chains import ChainMemory
from gateway.calls.parts import experts_ref, flat_experts_ref
from gateway.calls.tito import sense
from gateway.dialects.captured import Captured, Choice
from gateway.durable.recorder import Recorder
from gateway.places import Session
from gateway.replies import Refusal, unavailable
from gateway.sessions import Sessions

log = logging.getLogger("claw.gateway")

MAX_WARNINGS: Final = 1000
"""Runs and reasons of which it is held that they were warned of; of one that is forgotten it is said again."""

ChainKey = tuple[str, str, str]


ANNOUNCE_WITHIN: Final = 0.02
"""Seconds for which an announcement waits, so that a call that ends at once is one request to the broker and not two."""


@dataclass(slots=True)
class Attempt:
    """One try of a call at the engines, of which each choice is a step."""

    call: Call
    received: float
    timer: asyncio.TimerHandle | None = None
    """When it is announced, unless it is over before."""
    announcing: asyncio.Task[None] | None = None
    on_its_way: bool = False
    """The producer, or the spool, has the announcement: what is handed over from now on comes after it."""
    first_byte: float | None = None
    served: Served = UNKNOWN
    engine: str | None = None
    steps: list[Recorded] = field(default_factory=list)


class Steps:
    """Announces and commits."""

    def __init__(self, recorder: Recorder, sessions: Sessions, memory: ChainMemory[ChainKey], blobs: Blobs) -> None:
        self._recorder = recorder
        self._blobs = blobs
        self._sessions = sessions
        self._memory = memory
        self._warned: set[tuple[str, str]] = set()
        self._masks: dict[tuple[object, ...], str | None] = {}
        """Why whole steps are masked, by what decides it where capture found no fault; the mode of log-probs is a setting."""

    def announce(self, call: Call, fresh: Session | None, received: float) -> Attempt:
        """Say soon that the call's steps begin; `fresh` is its place, if the index does not have it yet.

        The acknowledgement overlaps the engine's time: `announced` and the commit wait for it.
        """
        attempt = Attempt(call, received)
        if fresh is None:
            attempt.timer = asyncio.get_running_loop().call_later(ANNOUNCE_WITHIN, self._begin, attempt, None)
        else:
            self._begin(attempt, fresh)
        return attempt

    async def announced(self, attempt: Attempt) -> None:
        """Return when the announcement is durable: before that nobody may see anything of the call.

        Raises Refusal(503).
        """
        try:
            await asyncio.shield(
                self._begin(attempt, None)
            )  # whoever leaves meanwhile leaves a call that was announced
        except RetryableError as error:
            raise not_recorded(error) from error

    def _begin(self, attempt: Attempt, fresh: Session | None) -> asyncio.Task[None]:
        if attempt.announcing is None:
            if attempt.timer is not None:
                attempt.timer.cancel()
            attempt.announcing = asyncio.create_task(self._announce(attempt, fresh))
        return attempt.announcing

    async def _announce(self, attempt: Attempt, fresh: Session | None) -> None:
        if fresh is not None:
            key = fresh.trajectory_uid.encode()
            await self._recorder.publish(fresh.index, topic=topics.TRAJECTORY_INDEX, key=key)
            self._sessions.put(fresh)
        durable = await self._recorder.hand_over(*_announcement(attempt), traceparent=attempt.call.traceparent)
        attempt.on_its_way = True
        if durable is not None:
            await durable

    async def commit(self, attempt: Attempt, captured: Captured, status: Status, reasons: tuple[str, ...] = ()) -> None:
        """Return when every step of the attempt is durable.

        Raises Refusal: 503 if it is not, 413 if a step is larger than a record may be.
        """
        call = attempt.call
        key = (call.run_id, call.prompt_uid, call.trajectory_uid)
        done = time.time()
        try:
            for choice in captured.choices:
                if choice.routed_experts is not None:
                    await self._store_experts(choice)
        except RetryableError as error:
            await self._commit_without_content(attempt, "not_recorded")
            raise not_recorded(error) from error
        recorded = make_steps(
            call,
            captured,
            self._memory.of(key),
            status=status,
            timings=Timings(received=attempt.received, first_byte=attempt.first_byte, done=done),
            engine=attempt.engine,
            at=done,
            reasons=reasons,
            served=attempt.served,
        )
        try:
            await self._record(attempt, [r.step for r in recorded])
        except RetryableError as error:
            raise not_recorded(error) from error
        except InvalidRecord as error:
            if attempt.announcing is None or not attempt.announcing.done() or attempt.announcing.exception() is None:
                await self._commit_without_content(attempt, "too_large")  # else nothing was announced
            raise Refusal(413, f"the step is too large to be recorded: {error}", code="step_too_large") from error
        for r in recorded:
            if r.context is not None:
                said = None if call.senses is None or r.step.reply is None else (*call.senses, sense(r.step.reply))
                self._memory.add(key, r.step.step_id, r.context, r.delta, r.step.response_ids, r.step.reply, said)
            if r.step.status == "complete" and call.role == "policy":
                self._warn(call, r.step)
        attempt.steps = recorded

    async def _record(self, attempt: Attempt, steps: Sequence[Step]) -> None:
        """Return when the announcement and the steps behind it are durable. Raises what the recorder does."""
        if attempt.announcing is None and attempt.timer is not None:
            attempt.timer.cancel()
            await self._recorder.publish(*_announcement(attempt), *steps, traceparent=attempt.call.traceparent)
            attempt.timer = None
            return
        announcing = self._begin(attempt, None)
        if not attempt.on_its_way:
            await announcing
        durable = await self._recorder.hand_over(*steps, traceparent=attempt.call.traceparent)
        await announcing
        if durable is not None:
            await durable

    async def _store_experts(self, choice: Choice) -> None:
        try:
            value = msgspec.json.decode(choice.routed_experts or b"")
            layout = choice.experts_layout
            data, ref = experts_ref(value) if layout is None else flat_experts_ref(value, *layout)
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            choice.faults += ("bad_routed_experts",)
            return
        choice.experts = await asyncio.to_thread(self._blobs.put, data, ref.kind)

    async def _commit_without_content(self, attempt: Attempt, reason: str) -> None:
        """Answer the announcement of a step that no record or no store can hold."""
        bare = make_steps(
            attempt.call,
            Captured(),
            self._memory.of(("", "", "")),
            status="failed",
            timings=Timings(received=attempt.received),
            engine=attempt.engine,
            at=time.time(),
            reasons=(reason,),
        )
        empty = {"new_messages": None, "request": None}
        try:
            await self._record(attempt, [r.step.model_copy(update=empty) for r in bare])
        except RetryableError as error:
            raise not_recorded(error) from error

    def _warn(self, call: Call, step: Step) -> None:
        """Count what keeps a step from being trained, and say once per run and reason what mends it."""
        for reason in step.capture.reasons:
            GATEWAY_CAPTURE_FAILED.labels(reason).inc()
            self._say(
                call.run_id, "a step cannot be trained", reason, FAULT_MENDS.get(reason, "see the step's reasons")
            )
        if not step.capture.ok:
            return
        sampling = step.sampling
        how = (step.finish_reason, sampling.temperature, sampling.top_p, sampling.top_k, sampling.guided)
        if how not in self._masks:
            if len(self._masks) >= MAX_WARNINGS:
                self._masks.clear()
            self._masks[how] = why_masked(step)
        unknown = step.policy_version is None and not step.version_spans
        masked = self._masks[how] or ("unknown_version" if unknown else None)
        if masked in MENDS:
            GATEWAY_MASKED.labels(masked).inc()
            self._say(call.run_id, "a step is trained only by recipes that allow it", masked, MENDS[masked])

    def _say(self, run_id: str, message: str, reason: str, mend: str) -> None:
        if (run_id, reason) not in self._warned:
            if len(self._warned) >= MAX_WARNINGS:
                self._warned.clear()
            self._warned.add((run_id, reason))
            log.warning(message, extra={"run_id": run_id, "reason": reason, "mend": mend})


def _announcement(attempt: Attempt) -> list[StepStarted]:
    call = attempt.call
    return [
        StepStarted(
            fact_id=derived_id("started", step_id),
            step_id=step_id,
            run_id=call.run_id,
            prompt_uid=call.prompt_uid,
            trajectory_uid=call.trajectory_uid,
            at=attempt.received,
            model=call.model,
        )
        for step_id in step_ids(call)
    ]


def not_recorded(error: RetryableError) -> Refusal:
    """503: nothing came of the call, since it is not durable."""
    return unavailable(f"the call could not be recorded, so it has no result: {error}", code="not_recorded")
