"""What the spool holds goes to the broker, in order, and leaves the spool when the broker has acknowledged it.

Invariants:
- records go in the order in which they were spooled; of one partition, none is on its way before those before it are handed
  to the same producer, which keeps their order;
- while little is left, `gate` is closed: calls wait a moment for the end of the queue instead of prolonging it, and whoever
  comes after the end goes straight to the broker. It never stays closed while the broker is silent, and nobody waits at it
  beyond a deadline, since the disk may hang;
- a record that the broker refuses for good is kept aside and counted, and holds up nothing.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from claw_r1 import bus
from claw_r1.errors import RetryableError
from claw_r1.metrics import GATEWAY_DROPPED, GATEWAY_SPOOL_DRAINED
from gateway.durable.frames import Entry
from gateway.durable.spool import Chunk, Spool

log = logging.getLogger("claw.gateway.spool")

WINDOW_RECORDS: Final = 256
WINDOW_BYTES: Final = 512 * 1024
"""Most that is on its way at once (one record may be more): below the size at which a producer makes senders wait."""
HANDOVER_RECORDS: Final = 512
"""As few are sent in a moment, for which calls wait."""
PATIENCE: Final = 1.0
"""Seconds of silence after which calls go on to the spool."""


class Drain:
    """Empties a spool."""

    def __init__(self, spool: Spool, send_timeout: float) -> None:
        self._spool = spool
        self._send_timeout = send_timeout
        self._chunk: Chunk | None = None
        self.gate = asyncio.Event()
        """Closed, that is not set, for the moment of the handover."""
        self.gate.set()
        self.silent = False
        """The broker has not acknowledged for `PATIENCE`."""

    async def run(self, producer: AIOKafkaProducer) -> None:
        """Return when the spool is empty. Raises RetryableError: the rest is still in the spool, for another producer."""
        spool = self._spool
        drained = 0
        try:
            while not spool.empty:
                if spool.records <= HANDOVER_RECORDS:
                    self.gate.clear()
                self._chunk = self._chunk or await spool.read()
                if self._chunk is None:
                    continue
                await self._deliver(producer, self._chunk)
                drained += len(self._chunk.entries)
                done, self._chunk = self._chunk, None  # also if a stop comes in between
                await spool.advance(done)
                spool.tell()
        except OSError as error:
            raise RetryableError(f"the spool cannot be read: {error}") from error
        finally:
            self.gate.set()
            self.silent = False
        if drained:
            log.info("the spool is empty: facts go to the broker again", extra={"records": drained})

    async def pass_gate(self, deadline: float) -> None:
        """Wait while the gate is closed. Raises Refusal(503) at the deadline: the spool's disk hangs."""
        try:
            async with asyncio.timeout_at(deadline):
                await self.gate.wait()
        except TimeoutError:
            raise self._spool.late() from None

    async def _deliver(self, producer: AIOKafkaProducer, chunk: Chunk) -> None:
        while window := _window(chunk):
            try:
                await self._send(producer, window)
            except MessageSizeTooLargeError as error:
                if len(window) == 1:
                    kept = await self._spool.keep_refused(window[0])
                    GATEWAY_DROPPED.labels("too_large").inc()
                    log.error("the broker refuses a record for its size: it is kept aside", extra={"kept": str(kept)})
                    chunk.position += 1
                else:
                    chunk.suspect = chunk.position + len(window)  # which of them, only single sends tell
                # The producer has counted what the broker has not: only another one can go on.
                raise RetryableError("the broker refuses a record for its size") from error
            GATEWAY_SPOOL_DRAINED.inc(len(window))
            chunk.position += len(window)

    async def _send(self, producer: AIOKafkaProducer, window: Sequence[Entry]) -> None:
        """Return when the broker has all of them. Raises RetryableError or MessageSizeTooLargeError."""
        acknowledgements: set[asyncio.Future[object]] = set()
        patience = asyncio.get_running_loop().call_later(PATIENCE, self._lose_patience)
        try:
            async with asyncio.timeout(self._send_timeout):
                for entry in window:
                    acknowledgements.add(
                        await bus.send(producer, entry.topic, entry.key, entry.value, list(entry.headers))
                    )
            await self._wait(producer, acknowledgements)
            for future in acknowledgements:
                future.result()
        except MessageSizeTooLargeError:
            raise
        except (KafkaError, TimeoutError) as error:
            raise RetryableError(f"the broker does not take the spool's records: {error!r}") from error
        finally:
            patience.cancel()
            for future in acknowledgements:
                if not future.done():
                    future.cancel()
                elif not future.cancelled():
                    future.exception()  # told by one of them

    async def _wait(self, producer: AIOKafkaProducer, waiting: set[asyncio.Future[object]]) -> None:
        """For as long as it takes: what was handed over arrives, and handing it over again would only double it."""
        while waiting:
            _, waiting = await asyncio.wait(waiting, timeout=PATIENCE)
            self._spool.tell()
            if waiting and bus.is_broken(producer):
                raise RetryableError("the producer ended")
        self.silent = False

    def _lose_patience(self) -> None:
        self.gate.set()
        self.silent = True


def _window(chunk: Chunk) -> list[Entry]:
    """The next entries of a chunk."""
    if chunk.position < chunk.suspect:
        return chunk.entries[chunk.position : chunk.position + 1]
    window: list[Entry] = []
    size = 0
    for entry in chunk.entries[chunk.position : chunk.position + WINDOW_RECORDS]:
        size += len(entry.value or b"")
        if window and size > WINDOW_BYTES:
            break
        window.append(entry)
    return window
