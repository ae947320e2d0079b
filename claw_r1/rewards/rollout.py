"""A trajectory as a reward function sees it: its conversation, what is known of its task, and its steps where asked for.

Invariants: what cannot be restored is not shown as if it were empty; nothing here changes the trajectory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from claw_r1.errors import ClawError
from claw_r1.event_base import Json
from claw_r1.events import Trajectory
from claw_r1.recipes import EndStatus


class Missing(ClawError):
    """There is no reward, or no annotation, for this `reason`: it is counted, and never becomes 0.

    `retry` says whether the same call may succeed later.
    """

    def __init__(self, reason: str, message: str, *, retry: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry = retry


def text_of(message: Mapping[str, Any] | None) -> str:
    """The text of a message, whether its content is one string or a list of parts; empty if it has none."""
    content = (message or {}).get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(p.get("text") or "") for p in parts if isinstance(p, Mapping))


@dataclass(frozen=True)
class StepView:
    """One model call of a trajectory, with its whole prompt."""

    step_id: str
    prompt_ids: NDArray[np.uint32]
    response_ids: NDArray[np.uint32]
    messages: Sequence[Json] = ()
    """Of the request."""
    reply: Json | None = None
    """The assistant's message."""
    status: str = "complete"
    role: str = "policy"
    finish_reason: str | None = None
    media: bool = False
    """Whether the prompt holds pictures or sound, which token ids alone do not say."""

    @property
    def text(self) -> str:
        """Of the reply."""
        return text_of(self.reply)


@dataclass(frozen=True)
class Rollout:
    """One trajectory that ended."""

    run_id: str = ""
    prompt_uid: str = ""
    group_id: str = ""
    trajectory_uid: str = ""
    channel: str = ""
    task_id: str | None = None
    status: EndStatus = "completed"
    complete: bool = True
    """False: a step that was started never arrived."""
    messages: Sequence[Json] = ()
    """The last step's conversation, its reply included."""
    step_ids: tuple[str, ...] = ()
    steps: tuple[StepView, ...] = ()
    """In the order of the calls; empty unless the function asked for them."""
    metadata: Json = field(default_factory=dict)
    """What was said of the group and of the trajectory: ground truth, environment, seed, …"""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """Rewards that were there at the end, by source."""

    @property
    def answer(self) -> str:
        """The text of the last reply; empty if it only called tools. Raises Missing if the conversation is not known."""
        return text_of(self._last("assistant"))

    @property
    def question(self) -> str:
        """The text of the first message of the user. Raises Missing if the conversation is not known."""
        self._check_known()
        return text_of(next((m for m in self.messages if m.get("role") == "user"), None))

    @property
    def transcript(self) -> str:
        """The conversation as text, a paragraph a message. Raises Missing if it is not known."""
        self._check_known()
        return "\n\n".join(f"{m.get('role')}: {text_of(m)}" for m in self.messages)

    def _last(self, role: str) -> Json | None:
        self._check_known()
        return next((m for m in reversed(self.messages) if m.get("role") == role), None)

    def _check_known(self) -> None:
        if not self.messages:
            raise Missing("context_lost", "the trajectory's conversation is not known")


def rollout_of(trajectory: Trajectory, steps: Sequence[StepView] = ()) -> Rollout:
    """The rollout of an announced trajectory. What its messages are too large for is taken from the last of `steps`."""
    messages: list[Json] = []
    if trajectory.messages is not None:
        messages = msgspec.json.decode(trajectory.messages)
    elif steps:
        messages = [*steps[-1].messages, *([steps[-1].reply] if steps[-1].reply is not None else [])]
    return Rollout(
        run_id=trajectory.run_id,
        prompt_uid=trajectory.prompt_uid,
        group_id=trajectory.group_id,
        trajectory_uid=trajectory.trajectory_uid,
        channel=trajectory.channel,
        task_id=trajectory.task_id,
        status=trajectory.status,
        complete=trajectory.complete,
        messages=messages,
        step_ids=trajectory.step_ids,
        steps=tuple(steps),
        metadata=dict(trajectory.metadata),
        rewards={reward.source: reward.value for reward in trajectory.rewards},
    )
