"""Dead letters are read, counted and sent again: the record goes back to its topic as it was, and the letter is marked.

Invariants: a letter goes back with its original bytes, key and headers, to its original partition; a mark is written after the
topic acknowledged the record, so that a replay that broke off loses none, and one that is repeated sends none again that is
marked; what died for two readers goes back once; nothing that comes while a replay runs is part of it.
"""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from claw_r1 import bus
from claw_r1.codec import Record
from claw_r1.errors import UserError
from claw_r1.topics import dlq_topic

PREFIX: Final = "claw-dlq-"
MARK: Final = "claw-dlq-replayed"
"""Header of a record that says: the letter of this offset went back."""
SEND_DEADLINE: Final = 15.0
Origin = tuple[str, int, int]
"""Topic, partition, offset."""


@dataclass(frozen=True)
class Letter:
    """A record that could not be read, or not be stored, and where it came from."""

    offset: int
    """Of the dead-letter topic: the letter's name there."""
    origin: Origin
    timestamp: int
    """When the record was appended to its topic, ms."""
    reason: str
    error: str
    stage: str
    key: bytes | None
    value: bytes
    """Empty: the letter would have been too large with it, and the record is only at its origin."""
    headers: tuple[tuple[str, bytes], ...] = ()
    """The record's own."""
    replayed: bool = False


def letter_of(record: ConsumerRecord) -> Letter | None:
    """The letter in a record of a dead-letter topic; None if it is no letter."""
    said = {name: value.decode(errors="replace") for name, value in record.headers if name.startswith(PREFIX)}
    try:
        origin = (said[PREFIX + "topic"], int(said[PREFIX + "partition"]), int(said[PREFIX + "offset"]))
    except (KeyError, ValueError):
        return None
    return Letter(
        offset=record.offset,
        origin=origin,
        timestamp=int(said.get(PREFIX + "timestamp", "0")),
        reason=said.get(PREFIX + "reason", "unknown"),
        error=said.get(PREFIX + "error", ""),
        stage=said.get(PREFIX + "stage", "unknown"),
        key=record.key,
        value=record.value or b"",
        headers=tuple((name, value) for name, value in record.headers if not name.startswith(PREFIX)),
    )


def mark_of(record: ConsumerRecord) -> int | None:
    """The offset of the letter that a mark says went back; None if the record is no mark."""
    said = next((value for name, value in record.headers if name == MARK), b"")
    return int(said) if said.isdigit() else None


@dataclass
class Found:
    """What a dead-letter topic holds."""

    topic: str
    letters: int = 0
    replayed: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """Of letters that did not go back."""
    stages: dict[str, int] = field(default_factory=dict)
    first: int | None = None
    last: int | None = None


@dataclass
class Replay:
    """What a replay did, or would do."""

    topic: str
    sent: list[int] = field(default_factory=list)
    """Offsets of letters."""
    doubles: list[int] = field(default_factory=list)
    """Letters whose record went back with another letter."""
    without_value: list[int] = field(default_factory=list)
    already: int = 0
    """Letters that fit and went back before."""


async def dead_letter_topics(kafka: str) -> list[str]:
    """Those that the broker has, without their suffix."""
    suffix = dlq_topic("")
    async with bus.admin(kafka) as client:
        return sorted(topic.removesuffix(suffix) for topic in await client.list_topics() if topic.endswith(suffix))


@dataclass(frozen=True)
class Waiting:
    """Letters of a topic that did not go back, as of its end."""

    end: int
    letters: int


async def count_waiting(kafka: str, known: Mapping[str, Waiting]) -> dict[str, Waiting]:
    """How many letters of each topic did not go back; one that has not grown since `known` is not read again.

    Raises DependencyUnreachable if no broker answers, RetryableError if it stops answering.
    """
    topics = {topic: TopicPartition(dlq_topic(topic), 0) for topic in await dead_letter_topics(kafka)}
    consumer = await bus.start_consumer(kafka, client_id="claw-dlq")
    try:
        ends = await bus.end_offsets(consumer, topics.values()) if topics else {}
    finally:
        await bus.stop_consumer(consumer)
    counted = {}
    for topic, place in topics.items():
        before = known.get(topic, Waiting(0, 0))
        counted[topic] = before
        if ends[place] != before.end:
            letters = await DeadLetterTopic.opened(kafka, topic)
            try:
                found = await letters.found()
            finally:
                await letters.close()
            counted[topic] = Waiting(ends[place], found.letters - found.replayed)
    return counted


