"""A prompt's facts become its rollouts as a dataset shows them: steps with whole contexts, rewards and decisions in force.

Pure. Rewards, decisions and rows are made by the folds of the streams, so that a dataset says what training saw. Without a
recipe no source has a weight: the reward is the sum of the sources, unless a person said another.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from claw_r1.codec import restore_messages
from claw_r1.curation import Curation, curate, list_in_force
from claw_r1.datasets.lines import write_line
from claw_r1.datasets.selection import Member
from claw_r1.errors import InvalidRecord
from claw_r1.events import Decision, GroupFact, GroupOpen, Reward, Step, TrajectoryFact
from claw_r1.senses import sense
from streams.join import (
    DEFAULT_CHANNEL,
    RewardKey,
    TrajectoryState,
    add_reward,
    effective_rewards,
    is_number,
    order_steps,
    total,
)
from streams.merge import Merged, merge_steps

Message = dict[str, Any]


@dataclass(slots=True)
class Call:
    """A step with what the model was given, as messages."""

    step: Step
    index: int
    messages: list[Message] | None
    """None: not known, or its parent's are not."""
    reply: Message | None
    request: dict[str, Any]

    @property
    def conversation(self) -> list[Message] | None:
        """The messages and the reply."""
        return None if self.messages is None or self.reply is None else [*self.messages, self.reply]


@dataclass
class Rollout:
    """One trajectory."""

    member: Member
    channel: str
    task_id: str | None
    status: str | None
    metadata: dict[str, object]
    reward: float | None
    rewards: dict[str, float]
    curation: Curation
    calls: list[Call]
    placed: list[tuple[int, GroupFact]] = field(default_factory=list)
    """Its own facts and those of its prompt, with their places among all of the prompt's, in the order of the log."""
    digest: str = ""
    """SHA-256 of their lines."""

    @property
    def steps(self) -> int:
        return len(self.calls)

    def merge(self) -> Merged | None:
        """Its steps that have tokens, linked and merged; None if a context cannot be restored."""
        try:
            return merge_steps(call.step for call in self.calls if call.step.response_ids)
        except InvalidRecord:
            return None

    def leaves(self) -> list[Call]:
        """The complete calls whose conversation no other call goes on from, and that have a known one."""
        known = [call for call in self.calls if call.step.status == "complete" and call.conversation is not None]
        begun: set[bytes] = set()
        ends: list[tuple[Call, bytes]] = []
        for call in known:
            running = hashlib.blake2b(digest_size=16)
            for message in call.messages or ():
                begun.add(running.digest())
                running.update(_sense(message))
            begun.add(running.digest()) if call.messages else None
            running.update(_sense(call.reply))
            ends.append((call, running.digest()))
        found: dict[bytes, Call] = {}
        for call, end in ends:
            if end not in begun:
                found[end] = call  # of equal conversations the last
        return list(found.values())


def _sense(message: Message | None) -> bytes:
    return sense(msgspec.json.encode(message))


def gather(facts: Iterable[GroupFact], members: Sequence[Member]) -> list[Rollout]:
    """The rollouts of one prompt's members, in the members' order; `facts` in the order of the log."""
    facts = list(facts)
    opens = sorted((f for f in facts if isinstance(f, GroupOpen)), key=lambda f: f.fact_id)
    rewards: dict[RewardKey, Reward] = {}
    states = {member.trajectory_uid: TrajectoryState(member.trajectory_uid) for member in members}
    for fact in facts:
        if isinstance(fact, TrajectoryFact | Reward) and fact.trajectory_uid is not None:
            if (state := states.get(fact.trajectory_uid)) is not None:
                state.add(fact, 0.0)
        elif isinstance(fact, Reward):
            add_reward(rewards, fact)
    in_force = {
        group: list_in_force(f for f in facts if isinstance(f, Decision) and f.group_id in (None, group))
        for group in {member.group_id for member in members}
    }
    found = []
    for member in members:
        state = states[member.trajectory_uid]
        curation = curate(in_force[member.group_id], member.trajectory_uid)
        sources = effective_rewards(state.rewards, rewards)
        metadata: dict[str, object] = {}
        for open_ in opens:
            metadata |= open_.metadata
        rollout = Rollout(
            member=member,
            channel=state.channel or next((o.channel for o in opens if o.channel), DEFAULT_CHANNEL),
            task_id=state.task_id or next((o.task_id for o in opens if o.task_id), None),
            status=None if state.end is None else state.end.status,
            metadata=metadata | state.metadata,
            reward=_reward(curation, [r.value for r in sources]),
            rewards={r.source: r.value for r in sources},
            curation=curation,
            calls=_calls(state.steps.values()),
            placed=[(place, fact) for place, fact in enumerate(facts) if _concerns(fact, member)],
        )
        rollout.digest = hashlib.sha256(b"".join(write_line(fact) for _, fact in rollout.placed)).hexdigest()
        found.append(rollout)
    return found


def _concerns(fact: GroupFact, member: Member) -> bool:
    uid: str | None = getattr(fact, "trajectory_uid", None)
    return uid in (None, member.trajectory_uid)


def _reward(curation: Curation, values: Sequence[float]) -> float | None:
    value = curation.reward.value if curation.reward is not None else total(values) if values else None
    return value if is_number(value) else None


_NONE: Final[dict[str, Any]] = {}


def _calls(steps: Iterable[Step]) -> list[Call]:
    made: dict[str, Call] = {}
    for index, step in enumerate(order_steps(steps)):
        parent = made.get(step.parent_step_id or "")
        request = _decoded(step.request)
        if request is None and parent is not None:
            request = parent.request
        made[step.step_id] = Call(step, index, _messages(step, parent), _decoded(step.reply), request or _NONE)
    return list(made.values())


def _messages(step: Step, parent: Call | None) -> list[Message] | None:
    """The prompt as messages; a completion's has none."""
    try:
        before: list[object] | None = None
        if parent is not None and parent.messages is not None:
            before = [*parent.messages, *([] if parent.reply is None else [parent.reply])]
        messages: Any = restore_messages(step, before)
    except (InvalidRecord, ValueError, RecursionError):  # of JSON that cannot be read
        return None
    return messages if messages and all(isinstance(message, dict) for message in messages) else None


def _decoded(text: bytes | None) -> dict[str, Any] | None:
    try:
        value = None if text is None else msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
