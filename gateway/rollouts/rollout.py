"""What is said about trajectories beside their model calls — begin, end, reward, annotation, feedback, group — becomes facts.

Invariants: an answer is given only after the broker acknowledged the facts; a group is admitted before anything is said of it.
"""

from dataclasses import replace

import numpy as np

from claw_r1.events import Annotation, Decision, Reward
from claw_r1.ids import new_id
from claw_r1.keys import Key, Secrets, mint
from claw_r1.settings import GatewaySettings
from gateway.calls.feedback import Responses
from gateway.durable.recorder import Recorder
from gateway.places import Session
from gateway.replies import Refusal
from gateway.rollouts.bodies import (
    Accepted,
    AnnotationBody,
    CancelBody,
    CompleteTrajectory,
    Decided,
    DecisionBody,
    FeedbackBody,
    Group,
    GroupBody,
    InitTrajectory,
    Ok,
    RegisterTrajectory,
    RewardBody,
    Trajectory,
    packed_floats,
)
from gateway.rollouts.facts import (
    annotation_of,
    completion,
    decision_of,
    feedback_of,
    group_cancel,
    group_open,
    reward_of,
    trajectory_open,
)
from gateway.rollouts.gate import Gate
from gateway.rollouts.registrar import Registrar, is_admitted, is_self_reported, now


