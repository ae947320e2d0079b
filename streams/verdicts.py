"""What a recipe may say of a group, and where it stands with it between one look and the next."""

import math
from dataclasses import dataclass, field

from claw_r1.events import GroupReady, Member, Sample
from claw_r1.recipes import Recipe


@dataclass(frozen=True, slots=True)
class ActiveRecipe:
    """A recipe version; it judges the groups whose first fact follows `begins`."""

    begins: int
    name: str
    version: int
    recipe: Recipe | None
    run_id: str | None = None
    """Of a version that ends the recipe; None: as the recipe says."""


@dataclass(slots=True)
class Written:
    """A recipe's decision that an earlier owner of the partition made durable."""

    pos: int = 0
    at: float = -math.inf
    """Stream time."""
    members: set[str] = field(default_factory=set)
    """Trajectories whose fate it said."""
    emitted: bool = False


@dataclass(slots=True)
class Standing:
    """Where a recipe stands with a group."""

    fated: set[str] = field(default_factory=set)
    """Trajectories whose fate it said."""
    part: int = 1
    """2: it decided, and waits whether the late trajectories form a further group."""
    since: float = -math.inf
    """Stream time at which the part began; -inf: with the group."""
    emitted: bool = False
    """It emitted a part: decisions that come now are forwarded."""
    done: bool = False
    held_at: float | None = None
    """Stream time at which the part was held for review."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Not yet; judge again at this stream time unless a fact comes first."""

    until: float


@dataclass(frozen=True, slots=True)
class Emit:
    samples: list[Sample]
    ready: GroupReady


@dataclass(frozen=True, slots=True)
class Discard:
    reason: str
    members: list[Member]


@dataclass(frozen=True, slots=True)
class Hold:
    """Ready, and a person has to look at it before; discarded at `until`."""

    until: float
    kept: list[str]
    """Trajectories that would be emitted."""


@dataclass(frozen=True, slots=True)
class Nobody:
    """No trajectory is left to decide upon."""


Verdict = Wait | Emit | Discard | Hold | Nobody
