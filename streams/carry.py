"""An open group is written to the log again, so that nothing before that is needed any more; pure.

`draft` says what a group is at the present position. Its facts are copied behind it, and once the copies and the draft are
durable, the group's oldest needed fact is at that position. A replay that begins there `hold`s the group as it was: the copies
say the facts, the draft the rest; when the replay reaches the position, the group is open again. The copies themselves are no
facts: the fold passes over them, live and in a replay, so that carrying changes no decision.

What is open for long is carried to the end of its own partition, and what has another partition from now on to the end of that.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from claw_r1.errors import ClawError
from claw_r1.events import CarriedRecipe, CarriedStanding, GroupCarried, GroupFact, Outcome, RecipeActive
from streams.ledger import Closed, Key
from streams.readiness import GroupState
from streams.state import PartitionState
from streams.verdicts import ActiveRecipe, Standing

CARRIED: Final = "claw-carried"
"""The header of a copy, and its first: `OFFSET/TIMESTAMP` of what it copies."""


class Copied(NamedTuple):
    """A fact and where it first stood on the log."""

    offset: int
    time: float
    """When it was appended there, seconds since the epoch."""
    fact: GroupFact
    trace: bytes | None = None
    """The traceparent of its record."""


def is_due(group: GroupState, now: float, carry_after: float) -> bool:
    """At `carry_after` of age, and then whenever it is twice as old as it was."""
    return now - group.opened_at >= carry_after * math.ldexp(1.0, group.carried)


def draft(state: PartitionState, group: GroupState) -> GroupCarried:
    """What the group is now; where its copies will lie is not known yet."""
    closed = state.closed.get((group.run_id, group.prompt_uid))
    return GroupCarried(
        run_id=group.run_id,
        prompt_uid=group.prompt_uid,
        group_id=group.group_id,
        round=group.round,
        times=group.carried + 1,
        first=state.position,
        last=state.position,
        facts=len(group.seen),
        opened_at=group.opened_at,
        last_at=group.last_at,
        recipes=tuple(CarriedRecipe(name=r.name, version=r.version) for r in group.recipes),
        standings=tuple(
            _carried(name, standing) for name, standing in group.standings.items() if standing != Standing()
        ),
        announced=tuple(sorted(group.announced)),
        earlier=tuple(sorted(closed.trajectories)) if closed is not None else (),
        spoiled=group.spoiled,
        partition=state.partition,
        pos=state.position,
        at=state.now,
    )


def _carried(recipe: str, standing: Standing) -> CarriedStanding:
    return CarriedStanding(
        recipe=recipe,
        done=standing.done,
        members=tuple(sorted(standing.fated)),
        emitted=standing.emitted,
        part=standing.part,
        since=None if math.isinf(standing.since) else standing.since,
        held_at=standing.held_at,
    )


def _standing(carried: CarriedStanding) -> Standing:
    return Standing(
        fated=set(carried.members),
        part=carried.part,
        since=-math.inf if carried.since is None else carried.since,
        emitted=carried.emitted,
        done=carried.done,
        held_at=carried.held_at,
    )


def elsewhere(carried: GroupCarried, state: PartitionState) -> GroupCarried:
    """For the ledger of the partition that a group leaves: all that it has of the group was decided, or went with it."""
    return carried.model_copy(
        update={"partition": state.partition, "pos": state.position, "moved_to": carried.partition}
    )


def settle(state: PartitionState, carried: GroupCarried) -> bool:
    """The copies and the draft are durable: the group needs nothing older. False if it closed meanwhile."""
    group = state.groups.get((carried.run_id, carried.prompt_uid))
    if group is None or group.round != carried.round:
        return False
    group.first_offset = max(group.first_offset, carried.pos)
    group.carried = max(group.carried, carried.times)
    return True


# ------------------------------------------------------------------------------------------------------------ replaying


def open_groups(ledger: Iterable[Outcome | GroupCarried], partition: int) -> list[GroupCarried]:
    """The newest draft of every group that the ledger does not call closed."""
    newest: dict[Key, GroupCarried] = {}
    closed: dict[Key, int] = {}
    for entry in ledger:
        key = (entry.run_id, entry.prompt_uid)
        if entry.partition != partition:
            continue
        if isinstance(entry, GroupCarried) and entry.moved_to is not None:
            newest.pop(key, None)  # what this partition was told of it before; it may come back
        elif isinstance(entry, GroupCarried):
            have = newest.get(key)
            if have is None or (entry.round, entry.pos) > (have.round, have.pos):
                newest[key] = entry
        elif entry.outcome == "closed":
            closed[key] = max(entry.round, closed.get(key, 0))
    return [entry for key, entry in newest.items() if entry.round > closed.get(key, 0)]


def hold(
    state: PartitionState,
    carried: GroupCarried,
    copies: Sequence[Copied],
    known: Mapping[tuple[str, int], RecipeActive],
) -> None:
    """Make the group as it was at the draft's position; `known`: every recipe version of this partition.

    Raises ClawError if a copy or a recipe is missing: without it the group would be another.
    """
    key = (carried.run_id, carried.prompt_uid)
    names = [(r.name, r.version) for r in carried.recipes]
    found = {copied.fact.fact_id: copied for copied in sorted(copies, key=lambda c: c.offset, reverse=True)}
    if len(found) < carried.facts or any(name not in known for name in names):
        raise ClawError(
            f"group {carried.group_id} of run {carried.run_id} was carried with {carried.facts} facts, of which "
            f"{len(found)} are on the log at {carried.first} to {carried.last}"
        )
    recipes = tuple(ActiveRecipe(known[n].begins, n[0], n[1], known[n].recipe) for n in names)
    group = GroupState(key[0], key[1], carried.round, carried.pos, carried.opened_at, carried.opened_at, recipes)
    group.carried = carried.times
    now = state.now
    for copied in sorted(found.values(), key=lambda c: c.offset):
        state.now = copied.time
        group.seen.add(copied.fact.fact_id)
        state._add(group, copied.fact)
    state.now = now
    group.last_at = carried.last_at
    group.spoiled = carried.spoiled
    group.announced.update(carried.announced)
    group.standings.update((standing.recipe, _standing(standing)) for standing in carried.standings)
    state.restored[key] = group
    if carried.round > 1 and key not in state.closed:
        state.closed[key] = Closed(carried.round - 1, 0, trajectories=set(carried.earlier))


def read_place(header: bytes) -> tuple[int, int]:
    """(offset, timestamp in milliseconds) of what a copy copies."""
    offset, _, timestamp = header.partition(b"/")
    return int(offset), int(timestamp)
