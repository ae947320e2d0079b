"""A prompt's facts fall into the groups that they made on the log, and each is folded again as if the recipe had been in force.

Pure. A group is what it was: which facts and trajectories it has was settled when it closed. Facts that came after that and
were late are taken in all the same while the recipe still waits, as they would have been with the recipe in force. What the
ledger says of the recipe is honoured, so that a group that is folded again says nothing twice.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from claw_r1.events import Decision, GroupFact, Outcome, Reward, TrajectoryFact
from claw_r1.ids import group_id
from claw_r1.topics import batch_topic
from streams.ledger import Closed, Key
from streams.state import OPENERS, Output, PartitionState
from streams.verdicts import ActiveRecipe

Reason = Literal["decided", "held", "not_in_pool", "open", "other_channel", "run_purged", "waiting"]
"""Why a group that began before the recipe is left out."""
_BEFORE: Final = -1
"""Where the recipe begins in these folds: before any fact."""


class Logged(NamedTuple):
    """A fact, or a record that could not be read, where it stood on its partition."""

    offset: int
    time: float
    """When the broker appended it, seconds since the epoch."""
    fact: GroupFact | None
    spoiled: str = ""
    """Why the record cannot be read."""


class Closing(NamedTuple):
    """Where a round of the prompt closed, as the ledger says."""

    round: int
    pos: int
    """Facts of the round below this offset were taken in."""
    at: float
    """Stream time."""


@dataclass
class Round:
    """One group of a prompt."""

    number: int
    facts: list[Logged] = field(default_factory=list)
    """By offset; those that came after the close were late."""
    closing: Closing | None = None
    trajectories: set[str] = field(default_factory=set)

    @property
    def begins(self) -> int:
        """Offset of its first fact."""
        return self.facts[0].offset


class Folded(NamedTuple):
    """What the recipe says of a group and nobody has said yet; or why it says nothing."""

    outputs: list[Output]
    left: Reason | None


# --------------------------------------------------------------------------------------------------------------- rounds


def split(facts: Iterable[Logged], closings: Iterable[Closing]) -> list[Round]:
    """The rounds that the facts of one prompt made. Facts that nothing ever opened are not to be among them."""
    ahead = sorted(closings, reverse=True)
    closed: list[Round] = []
    now: Round | None = None
    for one in sorted(facts, key=lambda one: one.offset):
        while ahead and ahead[-1].pos <= one.offset:
            closed.append(_close(now, ahead.pop()))
            now = None
        if now is None and (not closed or _opens(one, closed)):
            now = Round(closed[-1].number + 1 if closed else 1)
        taker = now if now is not None and _is_of(one, now, closed) else _whose(one, closed)
        taker.facts.append(one)
        if taker is now and isinstance(one.fact, TrajectoryFact | Reward) and one.fact.trajectory_uid is not None:
            taker.trajectories.add(one.fact.trajectory_uid)
    while ahead and now is not None:
        closed.append(_close(now, ahead.pop()))
        now = None
    return [one for one in [*closed, *([] if now is None else [now])] if one.facts]


def _close(now: Round | None, closing: Closing) -> Round:
    """The open round as it closed; without facts if the pool has none of it."""
    found = Round(closing.round) if now is None else now
    found.number, found.closing = closing.round, closing
    return found


def _opens(one: Logged, closed: Sequence[Round]) -> bool:
    """Whether it opens the prompt's next round, all others being closed."""
    if not isinstance(one.fact, OPENERS):
        return False
    uid = _trajectory(one)
    return uid is None or not any(uid in round_.trajectories for round_ in closed)


def _is_of(one: Logged, now: Round, closed: Sequence[Round]) -> bool:
    """Whether it belongs to the open round, and not to one that closed before it."""
    fact = one.fact
    if isinstance(fact, Decision) and fact.group_id is not None and closed:
        return fact.group_id == group_id(fact.prompt_uid, now.number)
    uid = _trajectory(one)
    return uid is None or uid in now.trajectories or not any(uid in round_.trajectories for round_ in closed)