class Rollouts:
    """The rollout API's deeds."""

    def __init__(
        self,
        settings: GatewaySettings,
        recorder: Recorder,
        registrar: Registrar,
        responses: Responses,
        gate: Gate,
    ) -> None:
        self._recorder = recorder
        self._registrar = registrar
        self._responses = responses
        self._gate = gate
        self._secrets = Secrets.of(settings.secret)
        self._lifetime = settings.session_lifetime
        # Of the settings alone: the request's Host header is whatever its sender likes.
        self._public = (settings.public_url or f"http://{_reachable(settings.host)}:{settings.port}").rstrip("/")

    async def init(self, body: InitTrajectory, key: Key | None) -> Trajectory:
        prompt_uid = self._registrar.prompt_of(key, body.prompt_uid)
        at = now()
        session, fresh = await self._registrar.begin(
            key, body.trajectory_uid, prompt_uid or new_id(), run_id=body.run_id, channel=body.channel
        )
        # A caller that names no prompt may replace the one made here in its URL: nothing is said of it before it is used.
        unnamed = not (prompt_uid or body.channel or body.task_id or body.metadata or body.group_size)
        if fresh:
            session = replace(session, provisional=unnamed)
            self._gate.check(session, admitted=is_admitted(key))
            await self._registrar.write(session)
        if body.group_size is not None:
            group = GroupBody(size=body.group_size, channel=body.channel, task_id=body.task_id, metadata=body.metadata)
            await self._recorder.publish(group_open(group, session.run_id, session.prompt_uid, at))
        if not unnamed:
            await self._recorder.publish(trajectory_open(session, body.task_id, body.metadata, at))
        return self._answer(session, at)

    async def register(
        self, trajectory_uid: str | None, prompt_uid: str | None, body: RegisterTrajectory, key: Key | None
    ) -> Ok:
        session, fresh = await self._registrar.find(
            key, trajectory_uid, prompt_uid, run_id=body.run_id, channel=body.channel
        )
        if fresh:
            self._gate.check(session, admitted=is_admitted(key))
            await self._registrar.write(session)
        await self._recorder.publish(trajectory_open(session, body.task_id, body.metadata or {}, now()))
        return Ok()

    async def complete(
        self, trajectory_uid: str | None, prompt_uid: str | None, body: CompleteTrajectory, key: Key | None
    ) -> Ok:
        session, _ = await self._registrar.find(
            key, trajectory_uid, prompt_uid, run_id=body.run_id, channel=body.channel
        )
        facts = completion(session, body, now(), self_reported=is_self_reported(key))
        await self._registrar.end(session, *facts)
        return Ok()

    async def reward(self, bodies: list[RewardBody], key: Key | None) -> Accepted:
        facts = [await self._reward(body, key) for body in bodies]
        if facts:
            await self._recorder.publish(*facts)
        return Accepted(accepted=len(facts))

    async def _reward(self, body: RewardBody, key: Key | None) -> Reward:
        self_reported = is_self_reported(key)
        bound = key.trajectory_uid if key else None
        if body.trajectory_uid is None and body.step_id is None and body.prompt_uid is not None and bound is None:
            self._registrar.prompt_of(key, body.prompt_uid)
            run_id = self._registrar.run_of(key, body.run_id)
            return reward_of(body, run_id, body.prompt_uid, now(), self_reported=self_reported)
        if body.trajectory_uid is None and bound is None:
            what = "a reward needs a target: trajectory_uid (and step_id), or prompt_uid for a group"
            if body.step_id is not None:
                what = "a step's reward needs its trajectory_uid"
            raise Refusal(400, what, param="trajectory_uid", code="missing_field")
        session, _ = await self._registrar.find(key, body.trajectory_uid, body.prompt_uid, run_id=body.run_id)
        named = body.model_copy(update={"trajectory_uid": session.trajectory_uid})
        return reward_of(named, session.run_id, session.prompt_uid, now(), self_reported=self_reported)

    async def annotate(self, bodies: list[AnnotationBody], key: Key | None) -> Accepted:
        facts: list[Annotation] = []
        for number, body in enumerate(bodies):
            if not np.isfinite(np.frombuffer(packed_floats(body.values), "<f4")).all():
                place = f"{number}.values" if len(bodies) > 1 else "values"
                raise Refusal(
                    400, f"{place} has a value that is no finite 32-bit number", param=place, code="invalid_field"
                )
            session, _ = await self._registrar.find(key, body.trajectory_uid, body.prompt_uid, run_id=body.run_id)
            facts.append(annotation_of(body, session, now()))
        if facts:
            await self._recorder.publish(*facts)
        return Accepted(accepted=len(facts))

    async def feedback(self, body: FeedbackBody, key: Key | None) -> Accepted:
        if body.value is None and body.label is None and body.text is None:
            raise Refusal(400, "feedback is a value, a label or a text", param="value", code="missing_field")
        session, step_id = await self._origin(body, key)
        fact: Reward | Decision = feedback_of(
            body, body.feedback_id or new_id(), session, step_id, now(), self_reported=is_self_reported(key)
        )
        await self._recorder.publish(fact)
        return Accepted(accepted=1)

    async def decide(self, bodies: list[DecisionBody], key: Key | None) -> Decided:
        facts = [
            decision_of(body, body.decision_id or new_id(), self._registrar.run_of(key, body.run_id), now())
            for body in bodies
        ]
        if facts:
            await self._recorder.publish(*facts)
        return Decided(accepted=len(facts), decision_ids=[fact.fact_id for fact in facts])

    async def _origin(self, body: FeedbackBody, key: Key | None) -> tuple[Session, str | None]:
        """The step that feedback is about; without step_id and response_id, the trajectory."""
        step_id, trajectory_uid, prompt_uid, run_id = body.step_id, body.trajectory_uid, body.prompt_uid, body.run_id
        if step_id is None and body.response_id is not None:
            origin = self._responses.get(body.response_id)
            if origin is None:
                raise Refusal(
                    404,
                    "no reply of this id is known here (any more): send trajectory_uid and step_id, which the reply had as "
                    "its header x-claw-step-id",
                    param="response_id",
                    code="unknown_response",
                )
            step_id, trajectory_uid, prompt_uid = origin.step_id, origin.trajectory_uid, origin.prompt_uid
            run_id = origin.run_id
        session, _ = await self._registrar.find(key, trajectory_uid, prompt_uid, run_id=run_id)
        return session, step_id

    async def open_group(self, body: GroupBody, key: Key | None) -> Group:
        run_id = self._registrar.run_of(key, body.run_id)
        prompt_uid = self._registrar.prompt_of(key, body.prompt_uid) or new_id()
        channel = body.channel or (key.channel if key else None)
        await self._gate.open(run_id, prompt_uid, channel, admitted=is_admitted(key), size=body.size)
        await self._recorder.publish(group_open(body, run_id, prompt_uid, now()))
        return Group(prompt_uid=prompt_uid, run_id=run_id)

    async def cancel_group(self, prompt_uid: str, body: CancelBody, key: Key | None) -> Ok:
        self._registrar.prompt_of(key, prompt_uid)
        run_id = self._registrar.run_of(key, body.run_id)
        await self._recorder.publish(group_cancel(run_id, prompt_uid, body.reason, now()))
        return Ok()

    def _answer(self, session: Session, at: float) -> Trajectory:
        session_key = mint(
            self._secrets,
            scope="rollout",
            now=at,
            lifetime=self._lifetime,
            run_id=session.run_id,
            trajectory_uid=session.trajectory_uid,
            prompt_uid=session.prompt_uid,
            channel=session.channel,
            admitted=not session.provisional,
        )
        return Trajectory(
            trajectory_uid=session.trajectory_uid,
            prompt_uid=session.prompt_uid,
            run_id=session.run_id,
            channel=session.channel,
            base_url=f"{self._public}/{session.trajectory_uid}/{session.prompt_uid}/v1",
            session_key=session_key,
            expires_at=round(at + self._lifetime, 3),
        )


def _reachable(host: str) -> str:
    """An address that a client can use where the gateway listens on all of them."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, host)
