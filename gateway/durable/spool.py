"""A fact that the broker cannot take is durable on this machine's disk, and waits there, in order, for the broker.

One queue for all topics and partitions: what is read is in the order in which it was appended, over every process that had
the folder before. Many facts that are appended at once cost one fsync, in a thread, so that the event loop never waits.

Invariants:
- an append returns after its fsync, or raises and is not in the spool; one that the disk does not take in time raises too,
  and may be there later;
- what is read stays until `advance` says that the broker has it; a process that dies in between sends it again;
- never more than `limit` bytes, and beyond nine tenths no new call is let in, so that those that run find room;
- what cannot be read is kept aside, counted and logged, never skipped in silence.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from claw_r1.errors import WrongUse
from claw_r1.metrics import GATEWAY_SPOOL_BYTES, GATEWAY_SPOOL_OLDEST, GATEWAY_SPOOL_RECORDS
from gateway.durable.frames import FRAME_HEAD, SEGMENT_HEAD, Entry, encode_entry
from gateway.durable.segments import Folder, Segment, Writer, examine, hold_folders, keep_refused, let_go, read_entries
from gateway.replies import Refusal, unavailable

log = logging.getLogger("claw.gateway.spool")
T = TypeVar("T")

SEGMENT_BYTES: Final = 16 * 2**20
"""A segment goes as a whole: this much may be sent again after a crash."""
GROUP_BYTES: Final = 8 * 2**20
"""Most that one fsync makes durable."""
ADMIT: Final = 0.9
RETRY_AFTER: Final = 5.0
BROKEN_FOR: Final = 1.0
"""Seconds after a failed write in which no call is let in."""
CLOSE_WITHIN: Final = 5.0
TIMEOUT: Final = 15.0


@dataclass(eq=False)
class Chunk:
    """Entries of one segment, in order; those before `position` are no longer needed."""

    segment: Segment
    entries: list[Entry]
    end: int
    position: int = 0
    suspect: int = 0
    """One of the entries up to here is larger than its topic takes."""


@dataclass(eq=False, slots=True)
class _Append:
    payloads: list[bytes]
    size: int
    at: float
    durable: asyncio.Future[None]


class Spool:
    """The spool of one process."""

    def __init__(self, root: Path, limit: int, segment_bytes: int = SEGMENT_BYTES, *, timeout: float = TIMEOUT) -> None:
        """`timeout`: longest wait for the disk to take a fact, seconds."""
        self.root = root
        self._limit = limit
        self._timeout = timeout
        self._segment_bytes = min(segment_bytes, max(1, limit // 8))
        self._folders: list[Folder] = []
        self._segments: deque[Segment] = deque()
        self._writer: Writer | None = None
        self._active: Segment | None = None
        """The segment that was written last; more may come behind what is known of it."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._appends: deque[_Append] = deque()
        self._flusher: asyncio.Task[None] | None = None
        self._broken: tuple[float, str] | None = None
        self._hangs = False
        """A write is late; until it returns nobody knows what becomes of it and of those behind it."""
        self.bytes = 0
        """On the disk or on the way there; freed with their segment."""
        self.records = 0
        """Durable, and not known to be at the broker."""

    # --------------------------------------------------------------------------------------------------- begin and end

    def open(self) -> None:
        """Take the folders that no living process holds. Raises WrongUse."""
        try:
            self._folders = hold_folders(self.root)
        except OSError as error:
            raise WrongUse(
                f"the spool's folder {self.root} cannot be used: {error.strerror}. Choose another with "
                "CLAW_GATEWAY_SPOOL, or none."
            ) from error
        self._writer = Writer(self._folders[0].path, self._segment_bytes)

    async def load(self) -> None:
        """Find what earlier processes left. Raises OSError."""
        for folder in self._folders:
            await self._run(examine, folder)
            self._segments.extend(folder.segments)
        self.records = sum(segment.records for segment in self._segments)
        self.bytes = sum(segment.size - SEGMENT_HEAD for segment in self._segments)
        if self.records:
            left = {"records": self.records, "bytes": self.bytes, "folders": len(self._folders)}
            log.warning("the spool holds facts of an earlier process", extra=left)

    async def close(self) -> None:
        """Write what was appended, and give the folders up; empty ones go."""
        if self._flusher is not None:
            await asyncio.wait([self._flusher], timeout=CLOSE_WITHIN)
        if self._writer is not None:
            ending = [self._run(self._writer.end), *(self._run(let_go, folder) for folder in self._folders)]
            await asyncio.wait(ending, timeout=CLOSE_WITHIN)
        self._thread.shutdown(wait=False)
        for gauge in (GATEWAY_SPOOL_BYTES, GATEWAY_SPOOL_RECORDS, GATEWAY_SPOOL_OLDEST):
            gauge.set(0.0)
        if self.records:
            left = {"records": self.records, "bytes": self.bytes, "spool": str(self.root)}
            log.warning("facts stay in the spool for the next start", extra=left)

    # ---------------------------------------------------------------------------------------------------------- status

    @property
    def empty(self) -> bool:
        """Nothing waits here and nothing is on its way here."""
        return self.records <= 0 and self._flusher is None

    @property
    def oldest(self) -> float:
        """Age of the oldest fact, seconds; 0 if there is none."""
        first = next((s.first_at for s in self._segments if s.taken < s.size and s.first_at is not None), None)
        return 0.0 if first is None else max(0.0, time.time() - first)

    def tell(self) -> None:
        """Bring the metrics up to date. Call it now and then: an age grows by itself."""
        GATEWAY_SPOOL_BYTES.set(self.bytes)
        GATEWAY_SPOOL_RECORDS.set(self.records)
        GATEWAY_SPOOL_OLDEST.set(self.oldest)

    def check(self) -> None:
        """Raise Refusal(503) if no new call should begin."""
        if self.bytes >= ADMIT * self._limit:
            raise self._full()
        if self._hangs:
            raise self.late()
        if self._broken is not None and time.monotonic() < self._broken[0]:
            raise _failed(self._broken[1])

    def _full(self) -> Refusal:
        return unavailable(
            f"the broker is away and the spool is full ({self.bytes} of {self._limit} bytes): try again when the broker "
            "is back, or raise CLAW_GATEWAY_SPOOL_BYTES",
            code="spool_full",
            retry_after=RETRY_AFTER,
        )

    def late(self) -> Refusal:
        """503: the disk does not answer."""
        return _failed(f"its disk does not answer within {self._timeout:g} s")

    # ---------------------------------------------------------------------------------------------------------- append

    def append(self, entries: Sequence[Entry]) -> asyncio.Future[None]:
        """Queue entries behind all before; the future is done when they are durable, or fails with Refusal(503).

        Raises Refusal(503) if there is no room for them. Call it from the event loop.
        """
        at = time.time()
        payloads = [encode_entry(entry, at) for entry in entries]
        size = sum(FRAME_HEAD + len(payload) for payload in payloads)
        if self.bytes + size > self._limit:
            raise self._full()
        self.bytes += size
        loop = asyncio.get_running_loop()
        durable: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(self._timeout, self._lose_patience, durable)
        durable.add_done_callback(lambda _: timer.cancel())
        self._appends.append(_Append(payloads, size, at, durable))
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush(), name="spool")
        return durable

    def _lose_patience(self, durable: asyncio.Future[None]) -> None:
        if durable.done():
            return  # in this turn of the loop: its timer was due before it could be cancelled
        if not self._hangs:
            log.error("the spool's disk hangs: no call is let in until it answers", extra={"spool": str(self.root)})
        self._hangs = True
        durable.set_exception(self.late())

    async def _flush(self) -> None:
        assert self._writer is not None
        try:
            while self._appends:
                group, size = [self._appends.popleft()], 0
                while self._appends and (size := size + group[-1].size) < GROUP_BYTES:
                    group.append(self._appends.popleft())
                await self._write(self._writer, group)
        finally:
            self._flusher = None
            self._hangs = False

    async def _write(self, writer: Writer, group: list[_Append]) -> None:
        """What is late is written all the same: what stands behind it waits for it."""
        size = sum(append.size for append in group)
        try:
            segment, end = await self._run(writer.write, [p for append in group for p in append.payloads])
        except (OSError, RuntimeError) as error:  # RuntimeError: the spool was closed
            self.bytes -= size
            self._broken = (time.monotonic() + BROKEN_FOR, getattr(error, "strerror", None) or str(error))
            log.error("the spool cannot be written", extra={"spool": str(self.root), "error": str(error)})
            for append in group:
                if not append.durable.done():
                    append.durable.set_exception(_failed(self._broken[1]))
            return
        if segment is not self._active:
            self._active = segment
            self._segments.append(segment)
        records = sum(len(append.payloads) for append in group)
        segment.size = end
        segment.records += records
        if segment.first_at is None:
            segment.first_at = group[0].at
        self.records += records
        for append in group:
            if not append.durable.done():
                append.durable.set_result(None)

    # ------------------------------------------------------------------------------------------------------------ read

    async def read(self) -> Chunk | None:
        """The oldest entries that are still needed; None if nothing durable is. Raises OSError."""
        while self._segments:
            segment = self._segments[0]
            end = segment.size
            if segment.taken < end:
                found = await self._run(read_entries, segment, segment.taken, end)
                if found.entries:
                    return Chunk(segment, found.entries, end)
                segment.taken = end  # nothing but damage
            if not await self._retire(segment):
                break
        if self._flusher is not None:
            await asyncio.wait([self._flusher])
        return None

    async def advance(self, chunk: Chunk) -> None:
        """The broker has all of a chunk. Raises OSError."""
        segment = chunk.segment
        segment.taken = chunk.end
        segment.records -= len(chunk.entries)
        self.records -= len(chunk.entries)
        segment.first_at = time.time() if segment.taken < segment.size else None
        await self._retire(segment)

    async def keep_refused(self, entry: Entry) -> Path:
        """Keep a record aside that the broker refuses for good. Raises OSError."""
        return await self._run(keep_refused, self.root, entry, time.time())

    async def _retire(self, segment: Segment) -> bool:
        """Delete a segment that is no longer needed; False if more may be written to it."""
        if segment.taken < segment.size:
            return False
        if segment is self._active:
            if self._flusher is not None:
                return False
            assert self._writer is not None
            self._active = None
            ending = self._run(self._writer.end)  # queued before any later write
        else:
            ending = None
        self._segments.remove(segment)
        self.records -= segment.records  # what turned out to be damaged
        self.bytes -= segment.size - SEGMENT_HEAD
        if ending is not None:
            await ending
        await self._run(segment.path.unlink, True)
        return True

    def _run(self, function: Callable[..., T], *args: object) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


def _failed(why: str) -> Refusal:
    return unavailable(
        f"the broker is away and the spool cannot be written: {why}", code="spool_failed", retry_after=BROKEN_FOR
    )
