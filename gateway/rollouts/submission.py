"""Steps that a white-box agent sampled itself are checked as a whole and recorded as one batch.

Invariants: nothing is written before every step of a request was found right; blobs are durable before the facts that refer to
them; the answer is given after the broker acknowledged all; a request sent again is the same facts.
"""

import asyncio
from dataclasses import dataclass, field

from claw_r1.blobs import Blobs
from claw_r1.events import BlobRef, Event, Step
from claw_r1.keys import Key
from gateway.calls.chains import ChainMemory, Chains, Context, Delta
from gateway.calls.parts import Content
from gateway.durable.recorder import Recorder
from gateway.places import Session
from gateway.rollouts.bodies import CompleteTrajectory, RewardBody, SubmitSteps, Submitted, SubmittedStep
from gateway.rollouts.facts import completion, reward_of
from gateway.rollouts.registrar import ChainKey, Registrar, is_self_reported, now
from gateway.rollouts.submitted import check_submitted, contents, context_of, shortest, submitted_step


@dataclass(slots=True)
class _Batch:
    """What one request will write."""

    at: float
    self_reported: bool
    facts: list[Event] = field(default_factory=list)
    steps: list[tuple[Session, Step, Context, Delta]] = field(default_factory=list)
    together: dict[ChainKey, Chains] = field(default_factory=dict)
    """The chains that the request's own steps make."""
    ended: list[Session] = field(default_factory=list)


class Submissions:
    """Takes steps in."""

    def __init__(self, recorder: Recorder, registrar: Registrar, memory: ChainMemory[ChainKey], blobs: Blobs) -> None:
        self._recorder = recorder
        self._registrar = registrar
        self._memory = memory
        self._blobs = blobs

    async def submit(self, body: SubmitSteps, channel: str | None, key: Key | None) -> Submitted:
        """Raises Refusal that names the step and the field; then nothing of the request was recorded."""
        found = []
        for number, step in enumerate(body.steps):
            check_submitted(number, step)
            found.append((context_of(number, step), *contents(number, step)))
        placed: dict[tuple[str | None, str | None, str | None], tuple[Session, bool]] = {}
        for step in body.steps:
            named = (step.trajectory_uid, step.prompt_uid, step.run_id)
            if named not in placed:
                placed[named] = await self._registrar.find(key, *named[:2], run_id=step.run_id, channel=channel)
        batch = _Batch(now(), is_self_reported(key))
        for number, (step, (context, media, experts)) in enumerate(zip(body.steps, found, strict=True)):
            session, _ = placed[step.trajectory_uid, step.prompt_uid, step.run_id]
            refs = [await self._store(content) for content in media]
            self._add(batch, number, step, session, context, refs, experts and await self._store(experts))
        for session in {session for session, fresh in placed.values() if fresh}:
            await self._registrar.write(session)
        if batch.facts:
            await self._recorder.publish(*batch.facts)
        for session, fact, context, delta in batch.steps:
            self._memory.add(_key(session), fact.step_id, context, delta, fact.response_ids, fact.reply)
        for session in batch.ended:
            await self._registrar.forget(session)
        return Submitted(accepted=len(batch.steps), step_ids=[fact.step_id for _, fact, _, _ in batch.steps])

    async def _store(self, content: Content) -> BlobRef:
        return await asyncio.to_thread(self._blobs.put, content.data, content.kind)

    def _add(
        self,
        batch: _Batch,
        number: int,
        step: SubmittedStep,
        session: Session,
        context: Context,
        media: list[BlobRef],
        experts: BlobRef | None,
    ) -> None:
        together = batch.together.setdefault(_key(session), Chains())
        delta = shortest(context, self._memory.of(_key(session)), together)
        fact = submitted_step(number, step, session, delta, media, experts, batch.at)
        together.add(fact.step_id, context, delta, fact.response_ids, fact.reply)
        batch.steps.append((session, fact, context, delta))
        batch.facts.append(fact)
        if step.reward is not None:
            reward = RewardBody(trajectory_uid=session.trajectory_uid, step_id=fact.step_id, value=step.reward)
            place = (session.run_id, session.prompt_uid)
            batch.facts.append(reward_of(reward, *place, batch.at, self_reported=batch.self_reported))
        if step.is_last:
            batch.facts += completion(session, CompleteTrajectory(), batch.at)
            batch.ended.append(session)


def _key(session: Session) -> ChainKey:
    return (session.run_id, session.prompt_uid, session.trajectory_uid)
