"""What was decided of a group is told as one span, linked to the calls that its steps came from.

This stands beside the fold, which knows nothing of it: it sees the records that the fold takes in and what it puts out.

Invariants:
- a decision is told when this process wrote it, and never when a replay finds that it was written: then nothing is put out;
- which calls the steps of open groups came from is found again by a replay, as the groups are, and forgotten with them;
- the records of a decision name its span in their headers, and say the same as without.
"""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from aiokafka import ConsumerRecord
from opentelemetry.trace import SpanKind

from claw_r1.codec import Record, header
from claw_r1.events import Event, GroupCarried, GroupReady, Outcome, Sample, Step, Trajectory
from claw_r1.ids import split_group_id
from claw_r1.metrics import STREAMS_SPANS
from claw_r1.topics import EVENTS
from claw_r1.tracing import Spans, open_spans, traceparent_of
from streams.carry import Copied
from streams.state import Output, PartitionState

if TYPE_CHECKING:
    from opentelemetry.trace import Span

SERVICE: Final = "claw-streams"

Round = tuple[str, str, int]
"""(run_id, prompt_uid, round)"""
Fate = tuple[str, str, str]
"""(recipe, run_id, group_id)"""


class Arrival(NamedTuple):
    """A step on the log."""

    at: float
    """When it was appended, seconds since the epoch."""
    trace: bytes | None
    """The traceparent of its call."""


class GroupTraces:
    """Where the steps of one partition's open groups came from, and the spans of what is decided of them."""

    def __init__(self, spans: Spans, partition: int, group: str) -> None:
        """`group` is the consumer group."""
        self._spans = spans
        self._about: dict[str, object] = {
            "messaging.system": "kafka",
            "messaging.operation.name": "decide",
            "messaging.operation.type": "process",
            "messaging.destination.name": EVENTS,
            "messaging.destination.partition.id": str(partition),
            "messaging.consumer.group.name": group,
        }
        self._rounds: dict[Round, dict[str, dict[str, Arrival]]] = {}
        """Round → trajectory → step → its arrival."""

    def follow(self, step: Step, record: ConsumerRecord, state: PartitionState, outputs: Iterable[Output]) -> None:
        """The fold took the step in, and gave these outputs for it."""
        if (round_ := round_of(step, state, outputs)) is not None:
            self._note(step, round_, Arrival(record.timestamp / 1000, header(record.headers, "traceparent")))

    def hold(self, carried: GroupCarried, copies: Iterable[Copied]) -> None:
        """The group is open again as it was carried."""
        for copied in copies:
            if isinstance(copied.fact, Step):
                self._note(copied.fact, carried.round, Arrival(copied.time, copied.trace))

    def _note(self, step: Step, round_: int, arrival: Arrival) -> None:
        trajectories = self._rounds.setdefault((step.run_id, step.prompt_uid, round_), {})
        trajectories.setdefault(step.trajectory_uid, {}).setdefault(step.step_id, arrival)

    def begin(self, outputs: Iterable[Output | Record]) -> "Telling":
        """The spans of what these outputs decide, to be ended once they are durable."""
        events = [output.event for output in outputs if isinstance(output, Output)]
        members: dict[Fate, list[str]] = {}
        for event in events:
            if (fate := _fate_of(event)) and isinstance(event, Outcome) and event.trajectory_uid is not None:
                members.setdefault(fate, []).append(event.trajectory_uid)
        spans = {
            fate: self._begin(event, members.get(fate, ()))
            for event in events
            if (fate := _fate_of(event)) and isinstance(event, Outcome) and event.trajectory_uid is None
        }
        closed = [
            (event.run_id, event.prompt_uid, event.round)
            for event in events
            if isinstance(event, Outcome) and event.outcome == "closed"
        ]
        return Telling(self, spans, closed)

    def _begin(self, decision: Outcome, members: Sequence[str]) -> "Span":
        trajectories = self._rounds.get((decision.run_id, decision.prompt_uid, decision.round), {})
        of_each = [list(trajectories[uid].values()) for uid in members if uid in trajectories]
        arrivals = [arrival for arrivals in of_each for arrival in arrivals]
        return self._spans.begin(
            f"decide {EVENTS}",
            SpanKind.CONSUMER,
            self._about
            | {
                "messaging.batch.message_count": len(arrivals),
                "claw.recipe": decision.recipe,
                "claw.run_id": decision.run_id,
                "claw.group_id": decision.group_id,
                "claw.outcome": decision.outcome,
                "claw.reason": decision.reason,
                "claw.trajectories": len(members),
                "claw.steps": len(arrivals),
            },
            traces=_in_turn(of_each),
            start=min([arrival.at for arrival in arrivals], default=None),
        )

    def last_call(self, trajectory: Trajectory) -> str | None:
        """The traceparent of the trajectory's last step."""
        _, round_, _ = split_group_id(trajectory.group_id)
        steps = self._rounds.get((trajectory.run_id, trajectory.prompt_uid, round_), {}).get(
            trajectory.trajectory_uid, {}
        )
        arrival = steps.get(trajectory.step_ids[-1]) if trajectory.step_ids else None
        return None if arrival is None or arrival.trace is None else arrival.trace.decode("latin-1")

    def forget(self, closed: Iterable[Round]) -> None:
        """These rounds are closed, and that is durable."""
        for one in closed:
            self._rounds.pop(one, None)


class Telling:
    """The spans of what one flush writes."""

    def __init__(self, traces: GroupTraces, spans: "dict[Fate, Span]", closed: Sequence[Round]) -> None:
        self._traces = traces
        self._spans = spans
        self._closed = closed

    def trace_of(self, event: Event) -> str | None:
        """What the event's record names as its trace: its group's decision, or of an ended trajectory its last call."""
        if isinstance(event, Trajectory):
            return self._traces.last_call(event)
        span = self._spans.get(fate) if (fate := _fate_of(event)) else None
        return None if span is None else traceparent_of(span)

    def end(self) -> None:
        """All of it is durable."""
        now = time.time_ns()
        for span in self._spans.values():
            span.end(now)
        self._traces.forget(self._closed)


def round_of(step: Step, state: PartitionState, outputs: Iterable[Output]) -> int | None:
    """Which round of its prompt took the step in, after the fold gave these outputs for it; None: it came too late."""
    if (group := state.groups.get((step.run_id, step.prompt_uid))) is not None:
        return group.round
    for output in outputs:  # of the step that was the last to be waited for
        event = output.event
        if isinstance(event, Outcome) and event.outcome == "closed" and _key_of(event) == _key_of(step):
            return event.round
    return None


def _key_of(event: Outcome | Step) -> tuple[str, str]:
    return event.run_id, event.prompt_uid


def _fate_of(event: Event) -> Fate | None:
    """The decision that an event belongs to."""
    if isinstance(event, Sample | GroupReady):
        return event.recipe, event.run_id, event.group_id
    if isinstance(event, Outcome) and event.recipe is not None and event.outcome in ("emitted", "discarded"):
        return event.recipe, event.run_id, event.group_id
    return None


def _in_turn(of_each: Iterable[Sequence[Arrival]]) -> Iterator[bytes]:
    """The traces of several trajectories, one of each in turn: where links are left out, none has lost all of its."""
    for arrivals in itertools.zip_longest(*of_each):
        yield from (arrival.trace for arrival in arrivals if arrival is not None and arrival.trace is not None)


def count(result: str, spans: int) -> None:
    STREAMS_SPANS.labels(result).inc(spans)


def open_tracing() -> Spans:
    """As the OTEL_* variables want it. Raises WrongUse for what they may not say."""
    return open_spans(SERVICE, count)
