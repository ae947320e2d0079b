"""A trajectory that ended becomes what reward workers get of it: how it ended, its rewards until now, its last conversation."""

from collections.abc import Sequence

import msgspec

from claw_r1.codec import restore_messages
from claw_r1.errors import InvalidRecord
from claw_r1.events import EffectiveReward, Step, Trajectory
from streams.join import TrajectoryState, effective_rewards, order_steps
from streams.readiness import GroupState

MAX_MESSAGES_BYTES = 4 * 1024 * 1024
"""A longer conversation is left out of the Trajectory, which must fit into one record; the pool has it."""

_UNREADABLE = (InvalidRecord, ValueError, RecursionError)
"""msgspec's errors, and Python's of text that is not Unicode, are ValueErrors."""
MAX_COMPONENTS_BYTES = 2**20
"""Rewards with more components than that take are told without them; the pool has these too."""
MAX_REWARDS = 4_096
"""Of more sources no reward is told."""


def ended_trajectory(group: GroupState, t: TrajectoryState, partition: int, pos: int, now: float) -> Trajectory:
    """A trajectory of the group at stream time `now`; `pos` is the next input offset."""
    assert t.end is not None
    steps = order_steps(t.steps.values())
    return Trajectory(
        run_id=group.run_id,
        prompt_uid=group.prompt_uid,
        group_id=group.group_id,
        trajectory_uid=t.trajectory_uid,
        channel=group.channel_of(t),
        task_id=group.task_of(t),
        status=t.end.status,
        complete=group.merge(t) is not None and not t.missing_steps,
        step_ids=tuple(step.step_id for step in steps),
        rewards=_told(effective_rewards(t.rewards, group.rewards)),
        messages=_last_messages(t, steps),
        metadata=group.metadata_of(t) if group.metadata_fits(t) else {},
        partition=partition,
        pos=pos,
        at=now,
    )


def _told(rewards: tuple[EffectiveReward, ...]) -> tuple[EffectiveReward, ...]:
    """The rewards, without their components where these are too large, and none where there are too many."""
    size = sum(16 + 4 * len(name) for reward in rewards for name in reward.components)
    if len(rewards) > MAX_REWARDS:
        return ()
    if size <= MAX_COMPONENTS_BYTES:
        return rewards
    return tuple(reward.model_copy(update={"components": {}}) for reward in rewards)


def _last_messages(t: TrajectoryState, ordered: Sequence[Step]) -> bytes | None:
    """The whole conversation of the last of the ordered steps with its reply, as JSON; None if there is none, or it cannot be
    restored or sent."""
    chain: list[Step] = []
    step = ordered[-1] if ordered else None
    while step is not None:
        chain.append(step)
        goes_on = step.messages_kept > 0 and step.parent_step_id is not None
        step = t.steps.get(step.parent_step_id or "") if goes_on else None
    messages: list[object] | None = None
    for step in reversed(chain):
        try:
            messages = restore_messages(step, messages)
            if step.reply:
                messages.append(msgspec.json.decode(step.reply))
        except _UNREADABLE:
            return None
    try:
        body = msgspec.json.encode(messages) if messages else None
    except _UNREADABLE:
        return None
    return body if body is None or len(body) <= MAX_MESSAGES_BYTES else None
