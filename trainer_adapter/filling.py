"""Ready groups fill the next batch: by groups or by tokens, as a whole or in the shares of a mix.

Pure. Invariants:
- a group is taken whole, and a batch never holds more than its size;
- which groups fill it follows from their ready order alone, not from how far a trainer had read, or what it had memory for;
- a cut is one record: a batch whose next group it cannot name is full, and groups that it has no room to leave out wait for the
  next;
- a group that a share has no room for waits for a later batch in its place, up to AHEAD batches of its share; what comes beyond
  is left out with a reason, so that a share that is short does not keep the others' groups for ever.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from claw_r1.recipes import MEMBER_BYTES, BatchRule
from trainer_adapter.groups import ReadyGroup
from trainer_adapter.held import HeldSample

AHEAD: Final = 8
"""Batches whose groups of one share wait for those of another."""
EXCLUDED_BYTES: Final = 2**20
"""Of a cut's record, what names the groups that it leaves out."""


@dataclass(slots=True)
class Share:
    """A part of the batch: all of it, or that of one value of the field that is mixed."""

    size: int
    """Tokens if the batch is by tokens, else groups."""
    room: int
    """Bytes of the cut's record that its members' names may take."""
    used: int = 0
    named: int = 0
    """Of `room`."""
    groups: int = 0
    ahead: int = 0
    """What waits for later batches, in the unit of `size`."""
    full: bool = False
    """The next group of the share would go beyond."""


@dataclass(slots=True)
class Filling:
    """A batch while it is filled, with ready groups put in ready order."""

    rule: BatchRule
    floor: int | None
    """Tokens of versions below are masked; None: none are."""
    members: list[ReadyGroup] = field(default_factory=list)
    excluded: list[tuple[ReadyGroup, str]] = field(default_factory=list)
    """Those that this cut leaves out."""
    left_out: Counter[str] = field(default_factory=Counter)
    """All that are left out, also those that the next cut does, by reason."""
    judged: int = 0
    """Groups that were put in."""
    last_ready_at: float | None = None
    """Of them, when the last became ready."""
    passed: int | None = None
    """Offset of the first group that waits for a later batch."""
    shares: dict[str | None, Share] = field(init=False)
    _named: int = 0
    """Of EXCLUDED_BYTES."""
    _undecided: list[tuple[ReadyGroup, bool]] = field(default_factory=list)
    """Groups whose decisions are not applied, since bodies are missing; True: it is left out."""

    def __post_init__(self) -> None:
        sizes = self.rule.shares
        even, by_size = MEMBER_BYTES // 2 // len(sizes), MEMBER_BYTES // 2 / self.rule.size
        self.shares = {name: Share(size, even + int(size * by_size)) for name, size in sizes.items()}

    @property
    def full(self) -> bool:
        """No share has room for its next group."""
        return all(share.full for share in self.shares.values())

    @property
    def lacking(self) -> list[HeldSample]:
        """Samples that have to be read again before it is known what the batch is: of groups whose decisions are not applied.
        While it is not full, these are groups that are left out: no decision makes a member larger."""
        full = self.full
        return [sample for group, is_out in self._undecided if full or is_out for sample in group.lacking]

    def put(self, group: ReadyGroup, reason: str | None) -> None:
        """The next group in ready order; `reason` says why it may not be trained, None that it may."""
        self.judged += 1
        self.last_ready_at = group.ready_at
        name = None if self.rule.mix is None else group.value_of(self.rule.mix.by)
        share = self.shares.get(name)
        if reason is None and share is None:
            reason = "outside_mix"
        if reason is None and share is not None:
            reason = self._take(group, share)
        if reason is not None:
            self._leave_out(group, reason)
        if group.decisions and group.lacking:
            self._undecided.append((group, reason is not None))

    def _leave_out(self, group: ReadyGroup, reason: str) -> None:
        self.left_out[reason] += 1
        if self._named + group.excluded_bytes > EXCLUDED_BYTES:
            self._pass(group)
            return
        self._named += group.excluded_bytes
        self.excluded.append((group, reason))

    def _pass(self, group: ReadyGroup) -> None:
        self.passed = group.offset if self.passed is None else self.passed

    def _take(self, group: ReadyGroup, share: Share) -> str | None:
        """A member, or one that waits; else why it is left out."""
        cost = 1 if self.rule.tokens is None else group.tokens_left(self.floor)
        if cost > share.size:
            return "above_batch_tokens"
        if group.member_bytes > share.room:
            return "above_cut"
        if share.full or share.used + cost > share.size or share.named + group.member_bytes > share.room:
            share.full = True
            if self.rule.mix is not None and share.ahead + cost > AHEAD * share.size:
                return "beyond_mix"
            share.ahead += cost
            self._pass(group)
            return None
        self.members.append(group)
        share.used += cost
        share.named += group.member_bytes
        share.groups += 1
        share.full = share.used == share.size
        return None
