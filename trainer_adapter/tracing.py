"""A batch is told as one span, from its hand-over to its commit, linked to the decisions that made its groups ready.

Invariants:
- a batch that comes again is another span;
- a span of a batch that was not committed says why not, and is told as failed;
- which decision a group's marker names is remembered until a cut has taken the group, of a bounded number of groups.
"""

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.trace import SpanKind

from claw_r1.codec import Headers, header
from claw_r1.events import BatchCut
from claw_r1.topics import batch_topic
from claw_r1.tracing import Spans, describe, fail, open_spans, traceparent_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = logging.getLogger("claw.trainer")

SERVICE: Final = "claw-trainer"
MAX_MARKED: Final = 2**19
"""Groups of which the decision is remembered: as many as a trainer holds."""


class BatchTracing:
    """The spans of one stream's batches."""

    def __init__(self, spans: Spans, recipe: str) -> None:
        self._spans = spans
        self._topic = batch_topic(recipe)
        self._marked: dict[int, bytes] = {}
        """Offset of a marker → its traceparent."""
        self._handed: dict[int, Span] = {}
        """Sequence → the span of the batch that is out."""

    def note(self, offset: int, headers: Headers) -> None:
        """A group's marker was read."""
        if (trace := header(headers, "traceparent")) is not None:
            self._marked[offset] = trace
            if len(self._marked) > MAX_MARKED:
                del self._marked[next(iter(self._marked))]

    def hand_out(self, cut: BatchCut, columns: dict[str, Any]) -> str:
        """The batch of these columns is handed out; the traceparent of its span."""
        traces = [self._marked.get(member.offset) for member in cut.members]
        for offset in (*(member.offset for member in cut.members), *(one.offset for one in cut.excluded)):
            self._marked.pop(offset, None)
        trajectories = columns["trajectory_index"]
        span = self._spans.begin(
            f"train {self._topic}",
            SpanKind.CONSUMER,
            {
                "messaging.system": "kafka",
                "messaging.operation.name": "train",
                "messaging.operation.type": "process",
                "messaging.destination.name": self._topic,
                "messaging.batch.message_count": len(cut.members),
                "claw.batch_id": cut.batch_id,
                "claw.recipe": cut.recipe,
                "claw.recipe_version": cut.recipe_version,
                "claw.run_id": cut.run_id,
                "claw.sequence": cut.sequence,
                "claw.trained_version": cut.policy_version,
                "claw.groups": len(cut.members),
                "claw.trajectories": int(trajectories[-1]) + 1 if len(trajectories) else 0,
                "claw.samples": len(trajectories),
                "claw.tokens": int(columns["offsets"][-1]),
            },
            traces=[trace for trace in traces if trace is not None],
        )
        self._handed[cut.sequence] = span
        return traceparent_of(span)

    def commit(self, sequence: int, policy_version: int) -> None:
        """The batch is trained, and that is durable."""
        if (span := self._handed.pop(sequence, None)) is not None:
            describe(span, {"claw.policy_version": policy_version})
            span.end()

    def give_up(self, reason: str, sequence: int | None = None) -> None:
        """The batch, or all that are out, can be committed no more."""
        for one in list(self._handed) if sequence is None else [sequence]:
            if (span := self._handed.pop(one, None)) is not None:
                fail(span, reason)
                span.end()

    async def stop(self) -> None:
        """Hand over what is left, within a bound; batches that are out are not committed."""
        self.give_up("not_committed")
        await self._spans.stop()


def open_tracing(recipe: str) -> BatchTracing:
    """As the OTEL_* variables want it. Raises WrongUse for what they may not say."""
    counts = Counter[str]()

    def count(result: str, spans: int) -> None:
        counts[result] += spans
        if result == "failed":
            log.warning("the collector did not take spans", extra={"recipe": recipe, **counts})

    return BatchTracing(open_spans(SERVICE, count), recipe)