class DeadLetterTopic:
    """The dead letters of one topic, as they are now; use `opened`."""

    def __init__(self, topic: str, consumer: AIOKafkaConsumer, numbers: set[int], start: int, end: int) -> None:
        self.topic = topic
        self._numbers = numbers
        """The original topic's partitions."""
        self._consumer = consumer
        self._start, self._end = start, end

    @classmethod
    async def opened(cls, kafka: str, topic: str) -> "DeadLetterTopic":
        """Raises UserError if the topic has no dead letters' topic."""
        consumer = await bus.start_reader(kafka, client_id="claw-dlq")
        try:
            try:
                await bus.partitions_of(consumer, dlq_topic(topic))
            except UserError as error:
                why = f"there are no dead letters of {topic}: `claw dlq list` shows the topics that have some"
                raise UserError(why) from error
            numbers: set[int] = set()
            with contextlib.suppress(UserError):  # its letters can be shown, not sent back
                numbers = await bus.partitions_of(consumer, topic)
            place = TopicPartition(dlq_topic(topic), 0)
            consumer.assign([place])
            start = (await consumer.beginning_offsets([place]))[place]
            end = (await bus.end_offsets(consumer, [place]))[place]
        except BaseException:
            await bus.stop_consumer(consumer)
            raise
        return cls(topic, consumer, numbers, start, end)

    async def close(self) -> None:
        await bus.stop_consumer(self._consumer)

    async def letters(self, start: int | None = None, end: int | None = None) -> AsyncIterator[Letter]:
        """In order, from offset `start` to before `end`; `replayed` is not told here."""
        async for record in self._records(start, end):
            letter = letter_of(record)
            if letter is not None:
                yield letter

    async def marks(self) -> set[int]:
        """Offsets of the letters that went back."""
        return {mark async for record in self._records() if (mark := mark_of(record)) is not None}

    async def found(self) -> Found:
        """What the topic holds, by reason."""
        found, letters, marks = Found(self.topic), [], set()
        async for record in self._records():
            if (mark := mark_of(record)) is not None:
                marks.add(mark)
            elif (letter := letter_of(record)) is not None:
                letters.append((letter.offset, letter.reason, letter.stage))
        found.letters = len(letters)
        found.replayed = sum(offset in marks for offset, _, _ in letters)
        found.reasons = dict(Counter(reason for offset, reason, _ in letters if offset not in marks).most_common())
        found.stages = dict(Counter(stage for offset, _, stage in letters if offset not in marks).most_common())
        found.first, found.last = (letters[0][0], letters[-1][0]) if letters else (None, None)
        return found

    async def _records(self, start: int | None = None, end: int | None = None) -> AsyncIterator[ConsumerRecord]:
        place = TopicPartition(dlq_topic(self.topic), 0)
        low, high = max(start or 0, self._start), min(self._end if end is None else end, self._end)
        async for records in bus.read_range(self._consumer, place, low, high):
            for record in records:
                yield record

    async def replay(
        self, kafka: str, choose: Callable[[Letter], bool], *, again: bool = False, dry_run: bool = False
    ) -> Replay:
        """Send the chosen letters' records back, in order. `again`: also those that went back before.

        Raises UserError if the original topic or partition is not there, RetryableError if the broker goes away: then the
        same call goes on.
        """
        done = await self.marks()
        replay = Replay(self.topic)
        sent: set[Origin] = {letter.origin async for letter in self.letters() if letter.offset in done and not again}
        producer = None if dry_run else await bus.start_producer(kafka, client_id="claw-dlq")
        try:
            async for letter in self.letters():
                if not choose(letter):
                    continue
                if letter.offset in done and not again:
                    replay.already += 1
                elif not letter.value:
                    replay.without_value.append(letter.offset)
                else:
                    _check_place(letter, self.topic, self._numbers)
                    double = letter.origin in sent
                    if producer is not None:
                        await _send(producer, letter, mark_only=double)
                    sent.add(letter.origin)
                    (replay.doubles if double else replay.sent).append(letter.offset)
        finally:
            if producer is not None:
                await bus.stop_producer(producer)
        return replay


def _check_place(letter: Letter, topic: str, numbers: set[int]) -> None:
    home, partition, _ = letter.origin
    if home != topic or partition not in numbers:
        raise UserError(f"letter {letter.offset} came from {home}[{partition}], which is not there: it cannot go back")


async def _send(producer: AIOKafkaProducer, letter: Letter, *, mark_only: bool) -> None:
    """No transaction: a reader of facts takes a transaction's marker for a fact that it was not given."""
    topic, partition, _ = letter.origin
    if not mark_only:
        record = Record(letter.key, letter.value, list(letter.headers))
        await bus.publish(producer, topic, record, deadline=SEND_DEADLINE, partition=partition)
    mark = Record(letter.key, b"", [(MARK, str(letter.offset).encode())])
    await bus.publish(producer, dlq_topic(topic), mark, deadline=SEND_DEADLINE, partition=0)
