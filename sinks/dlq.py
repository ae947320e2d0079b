"""Records that cannot be stored go to their topic's dead-letter topic; too many of them stop the sink instead."""

from collections import deque
from collections.abc import Iterable
from typing import Final

from aiokafka import AIOKafkaProducer

from claw_r1 import bus
from claw_r1.dlq import dead_letter
from claw_r1.errors import InvalidRecord, UserError
from claw_r1.topics import dlq_topic, dlq_topic_spec
from sinks.plan import Dead

SEND_DEADLINE: Final = 15.0
WINDOW: Final = 1000


class TooManyInvalid(UserError):
    """So many records are invalid that something else is wrong than the records."""


class InvalidBudget:
    """How many invalid records are borne: `run` of them in a row in one topic, or half of the last 1000 of all."""

    def __init__(self, run: int) -> None:
        self._run = run
        self._in_a_row: dict[str, int] = {}
        self._recent: deque[bool] = deque(maxlen=WINDOW)

    def valid(self, topic: str) -> None:
        self._in_a_row.pop(topic, None)
        self._recent.append(False)

    def invalid(self, topic: str, error: InvalidRecord) -> None:
        """Raises TooManyInvalid."""
        self._in_a_row[topic] = self._in_a_row.get(topic, 0) + 1
        self._recent.append(True)
        share = sum(self._recent) / WINDOW
        if self._in_a_row[topic] >= self._run or share >= 0.5:
            raise TooManyInvalid(
                f"{self._in_a_row[topic]} records in a row of {topic}, and {share:.0%} of the last {WINDOW} of all, cannot "
                f"be stored; the last one: {error}. Nothing of the last buffer was moved to dead letters. If a newer version "
                "writes these records, update this one; if they are really to be given up, raise CLAW_SINKS_MAX_INVALID."
            )


class DeadLetters:
    """Publishes dead letters; the producer starts with the first."""

    def __init__(self, kafka: str) -> None:
        self._kafka = kafka
        self._producer: AIOKafkaProducer | None = None
        self._known: set[str] = set()

    async def publish(self, dead: Iterable[Dead]) -> None:
        """Every record is acknowledged when this returns; a repeated call repeats them with the same headers.

        Raises RetryableError if the broker does not acknowledge.
        """
        for record, error in dead:
            topic = dlq_topic(record.topic)
            if self._producer is None:
                self._producer = await bus.start_producer(self._kafka, client_id="claw-sinks-dlq")
            if topic not in self._known:
                await bus.ensure_topic(self._kafka, dlq_topic_spec(record.topic))
                self._known.add(topic)
            letter = dead_letter(record, error, stage="sinks")
            try:
                await bus.publish(self._producer, topic, letter, deadline=SEND_DEADLINE)
            except InvalidRecord:
                # With the claw-dlq-* headers it is over the limit: the headers alone still say where the record is.
                await bus.publish(self._producer, topic, letter._replace(value=b""), deadline=SEND_DEADLINE)

    async def close(self) -> None:
        if self._producer is not None:
            await bus.stop_producer(self._producer)
