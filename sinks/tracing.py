"""A flush is told as one span, linked to the spans that its records name: of calls, of decisions, of batches.

Invariant: a span ends when its flush does, with the reason if that failed; what is tried again is another span.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from aiokafka import TopicPartition
from opentelemetry.trace import SpanKind

from claw_r1.errors import RetryableError
from claw_r1.membership import Fenced
from claw_r1.metrics import SINKS_SPANS
from claw_r1.tracing import Spans, fail, open_spans
from sinks.plan import Partition

SERVICE: Final = "claw-sinks"


class Tracing:
    """The spans of one sink."""

    def __init__(self, spans: Spans, group: str, database: str) -> None:
        """`group` is the consumer group."""
        self._spans = spans
        self._about: dict[str, object] = {
            "messaging.system": "kafka",
            "messaging.operation.name": "store",
            "messaging.operation.type": "process",
            "messaging.consumer.group.name": group,
            "db.system.name": "clickhouse",
            "db.namespace": database,
        }

    @contextlib.contextmanager
    def flush(self, partitions: Mapping[TopicPartition, Partition]) -> Iterator[None]:
        """The promised ranges of these partitions are stored within."""
        topics = {tp.topic for tp in partitions}
        (topic,) = topics if len(topics) == 1 else (None,)
        span = self._spans.begin(
            "store" if topic is None else f"store {topic}",
            SpanKind.CONSUMER,
            self._about | {"messaging.destination.name": topic} | describe(partitions),
            traces=[trace for partition in partitions.values() for trace in partition.range.traces],
        )
        try:
            yield
        except BaseException as error:
            fail(span, _reason(error))
            raise
        finally:
            span.end()

    async def stop(self) -> None:
        await self._spans.stop()


def describe(partitions: Mapping[TopicPartition, Partition]) -> dict[str, object]:
    """What promised ranges hold: records, rows by table, and the offsets of each, first and last."""
    rows = Counter[str]()
    for partition in partitions.values():
        rows.update({table: len(found) for table, found in partition.range.rows.items()})
    return {
        "messaging.batch.message_count": sum(partition.range.count for partition in partitions.values()),
        "claw.ranges": [f"{p.name} {p.first}-{p.last}" for p in partitions.values()],
        **{f"claw.rows.{table}": number for table, number in sorted(rows.items())},
    }


def _reason(error: BaseException) -> str:
    match error:
        case Fenced():
            return "fenced"
        case RetryableError():
            return "unavailable"
    return type(error).__name__


def count(result: str, spans: int) -> None:
    SINKS_SPANS.labels(result).inc(spans)


def open_tracing(group: str, database: str) -> Tracing:
    """As the OTEL_* variables want it. Raises WrongUse for what they may not say."""
    return Tracing(open_spans(SERVICE, count), group, database)
