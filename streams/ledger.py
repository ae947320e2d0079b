"""What earlier owners of a partition wrote of its groups, read back from the outcomes topic before a replay.

Nothing that it says is decided, held, forwarded or called late a second time.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

from claw_r1.events import GroupCarried, Outcome
from streams.verdicts import Written

Key = tuple[str, str]
"""(run_id, prompt_uid)."""
Round = tuple[Key, int]
Part = tuple[str, int]
"""(recipe, part)."""


@dataclass(slots=True)
class Closed:
    """A group that every recipe has decided."""

    round: int
    pos: int
    fact_ids: set[str] = field(default_factory=set)
    """Of facts that came since `pack` was last called."""
    packed: "array[int]" = field(default_factory=lambda: array("q"))
    """Hashes of the ids of all other facts of this round, of those before it, and of those that came late; in order."""
    trajectories: set[str] = field(default_factory=set)
    """Of this round and those before it."""
    emitted: set[str] = field(default_factory=set)
    """Recipes that emitted something of this round or those before it: decisions are forwarded to them."""

    def knows(self, fact_id: str) -> bool:
        """Whether a fact came before, in time or late."""
        if fact_id in self.fact_ids:
            return True
        wanted = hash(fact_id)
        place = bisect_left(self.packed, wanted)
        return place < len(self.packed) and self.packed[place] == wanted

    def pack(self) -> None:
        """Keep the ids' hashes for them, in a tenth of the memory. 64 bits that nobody else can know call a new fact a copy
        once in 10^17 facts, if a group has a hundred."""
        self.packed = array("q", sorted({*self.packed, *map(hash, self.fact_ids)}))
        self.fact_ids = set()


@dataclass(slots=True)
class Ledger:
    """The outcomes of one partition as a replay asks for them."""

    late: dict[tuple[Key, str], int] = field(default_factory=dict)
    """Ids of facts that were called late → the position at which it was said."""
    closed: dict[Key, int] = field(default_factory=dict)
    """The position at which the last `closed` of a prompt was said, or that it went to another partition."""
    decided: dict[Round, dict[Part, Written]] = field(default_factory=dict)
    held: dict[Round, dict[Part, float]] = field(default_factory=dict)
    """When a group was held for review."""
    forwarded: set[tuple[Key, str, str]] = field(default_factory=set)
    """People's decisions that were forwarded to a recipe while the group was open: prompt, fact id, recipe."""

    def load(self, entries: Iterable[Outcome | GroupCarried]) -> dict[Key, Closed]:
        """Take in the outcomes, and which groups went elsewhere; the groups that they close."""
        late: dict[Key, set[str]] = {}
        closed: dict[Key, Closed] = {}
        emitted: dict[Round, set[str]] = {}
        for outcome in entries:
            if outcome.pos is None:
                continue  # not of a stream worker
            key = (outcome.run_id, outcome.prompt_uid)
            if isinstance(outcome, GroupCarried):
                if outcome.moved_to is not None:
                    self.closed[key] = max(outcome.pos, self.closed.get(key, 0))
                continue
            if outcome.outcome == "late" and outcome.fact_id is not None:
                if outcome.recipe is not None:
                    self.forwarded.add((key, outcome.fact_id, outcome.recipe))
                    continue
                name = (key, outcome.fact_id)
                self.late[name] = max(outcome.pos, self.late.get(name, 0))
                late.setdefault(key, set()).add(outcome.fact_id)
            elif outcome.outcome == "closed":
                one = closed.setdefault(key, Closed(0, 0))
                one.round, one.pos = max((one.round, one.pos), (outcome.round, outcome.pos))
                one.trajectories.update(outcome.trajectories)
            elif outcome.recipe is not None:
                if outcome.outcome == "emitted":
                    emitted.setdefault((key, outcome.round), set()).add(outcome.recipe)
                self._load_fate(outcome, (key, outcome.round), (outcome.recipe, outcome.part))
        for key, one in closed.items():
            self.closed[key] = max(one.pos, self.closed.get(key, 0))
            one.fact_ids = late.get(key, set())
            one.emitted = set().union(*(emitted.get((key, round_), set()) for round_ in range(1, one.round + 1)))
        return closed

    def _load_fate(self, outcome: Outcome, round_: Round, part: Part) -> None:
        assert outcome.pos is not None
        if outcome.outcome == "held":
            self.held.setdefault(round_, {})[part] = outcome.at
            return
        written = self.decided.setdefault(round_, {}).setdefault(part, Written())
        if outcome.trajectory_uid is None:
            written.pos, written.at, written.emitted = outcome.pos, outcome.at, outcome.outcome == "emitted"
        else:
            written.members.add(outcome.trajectory_uid)
