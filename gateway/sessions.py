"""A trajectory's uid becomes its place: run, prompt and channel, known here or by the index that every replica tails.

Invariants:
- before a trajectory counts as unknown, this replica has read the index up to its end as of the question;
- while the broker is away and facts go to the spool, what is not known here gets its place from its path. That is a guess,
  made only by a process that has read the index once: a registration at another replica moments before is not seen. So it is
  not written to the index, and the first question after the broker is back asks the index;
- the index is written before a trajectory's first step and tombstoned after its end;
- memory is bounded; a forgotten trajectory counts as unknown again, and forgetting is counted; those that are over are
  forgotten first.
"""

import asyncio
import logging
import time
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord
from aiokafka.errors import ConsumerStoppedError, KafkaError

from claw_r1 import bus, topics
from claw_r1.codec import decode_body
from claw_r1.errors import ClawError, InvalidRecord, RetryableError
from claw_r1.events import TrajectoryIndex
from claw_r1.metrics import GATEWAY_FORGOTTEN, GATEWAY_MISPLACED
from gateway.durable.recorder import Recorder
from gateway.places import Places, Session
from gateway.replies import Refusal
from gateway.rollouts.admission import Groups

log = logging.getLogger("claw.gateway.sessions")

RETRY_EVERY: Final = 0.5
PATIENCE: Final = 1.0
"""Seconds after which, with a spool, somebody who waits for the index has the broker looked for."""