def _whose(one: Logged, closed: Sequence[Round]) -> Round:
    """The closed round that a late fact is about: that of its trajectory, that which a decision names, else the last."""
    uid, fact = _trajectory(one), one.fact
    named = fact.group_id if isinstance(fact, Decision) else None
    for round_ in reversed(closed):
        if uid in round_.trajectories or (fact and named == group_id(fact.prompt_uid, round_.number)):
            return round_
    return closed[-1]


def _trajectory(one: Logged) -> str | None:
    return one.fact.trajectory_uid if isinstance(one.fact, TrajectoryFact | Reward | Decision) else None


# ----------------------------------------------------------------------------------------------------------------- fold


def fold(
    key: Key, round_: Round, recipe: ActiveRecipe, said: Sequence[Outcome], *, partition: int, now: float
) -> Folded:
    """The recipe's word on a closed round at stream time `now`; `said`: its outcomes of the round that are on the ledger."""
    assert round_.closing is not None, "a group that is open is judged when it has closed"
    if any(o.trajectory_uid is None and o.outcome != "late" and o.recipe_version != recipe.version for o in said):
        return Folded([], "decided")
    state = _state(key, round_, recipe, said, partition)
    closing = round_.closing
    outputs: list[Output] = []
    for one in round_.facts:
        if one.offset < closing.pos:
            outputs += _take(state, key, one)
    outputs += _pass_close(state, closing)
    if key not in state.groups or state.groups[key].concerned():  # else it had closed here with the recipe in force
        for one in round_.facts:
            if one.offset >= closing.pos:
                outputs += _take(state, key, one)
        outputs += state.tick(max(now, state.now))
    mine = _of_recipe(outputs, recipe.name)
    if any(isinstance(output.event, Outcome) for output in mine):
        return Folded(mine, None)
    return Folded([], _why_silent(state, key, recipe.name, said))


def _state(key: Key, round_: Round, recipe: ActiveRecipe, said: Sequence[Outcome], partition: int) -> PartitionState:
    state = PartitionState(partition, keeps_open=True)
    state.recipes = [ActiveRecipe(_BEFORE, recipe.name, recipe.version, recipe.recipe)]
    state.load_ledger(said)
    if round_.number > 1:
        state.closed[key] = Closed(round_.number - 1, 0)
    return state


def _take(state: PartitionState, key: Key, one: Logged) -> list[Output]:
    if one.fact is None:
        return state.spoil(key, one.offset, one.time, one.spoiled)
    return state.apply(one.fact, one.offset, one.time)


def _pass_close(state: PartitionState, closing: Closing) -> list[Output]:
    """Come to where the round closed on the log: from here on it closes once the recipe has decided."""
    outputs = state.skip(closing.pos - 1, closing.at)
    state.keeps_open = False
    return outputs + state.look()


def _of_recipe(outputs: Iterable[Output], recipe: str) -> list[Output]:
    """What the recipe's trainer and the ledger get: not what was said when the group was open, and by others."""
    topic = batch_topic(recipe)
    return [
        output
        for output in outputs
        if output.topic == topic or (isinstance(output.event, Outcome) and output.event.recipe == recipe)
    ]


def _why_silent(state: PartitionState, key: Key, recipe: str, said: Sequence[Outcome]) -> Reason:
    group = state.groups.get(key)
    if group is None or not group.concerned():
        return "decided" if said else "other_channel"
    return "held" if group.standing(recipe).held_at is not None else "waiting"


def is_over(said: Iterable[Outcome], recipe: ActiveRecipe) -> bool:
    """Whether the ledger alone tells that the recipe says nothing more of the round: its facts need not be read."""
    assert recipe.recipe is not None
    whole = [o for o in said if o.trajectory_uid is None and o.outcome in ("emitted", "discarded")]
    if recipe.recipe.group.stragglers == "late":
        return bool(whole)
    return any(o.part > 1 or o.outcome == "discarded" or o.recipe_version != recipe.version for o in whole)
