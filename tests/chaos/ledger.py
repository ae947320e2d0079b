"""What clients wrote down, what was read afterwards, and the whole history of anything between: pure.

A client writes a line before it sends and a line after it knows more; a call with no second line was in flight when its client
died. `claw` is not asked here what became of a fact: everything is told by records. `invariants.check` judges it.
"""

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from claw_r1.events import (
    BatchCut,
    BatchTrained,
    Event,
    GroupCarried,
    GroupFact,
    GroupReady,
    Outcome,
    Sample,
    Step,
    Trajectory,
)
from claw_r1.ids import derived_id

Kind = Literal["call", "reward", "end", "decision", "batch"]
What = Literal["sent", "acknowledged", "indeterminate"]

MARK: Final = re.compile(rb"\[call ([A-Za-z0-9_.-]+)\]")
"""How a call is named in its last message, so that its steps are known on the log by what was sent."""


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of a client. `at`: seconds since the epoch, by the client."""

    at: float
    kind: Kind
    event: What
    name: str
    """What repeats of one thing share: a call's mark; the fact id of a reward, an end or a decision; RECIPE/SEQUENCE of a
    batch, of which `sent` says that it was handed out."""
    attempt: int = 1
    prompt_uid: str | None = None
    trajectory_uid: str | None = None
    step_id: str | None = None
    """Of a call, as the answer's header said."""
    digest: str | None = None
    """Of a call: `digest_of` the ids that the client saw. Of a batch: its own."""
    samples: tuple[str, ...] = ()
    """Of a batch: what it held, in order."""
    said: str | None = None
    """For people: an error, a value."""


def mark(name: str) -> str:
    """What a call's last message holds."""
    return f"[call {name}]"


def reward_id(
    run_id: str, prompt_uid: str, trajectory_uid: str | None, source: str, revision: int, step_id: str | None = None
) -> str:
    """The fact that a reward over HTTP becomes."""
    return derived_id("reward", run_id, prompt_uid, trajectory_uid, step_id, source, revision)


def end_id(run_id: str, prompt_uid: str, trajectory_uid: str) -> str:
    """The fact that an end over HTTP becomes."""
    return derived_id("end", run_id, prompt_uid, trajectory_uid)


def decision_id(name: str, run_id: str, prompt_uid: str, trajectory_uid: str | None) -> str:
    """The fact that a decision over HTTP becomes, by the name that its sender gave it."""
    return derived_id("decision", name, run_id, prompt_uid, trajectory_uid)


def digest_of(prompt_ids: bytes, response_ids: bytes) -> str:
    """Of a call's whole prompt and response, packed."""
    return derived_id(prompt_ids.hex(), response_ids.hex())


def read_entries(lines: Iterable[bytes]) -> list[Entry]:
    """The whole lines of a file that may still be written; by time."""
    decode = msgspec.json.Decoder(Entry).decode
    return sorted((decode(line) for line in lines if line.endswith(b"\n")), key=lambda entry: entry.at)


# ---------------------------------------------------------------------------------------------------------- what was read


@dataclass(frozen=True)
class Logged:
    """A committed record."""

    topic: str
    partition: int
    offset: int
    at: float
    """When the broker appended it, seconds since the epoch."""
    event: Event
    carried: bool = False
    """A copy of a fact that its group's stream worker wrote again."""


@dataclass(frozen=True)
class Stored:
    """A step in the pool, under FINAL."""

    step_id: str
    trajectory_uid: str
    status: str
    digest: str | None
    """`digest_of` its whole context as the pool restores it; None: it does not."""


@dataclass(frozen=True)
class TableCount:
    """A table of the pool: `raw` rows of `places` records; `final` rows under FINAL of `keys` keys."""

    name: str
    raw: int
    places: int
    final: int
    keys: int


@dataclass(frozen=True)
class Total:
    """A number that the pool's views say, and what the log gives."""

    name: str
    pool: float
    log: float


@dataclass(frozen=True)
class Watermark:
    """A committed offset at a moment, and how far its stage had got by then."""

    at: float
    stage: Literal["streams", "sinks"]
    partition: int
    """Of the events topic."""
    committed: int
    done: int
    """streams: offset of the outcomes' partition below which everything was visible after the committed offset was read; sinks:
    steps that the pool had from below it."""


@dataclass(frozen=True)
class Lag:
    """Records at or above a committed offset, after the faults have stopped."""

    group: str
    topic: str
    partition: int
    behind: int