class Sessions:
    """What this replica knows of trajectories, and the tail of the index by which it learns what others know."""

    def __init__(
        self,
        kafka: str,
        default_run: str,
        limit: int,
        deadline: float,
        recorder: Recorder | None = None,
        groups: Groups | None = None,
    ) -> None:
        self._kafka = kafka
        self._default_run = default_run
        self._deadline = deadline
        self._places = Places(limit)
        self._guesses = Places(limit)
        self._groups = groups
        """Who counts the groups that the index shows."""
        self._recorder = recorder
        """Who knows whether the broker is away and facts go to the spool."""
        self._consumer: AIOKafkaConsumer | None = None
        # A connection of its own: a question would wait behind the tail's long poll.
        self._asker: AIOKafkaConsumer | None = None
        self._tailer: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()
        self._unread: str | None = "reading the trajectory index"
        self.was_read = asyncio.Event()
        """The index was read to its end once: a process that knows nothing at all guesses nothing."""

    @property
    def reason(self) -> str | None:
        """Why a trajectory cannot be placed here; None once the index was read, and while it need not be."""
        return None if self._spooling and self.was_read.is_set() else self._unread

    @property
    def _spooling(self) -> bool:
        return self._recorder is not None and self._recorder.spooling

    def start(self) -> None:
        """Tail the index in the background."""
        self._tailer = asyncio.create_task(self._tail(), name="trajectory-index")
        self._tailer.add_done_callback(self._ended)

    def _ended(self, tailer: asyncio.Task[None]) -> None:
        if not tailer.cancelled():
            self._unread = "the gateway failed at reading the trajectory index: its log says why. Start it again"
            log.error("the trajectory index is not followed any more", exc_info=tailer.exception())

    async def stop(self) -> None:
        if self._tailer is not None:
            self._tailer.cancel()
            await asyncio.wait([self._tailer])

    def put(self, session: Session, at: float | None = None) -> None:
        """Remember what was registered, here (now) or elsewhere (at seconds since the epoch)."""
        if self._groups is not None:
            self._groups.enter(session, self._places.get(session.trajectory_uid), time.time() if at is None else at)
        evicted = self._places.evicted
        self._places.put(session)
        GATEWAY_FORGOTTEN.inc(self._places.evicted - evicted)

    async def find(self, trajectory_uid: str) -> Session | None:
        """The session of a trajectory that any replica registered. Raises RetryableError if the index cannot be read.

        While the broker is away and facts go to the spool: the session as far as it is known here, or was guessed here.
        """
        session = self._places.get(trajectory_uid)
        if session is not None:
            return session
        if await self._can_catch_up():
            return self._check_guess(trajectory_uid)
        return self._places.get(trajectory_uid) or self._guesses.get(trajectory_uid)

    async def _can_catch_up(self) -> bool:
        """True once the index was read; False if there is a spool and the broker is away. Raises RetryableError."""
        if self._spooling and self.was_read.is_set():
            return False
        if self._recorder is not None and self._recorder.has_spool:
            try:
                await self._catch_up(min(PATIENCE, self._deadline))
                return True
            except RetryableError:
                if await self._recorder.look() and self.was_read.is_set():
                    return False
        await self._catch_up(self._deadline)
        return True

    def _check_guess(self, trajectory_uid: str) -> Session | None:
        """What the index says, now that it was read."""
        session, guess = self._places.get(trajectory_uid), self._guesses.pop(trajectory_uid)
        if session is not None and guess is not None and guess.run_id != session.run_id:
            GATEWAY_MISPLACED.inc()
            log.error(
                "steps of a trajectory went to the default run while the broker was away",
                extra={"trajectory_uid": trajectory_uid, "run_id": session.run_id, "default_run": guess.run_id},
            )
        return session

    async def resolve(
        self, trajectory_uid: str, prompt_uid: str, *, run_id: str | None = None, channel: str | None = None
    ) -> tuple[Session, bool]:
        """The session of a trajectory under this prompt, and whether the index must be written for it.

        Raises Refusal(409) if it belongs to another run.
        """
        known = await self.find(trajectory_uid)
        guessed = known is not None and self._places.get(trajectory_uid) is None
        if known is not None and not guessed and run_id not in (None, known.run_id):
            raise Refusal(
                409,
                f"trajectory {trajectory_uid} belongs to run {known.run_id}: give each trajectory an id of its own",
                param="run_id",
                code="other_run",
            )
        session = Session(
            run_id or (known.run_id if known else self._default_run),
            prompt_uid,
            trajectory_uid,
            channel or (known.channel if known else None),
        )
        if run_id is None and self._spooling and self._places.get(trajectory_uid) is None:
            self._guesses.put(session)
            return session, False
        return session, session != known

    async def _catch_up(self, deadline: float) -> None:
        """Wait until the tail has passed the index's end as of now."""
        if not self.was_read.is_set():
            raise RetryableError(self._unread or "the trajectory index is not read")
        try:
            async with asyncio.timeout(deadline):
                while (consumer := self._consumer) is None or (asker := self._asker) is None:
                    await self._move()  # the tail connects again
                ends = await bus.end_offsets(asker, consumer.assignment())
                while not await self._passed(consumer, ends):
                    await self._move()
        except (ConsumerStoppedError, KafkaError, TimeoutError) as error:
            raise RetryableError(f"the trajectory index could not be read within {deadline:g} s") from error

    async def _move(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    @staticmethod
    async def _passed(consumer: AIOKafkaConsumer, ends: dict[object, int]) -> bool:
        for partition, end in ends.items():
            if await consumer.position(partition) < end:
                return False
        return True

    async def _tail(self) -> None:
        while True:
            try:
                await self._read()
            except (ClawError, KafkaError, OSError, TimeoutError) as error:
                self._unread = f"the trajectory index is not read: {str(error) or repr(error)}"
                log.warning("the trajectory index is not read", extra={"error": repr(error)})
            finally:
                clients = (self._consumer, self._asker)
                self._consumer = self._asker = None
                for client in clients:
                    if client is not None:
                        await bus.stop_consumer(client)
            await asyncio.sleep(RETRY_EVERY)

    async def _read(self) -> None:
        async with asyncio.timeout(self._deadline):
            consumer = await bus.start_consumer(self._kafka, topics.TRAJECTORY_INDEX, client_id="claw-gateway")
            self._consumer = consumer
            self._asker = await bus.start_consumer(self._kafka, client_id="claw-gateway-ask")
            ends = await bus.end_offsets(consumer, consumer.assignment())
        while True:
            if self._unread is not None and await self._passed(consumer, ends):
                self._unread = None
                self.was_read.set()
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    self._take(record)
            self._moved.set()

    def _take(self, record: ConsumerRecord) -> None:
        if record.value is None:
            self._places.end((record.key or b"").decode(errors="replace"))
            return
        try:
            index = decode_body(TrajectoryIndex, record.value)
        except InvalidRecord as error:
            log.error("an index record does not decode", extra={"offset": record.offset, "error": str(error)})
            return
        session = Session(
            index.run_id, index.prompt_uid, index.trajectory_uid, index.channel, provisional=index.provisional
        )
        self.put(session, record.timestamp / 1000)
