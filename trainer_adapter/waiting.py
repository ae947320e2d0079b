"""Why the next batch is not there yet, in numbers and in a sentence.

Pure.
"""

import math
from dataclasses import dataclass, field

from claw_r1.recipes import Recipe
from trainer_adapter.filling import Filling, Share


@dataclass(frozen=True)
class OpenGroups:
    """Groups of the recipe that have begun and have no fate yet, as the pool knows them."""

    groups: int
    unfinished: int
    """Of them those in which a trajectory has not ended, or fewer have ended than the recipe's `group.size`."""
    short_of: dict[str, int] = field(default_factory=dict)
    """By required reward source, and annotation as `annotation NAME`: groups with an ended trajectory that lacks it."""
    held: int = 0
    """Groups that wait for a person's `keep`."""
    oldest_at: float | None = None
    """When the oldest of them began, seconds since the epoch."""

    def describe(self, now: float) -> str:
        if not self.groups:
            return "no group is open"
        parts = []
        if self.unfinished:
            parts.append(f"{self.unfinished} with trajectories to come or to end")
        parts += [f"{n} short of {name}" for name, n in sorted(self.short_of.items())]
        if self.held:
            parts.append(f"{self.held} held for review")
        oldest = "" if self.oldest_at is None else f", the oldest since {max(0.0, now - self.oldest_at):.0f} s"
        return f"{self.groups} groups are open{oldest}" + (f": {', '.join(parts)}" if parts else "")


@dataclass(frozen=True)
class ShareState:
    """What one share of a mix has for the next batch, in groups, or in tokens where the batch is by tokens."""

    has: int
    needs: int
    full: bool


@dataclass(frozen=True)
class Waiting:
    """Why the next batch is not there yet."""

    recipe: str
    sequence: int
    """Of the batch that is waited for."""
    ready: int
    """Ready groups that may be trained now."""
    needed: int | None
    """Groups of a batch; None: it is by tokens."""
    excluded: dict[str, int]
    """Ready groups that may not, by reason."""
    strays: int
    """Samples whose group's marker has not come."""
    last_ready_at: float | None
    """When the last group of any kind became ready, seconds since the epoch; None if none was seen."""
    ended: bool
    """The recipe's newest version says that it has ended."""
    tokens: int = 0
    """Tokens of the groups that the next batch has so far."""
    needed_tokens: int | None = None
    """Most tokens of a batch by tokens: it is there when the next group would go beyond. None: it is by groups."""
    mix: dict[str, ShareState] = field(default_factory=dict)
    """By value of the field that is mixed."""
    usable: int = 0
    """Ready groups that the next `staleness.max_versions` + 1 batches have room for: with a mix those of a share that has
    enough are not counted beyond that."""
    a_batch: int = 1
    """Groups that make a batch, as far as is known: with `batch.tokens` by the mean of the groups that are ready."""
    open: OpenGroups | None = None
    """None: not known, since no pool was asked."""
    open_unknown: str | None = None
    """Why the pool did not tell."""
    full: bool = False
    """So many groups wait that no more are read."""
    broker_away: bool = False

    def describe(self, now: float) -> str:
        """Some sentences for a person; `now` in seconds since the epoch."""
        parts = [f"batch {self.sequence} of recipe {self.recipe}: {self._describe_size()}"]
        unit = "groups" if self.needed_tokens is None else "tokens"
        parts += [f"short of {name}: {s.has} of {s.needs} {unit}" for name, s in self.mix.items() if not s.full]
        if self.last_ready_at is None:
            parts.append("none has become ready since the last cut")
        else:
            parts.append(f"the last became ready {max(0.0, now - self.last_ready_at):.1f} s ago")
        if self.excluded:
            parts.append("left out: " + ", ".join(f"{n} {reason}" for reason, n in sorted(self.excluded.items())))
        if self.strays:
            parts.append(f"{self.strays} samples wait for their group's marker")
        if self.open is not None:
            parts.append(self.open.describe(now))
        elif self.open_unknown is not None:
            parts.append(f"the pool does not tell which groups are open: {self.open_unknown}")
        if self.full:
            parts.append(
                "no more is read until they are in a cut: apply the recipe with other shares or another staleness"
            )
        if self.broker_away:
            parts.append("the broker does not answer")
        if self.ended:
            parts.append("the recipe has ended, so no more groups will come")
        return "; ".join(parts)

    def _describe_size(self) -> str:
        if self.needed_tokens is None:
            return f"{self.ready} of {self.needed} groups are ready"
        have = f"{self.ready} groups are ready, with {self.tokens} of at most {self.needed_tokens} tokens"
        return have if self.mix else f"{have}: it is full when the next does not fit"


def explain_wait(
    recipe: Recipe,
    filling: Filling,
    *,
    sequence: int,
    strays: int,
    ended: bool,
    full: bool = False,
) -> Waiting:
    """What the batch `sequence` has and lacks; all groups that no cut has were put into `filling`."""
    n_ready = filling.judged - filling.left_out.total()
    by_tokens = recipe.batch.tokens is not None
    tokens = sum(share.used for share in filling.shares.values()) if by_tokens else 0
    return Waiting(
        recipe.name,
        sequence,
        n_ready,
        None if by_tokens else recipe.batch.groups,
        dict(filling.left_out),
        strays,
        filling.last_ready_at,
        ended,
        tokens=tokens,
        needed_tokens=recipe.batch.tokens,
        mix={name: _state(share) for name, share in filling.shares.items() if name is not None},
        usable=n_ready if recipe.batch.mix is None else _usable(filling, recipe),
        a_batch=_estimate(filling, tokens),
        full=full,
    )


def _state(share: Share) -> ShareState:
    return ShareState(share.used, share.size, share.full)


def _usable(filling: Filling, recipe: Recipe) -> int:
    """Groups of each share, up to what the batches in flight may take of it."""
    batches = (recipe.staleness.max_versions or 0) + 1
    return math.floor(
        sum(
            share.groups * min((share.used + share.ahead) / share.used, batches) if share.used else 0
            for share in filling.shares.values()
        )
    )


def _estimate(filling: Filling, tokens: int) -> int:
    """Groups that make a batch. While it is not full, more than it has: what wants that many has to let another begin."""
    if filling.rule.tokens is None:
        return filling.rule.groups
    n = len(filling.members)
    likely = filling.rule.groups if not n else math.ceil(n * filling.rule.tokens / tokens)
    return max(likely, n if filling.full else n + 1)