@dataclass(frozen=True)
class Evidence:
    """Everything about one run and recipe."""

    run_id: str
    recipe: str
    entries: Sequence[Entry]
    records: Sequence[Logged]
    """Of a topic's partition in the order of their offsets."""
    stored: Sequence[Stored]
    tables: Sequence[TableCount] = ()
    totals: Sequence[Total] = ()
    watermarks: Sequence[Watermark] = ()
    lags: Sequence[Lag] = ()
    looks: Sequence[int] = ()
    """Steps that an analyst counted, one look after the other."""
    sources: Sequence[str] = ("reward",)
    """Of the rewards that clients send; others are made by workers."""
    required: Sequence[str] = ("reward",)
    """Sources that the recipe requires; all count with weight 1."""


@dataclass(frozen=True)
class Violation:
    """An invariant that does not hold, of what, and all that is known of it, in order."""

    invariant: str
    subject: str
    text: str
    history: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return "\n".join([f"{self.invariant} {self.subject}: {self.text}", *(f"    {line}" for line in self.history)])


# ---------------------------------------------------------------------------------------------------------------- history

SHOWN: Final = (
    "fact_id", "step_id", "parent_step_id", "trajectory_uid", "prompt_uid", "group_id", "status", "source", "revision", "value",
    "action", "outcome", "reason", "round", "recipe", "sequence", "policy_version", "cursor", "pos", "complete", "step_ids",
    "times", "first", "last", "trajectories", "sample_id", "sample_ids", "digest",
)  # fmt: skip
"""Fields that a line of a history shows where a record has them."""


def describe(record: Logged) -> str:
    """A record in one line."""
    event = record.event
    parts = [f"{name}={_short(value)}" for name in SHOWN if (value := getattr(event, name, None)) not in (None, (), "")]
    if isinstance(event, GroupReady):
        parts += [f"{m.trajectory_uid}:{m.outcome}/{m.reason}/{m.reward}" for m in event.members]
    if isinstance(event, Sample):
        parts.append("steps=" + ",".join(span.step_id for span in event.spans))
    if isinstance(event, BatchCut):
        parts.append(
            "groups=" + ",".join([m.group_id for m in event.members] + [f"-{e.group_id}" for e in event.excluded])
        )
    place = f"{record.topic}[{record.partition}]@{record.offset}"
    return " ".join([place, event.TYPE + (" (carried)" if record.carried else ""), *parts])


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def describe_entry(entry: Entry) -> str:
    """A client's line in one line."""
    fields = ("attempt", "prompt_uid", "trajectory_uid", "step_id", "digest", "said")
    parts = [f"{name}={value}" for name in fields if (value := getattr(entry, name)) is not None]
    return " ".join(["client", entry.kind, entry.name, entry.event, *parts])


class History:
    """Every line about a thing, by its name."""

    def __init__(self, evidence: Evidence, marks: Mapping[str, str | None]) -> None:
        """`marks`: the mark of each step on the log."""
        self._lines: dict[str, list[tuple[float, int, str]]] = defaultdict(list)
        for numbered, (at, names, line) in enumerate(self._all(evidence, marks)):
            for name in names:
                self._lines[name].append((at, numbered, line))

    @staticmethod
    def _all(evidence: Evidence, marks: Mapping[str, str | None]) -> Iterator[tuple[float, set[str], str]]:
        for entry in evidence.entries:
            names = {entry.name, *filter(None, (entry.trajectory_uid, entry.step_id)), *entry.samples}
            yield entry.at, names, describe_entry(entry)
        for record in evidence.records:
            names = names_of(record.event)
            if isinstance(record.event, Step):
                names |= {name for name in (marks.get(record.event.step_id),) if name}
            yield record.at, names, describe(record)

    def of(self, *names: str | None) -> tuple[str, ...]:
        """What is known of these, by time."""
        lines = {line for name in names if name is not None for line in self._lines.get(name, ())}
        return tuple(f"{_clock(at)} {text}" for at, _number, text in sorted(lines))


def names_of(event: Event) -> set[str]:
    """Of everything that a record is about."""
    fields = ("fact_id", "step_id", "trajectory_uid", "group_id", "sample_id", "batch_id")
    names = {str(value) for name in fields if (value := getattr(event, name, None)) is not None}
    match event:
        case GroupReady():
            names |= {member.trajectory_uid for member in event.members} | set(event.sample_ids)
        case Trajectory():
            names |= set(event.step_ids)
        case Sample():
            names |= {span.step_id for span in event.spans}
        case Outcome() | GroupCarried():
            names.add(event.prompt_uid)
        case GroupFact():
            names.add(event.prompt_uid)
        case BatchCut():
            names |= {member.group_id for member in event.members} | {one.group_id for one in event.excluded}
            names |= {sample for member in event.members for sample in member.sample_ids}
            names.add(batch_name(event))
        case BatchTrained():
            names.add(batch_name(event))
    return names


def batch_name(event: BatchCut | BatchTrained) -> str:
    """As a client names the batch."""
    return f"{event.recipe}/{event.sequence}"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03d}"
