"""What the sink does with one partition's records, and in which order: plan, insert, move on. Pure.

The committed offset of a partition is the first record that is not stored; its metadata is the plan. A plan that says
`last` is a promise: the records [offset, last] are inserted as exactly that range, by whoever owns the partition next, so
that a repeated insert carries the same token. What comes while a promise is kept waits in a buffer of its own and is the next
range. `generation` is made when a partition has no plan yet (a new topic of an old
name, a group that was reset) and goes into every token, so that no token of another life of the partition is met again.

Invariants: rows below `first` are in the pool; buffered offsets only rise; nothing past a promised `last` enters its range;
past an inherited promise, whose records are still being read again, nothing is taken at all.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

from claw_r1.errors import InvalidRecord, UserError
from sinks.rows import ROWS_VERSION

Rows = dict[str, list[tuple[Any, ...]]]
Traces = dict[bytes, None]
"""Different traceparents, in the order in which they came."""


class Limits(NamedTuple):
    """When a partition's buffer is flushed: rows, bytes, or the age of its oldest row in seconds."""

    rows: int
    bytes: int
    age: float


class Commit(NamedTuple):
    """An offset and its metadata, as the consumer group keeps them."""

    offset: int
    metadata: str


class Dead(NamedTuple):
    """A record that cannot be stored, as it was consumed, and why."""

    record: Any
    error: InvalidRecord


class LostRecords(UserError):
    """The log no longer has what the pool still lacks."""


_VERSION: Final = 1


@dataclass
class Buffer:
    """The records of one range, as they will be inserted."""

    rows: Rows = field(default_factory=dict)
    dead: list[Dead] = field(default_factory=list)
    count: int = 0
    """Records, also those that became no row."""
    bytes: int = 0
    since: float = 0.0
    """When the oldest record came, on the monotonic clock."""
    traces: Traces = field(default_factory=dict)
    """Those that its records name, where flushes are told."""

    def passes(self, limits: Limits, now: float) -> bool:
        return self.count > 0 and (self.fills(limits) or now - self.since >= limits.age)

    def fills(self, limits: Limits) -> bool:
        return self.count >= limits.rows or self.bytes >= limits.bytes


@dataclass
class Partition:
    """One assigned partition: what is stored, what is promised, what is buffered."""

    name: str
    """topic/partition, for the tokens and messages."""
    first: int
    generation: str
    last: int | None = None
    range: Buffer = field(default_factory=Buffer)
    """From `first` on; up to `last` if that is promised."""
    following: Buffer | None = None
    """What came past a range that was promised when it was whole."""
    next: int = 0
    """The lowest offset that may come next."""

    @classmethod
    def resume(
        cls, name: str, committed: Commit | None, log_start: int, log_end: int, *, fresh: str, skip_lost: bool = False
    ) -> Self:
        """The state of a partition that was just assigned; `fresh` is the generation if it has none yet.

        Raises LostRecords if the log begins past what is stored (retention), or ends before it (the topic is another).
        """
        if committed is None:
            return cls(name, log_start, fresh, next=log_start)
        if lost := _explain_loss(name, committed.offset, log_start, log_end):
            if not skip_lost:
                raise LostRecords(lost + " To go on without them, start once with CLAW_SINKS_SKIP_LOST=true.")
            return cls(name, log_start, fresh, next=log_start)
        first = committed.offset
        generation, last = _read_metadata(committed.metadata)
        if last is not None and last < first:
            last = None
        return cls(name, first, generation or fresh, last, next=first)

    @property
    def promised(self) -> bool:
        return self.last is not None

    @property
    def inherited(self) -> bool:
        """The promise is another owner's: its records are read again, and may not be whole yet."""
        return self.last is not None and self.following is None

    @property
    def pending(self) -> Buffer:
        """Where a record goes that is taken now."""
        return self.range if self.following is None else self.following

    def wants(self, offset: int) -> bool:
        """Whether the record is to be taken: not seen before, and not past a promised range that is read again."""
        return offset >= self.next and (not self.inherited or offset <= (self.last or 0))

    def take(
        self, offset: int, size: int, now: float, rows: list[tuple[str, tuple[Any, ...]]], dead: Dead | None = None
    ) -> None:
        """Buffer a record that is wanted: its rows (none if it becomes none), or why it is dead."""
        buffer = self.pending
        if buffer.count == 0:
            buffer.since = now
        buffer.count += 1
        buffer.bytes += size
        self.next = offset + 1
        for table, row in rows:
            buffer.rows.setdefault(table, []).append(row)
        if dead is not None:
            buffer.dead.append(dead)

    def due(self, now: float, limits: Limits, reached: int) -> bool:
        """Whether to flush: the promised range is whole (`reached`: the next offset to come), or a limit is passed."""
        return self.range.passes(limits, now) if self.last is None else reached > self.last

    def is_behind(self, end: int | None, least: int) -> bool:
        """Whether of a log that ends there (None: not known) as much again as is buffered is to come, and more than `least`."""
        return end is not None and end - self.next > max(least, self.range.count)

    def promise(self) -> Commit:
        """Fix the range that is buffered now; to be committed before its insert, and as often as one likes."""
        if self.last is None:
            self.last = self.next - 1
            self.following = Buffer()
        return Commit(self.first, _write_metadata(self.generation, self.last))

    def token(self, table: str) -> str:
        """Names the insert of the promised range into a table: the same whoever makes it, and whenever."""
        return f"{self.name}/{self.generation}/{self.first}-{self.last}/{table}/r{ROWS_VERSION}"

    def stored(self) -> Commit:
        """Everything promised is in the pool: forget it, and say what to commit."""
        assert self.last is not None, "nothing was promised"
        self.first = self.last + 1
        self.next = max(self.next, self.first)
        self.last = None
        self.range, self.following = self.following or Buffer(), None
        return Commit(self.first, _write_metadata(self.generation, None))


def _explain_loss(name: str, stored: int, log_start: int, log_end: int) -> str | None:
    if log_end < stored:
        return (
            f"{name} ends at offset {log_end}, but the pool has it up to {stored}: the log lost records, or this is another "
            "topic of the same name."
        )
    if log_start > stored:
        return (
            f"{name} begins at offset {log_start}, but the pool has it only up to {stored}: the log's retention took "
            "records before they were stored."
        )
    return None


def _write_metadata(generation: str, last: int | None) -> str:
    plan: dict[str, Any] = {"v": _VERSION, "generation": generation}
    return json.dumps(plan if last is None else plan | {"last": last}, separators=(",", ":"))


def _read_metadata(text: str) -> tuple[str | None, int | None]:
    """(generation, last); nothing if the offset was committed by another program."""
    try:
        plan = json.loads(text or "null")
        if isinstance(plan, dict) and plan.get("v") == _VERSION:
            last = plan.get("last")
            return str(plan["generation"]), None if last is None else int(last)
    except (ValueError, KeyError, TypeError):
        return None, None
    return None, None
