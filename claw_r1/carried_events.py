"""What the ledger of a partition says of an open group whose facts were written again: where they lie on the log."""

from claw_r1.event_base import Event
from claw_r1.event_base import Part as _Part


class CarriedRecipe(_Part):
    """A recipe version that judges a carried group."""

    name: str
    version: int


class CarriedStanding(_Part):
    """How far a recipe was with a carried group: it has decided, in whole or in part, or waits for a person."""

    recipe: str
    done: bool = True
    """It decides nothing more of the group."""
    members: tuple[str, ...] = ()
    """The trajectories whose fate it said."""
    emitted: bool = False
    part: int = 1
    since: float | None = None
    """Stream time at which the present part began."""
    held_at: float | None = None
    """Stream time since which it waits for a person; None: it does not."""


class GroupCarried(Event):
    """An open group has its facts on the log again: a replay that begins behind the old ones starts from here.

    The copies have the header `claw-carried: OFFSET/TIMESTAMP` of what they copy, and are no facts of their own: who reads the
    log passes over them. It stands on the ledger of its partition, where outcomes stand. As the events grow, a group may get
    another partition: it is carried there, and its old partition's ledger says so (`moved_to`). The offsets of what was copied
    are then counted from where that partition ended: they are below 0.
    """

    TYPE = "group-carried"
    run_id: str
    prompt_uid: str
    group_id: str
    round: int
    times: int
    """How often this group was carried, this time included."""
    first: int
    last: int
    """Offsets of the copies: they lie in [first, last], among others."""
    facts: int
    """How many."""
    opened_at: float
    last_at: float
    """Stream time of the group's first and newest fact."""
    recipes: tuple[CarriedRecipe, ...]
    """Those that were active at its first fact."""
    standings: tuple[CarriedStanding, ...] = ()
    """Of the recipes that said anything yet."""
    announced: tuple[str, ...] = ()
    """Trajectories that were sent to the reward workers."""
    earlier: tuple[str, ...] = ()
    """Trajectories of the prompt's earlier rounds."""
    spoiled: str | None = None
    """Why it will be discarded: a record that cannot be read."""
    partition: int
    pos: int
    """Every fact of the group below this offset has a copy."""
    moved_to: int | None = None
    """The partition that has the group from `pos` on; None: this one."""
    at: float
