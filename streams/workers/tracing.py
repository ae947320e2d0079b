"""What a source was asked of a trajectory is told as one span, below the last call of the trajectory.

Invariant: a span ends when all that its source said is durable; work that was given up for another member is not told here.
"""

from typing import TYPE_CHECKING, Final

from opentelemetry.trace import SpanKind

from claw_r1.codec import Headers, header
from claw_r1.events import Trajectory
from claw_r1.metrics import WORKERS_SPANS
from claw_r1.topics import TRAJECTORIES
from claw_r1.tracing import Spans, describe, fail, open_spans, read_context, traceparent_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span

SERVICE: Final = "claw-workers"


class Asked:
    """The span of one question; `traceparent` is named by the records of its facts."""

    def __init__(self, span: "Span") -> None:
        self._span = span
        self.traceparent = traceparent_of(span)

    def end(self, facts: int, missing: str | None) -> None:
        """So many facts are durable, and why one is not, if one is not."""
        describe(self._span, {"claw.facts": facts})
        if missing is not None:
            fail(self._span, missing)
        self._span.end()


class Tracing:
    """The spans of one worker."""

    def __init__(self, spans: Spans, group: str) -> None:
        """`group` is the consumer group."""
        self._spans = spans
        self._group = group

    def begin(self, source: str, trajectory: Trajectory, headers: Headers) -> Asked:
        """A source is asked of the trajectory whose record has these headers."""
        trace = (header(headers, "traceparent") or b"").decode("latin-1")
        span = self._spans.begin(
            f"ask {source}",
            SpanKind.CONSUMER,
            {
                "messaging.system": "kafka",
                "messaging.operation.name": "ask",
                "messaging.operation.type": "process",
                "messaging.destination.name": TRAJECTORIES,
                "messaging.consumer.group.name": self._group,
                "claw.source": source,
                "claw.run_id": trajectory.run_id,
                "claw.prompt_uid": trajectory.prompt_uid,
                "claw.trajectory_uid": trajectory.trajectory_uid,
            },
            context=read_context({"traceparent": trace}),
        )
        return Asked(span)

    async def stop(self) -> None:
        await self._spans.stop()


def count(result: str, spans: int) -> None:
    WORKERS_SPANS.labels(result).inc(spans)


def open_tracing(group: str) -> Tracing:
    """As the OTEL_* variables want it. Raises WrongUse for what they may not say."""
    return Tracing(open_spans(SERVICE, count), group)
