"""What a caller of the rollout API says becomes facts, with ids that a repeated request gives again.

Invariants: no clock and no broker here; the same statement about the same thing has the same fact id.
"""

from typing import Any, Final

import msgspec

from claw_r1.errors import InvalidRecord
from claw_r1.events import Annotation, Decision, GroupCancel, GroupOpen, Reward, TrajectoryEnd, TrajectoryOpen
from claw_r1.ids import derived_id
from gateway.places import Session
from gateway.rollouts.bodies import (
    AnnotationBody,
    CompleteTrajectory,
    DecisionBody,
    FeedbackBody,
    GroupBody,
    RewardBody,
    packed_floats,
)

LABELS: Final = {
    "up": 1.0,
    "good": 1.0,
    "accepted": 1.0,
    "thanks": 1.0,
    "neutral": 0.0,
    "down": -1.0,
    "bad": -1.0,
    "rejected": -1.0,
    "correction": -1.0,
}
"""What a label of feedback is worth as a reward; any other is a tag."""


def _digest(value: Any) -> bytes:
    """Raises InvalidRecord for what JSON cannot say: text that is not Unicode, too deep a nest."""
    try:
        return msgspec.json.encode(value, order="deterministic")
    except (ValueError, OverflowError, RecursionError, TypeError) as error:
        raise InvalidRecord("unencodable", f"what was sent cannot be recorded: {error}") from error


def trajectory_open(session: Session, task_id: str | None, metadata: dict[str, Any], at: float) -> TrajectoryOpen:
    """A registration; another one of the same trajectory with other content is another fact."""
    content = _digest([session.channel, task_id, metadata])
    return TrajectoryOpen(
        fact_id=derived_id("open", session.run_id, session.prompt_uid, session.trajectory_uid, content),
        run_id=session.run_id,
        prompt_uid=session.prompt_uid,
        trajectory_uid=session.trajectory_uid,
        at=at,
        channel=session.channel,
        task_id=task_id,
        metadata=metadata,
    )


def group_open(body: GroupBody, run_id: str, prompt_uid: str, at: float) -> GroupOpen:
    """An announcement; only one of another size is another fact."""
    return GroupOpen(
        fact_id=derived_id("group-open", run_id, prompt_uid, body.size),
        run_id=run_id,
        prompt_uid=prompt_uid,
        at=at,
        size=body.size,
        channel=body.channel,
        task_id=body.task_id,
        metadata=body.metadata,
    )


def group_cancel(run_id: str, prompt_uid: str, reason: str | None, at: float) -> GroupCancel:
    """A group is cancelled once, whatever the reasons."""
    return GroupCancel(
        fact_id=derived_id("group-cancel", run_id, prompt_uid),
        run_id=run_id,
        prompt_uid=prompt_uid,
        at=at,
        reason=reason,
    )


def reward_of(body: RewardBody, run_id: str, prompt_uid: str, at: float, *, self_reported: bool = False) -> Reward:
    """A source's revision of a reward is one fact, whatever its value: to change it, send a higher revision."""
    target = (run_id, prompt_uid, body.trajectory_uid, body.step_id)
    return Reward(
        fact_id=derived_id("reward", *target, body.source, body.revision),
        run_id=run_id,
        prompt_uid=prompt_uid,
        trajectory_uid=body.trajectory_uid,
        step_id=body.step_id,
        at=at,
        source=body.source,
        value=body.value,
        components=body.components,
        revision=body.revision,
        self_reported=self_reported,
        metadata=body.metadata,
    )


def annotation_of(body: AnnotationBody, session: Session, at: float) -> Annotation:
    """A source's revision of a step's array is one fact."""
    place = (session.run_id, session.prompt_uid, session.trajectory_uid, body.step_id)
    return Annotation(
        fact_id=derived_id("annotation", *place, body.name, body.source, body.revision),
        run_id=session.run_id,
        prompt_uid=session.prompt_uid,
        trajectory_uid=session.trajectory_uid,
        step_id=body.step_id,
        at=at,
        name=body.name,
        source=body.source,
        values=packed_floats(body.values),
        revision=body.revision,
    )


def decision_of(body: DecisionBody, decision_id: str, run_id: str, at: float) -> Decision:
    """`decision_id` names the decision: the same one is the same fact."""
    return Decision(
        fact_id=derived_id("decision", decision_id, run_id, body.prompt_uid, body.trajectory_uid),
        run_id=run_id,
        prompt_uid=body.prompt_uid,
        trajectory_uid=body.trajectory_uid,
        step_id=body.step_id,
        at=at,
        action=body.action,
        value=body.value,
        undoes=body.undoes,
        author=body.author,
        reason=body.reason,
    )


def feedback_of(
    body: FeedbackBody, feedback_id: str, session: Session, step_id: str | None, at: float, *, self_reported: bool
) -> Reward | Decision:
    """A value, or a label that has one, is a reward, of which the latest of its source counts; else a tag or a note.

    `feedback_id` names the feedback: the same one is the same fact.
    """
    value = body.value if body.value is not None else LABELS.get(body.label or "")
    fact_id = derived_id("feedback", session.run_id, session.prompt_uid, feedback_id)
    said = {"label": body.label, "text": body.text, "author": body.author, "response_id": body.response_id}
    if value is not None:
        return Reward(
            fact_id=fact_id,
            run_id=session.run_id,
            prompt_uid=session.prompt_uid,
            trajectory_uid=session.trajectory_uid,
            step_id=step_id,
            at=at,
            source=body.source,
            value=value,
            revision=int(at * 1e6),  # a later word of the same source takes the place of an earlier one
            self_reported=self_reported,
            metadata={name: word for name, word in said.items() if word is not None},
        )
    return Decision(
        fact_id=fact_id,
        run_id=session.run_id,
        prompt_uid=session.prompt_uid,
        trajectory_uid=session.trajectory_uid,
        step_id=step_id,
        at=at,
        action="note" if body.label is None else "tag",
        value=body.text if body.label is None else body.label,
        author=body.author or body.source,
        reason=None if body.label is None else body.text,
    )


def completion(
    session: Session, body: CompleteTrajectory, at: float, *, self_reported: bool = False
) -> list[Reward | TrajectoryEnd]:
    """The reward, if there is one, then the end: in this order, so that the end finds its reward."""
    facts: list[Reward | TrajectoryEnd] = []
    if body.reward is not None:
        reward = RewardBody(trajectory_uid=session.trajectory_uid, value=body.reward)
        facts.append(reward_of(reward, session.run_id, session.prompt_uid, at, self_reported=self_reported))
    facts.append(
        TrajectoryEnd(
            fact_id=derived_id("end", session.run_id, session.prompt_uid, session.trajectory_uid),
            run_id=session.run_id,
            prompt_uid=session.prompt_uid,
            trajectory_uid=session.trajectory_uid,
            at=at,
            status=body.status,
            reason=body.reason,
        )
    )
    return facts
