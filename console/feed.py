"""What is new reaches every open page here: one look at the pool for all viewers, kept for those who were away for a moment.

Invariants: the pool is asked by the feed alone, once a period for each distinct filter, however many follow it, and not at
all while nobody looks; rows come in the log's order, each once; what is kept is bounded, and whoever falls behind what is
kept is told so (`gap`) and reads the list anew.
"""

import asyncio
import json
import logging
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from claw_r1.errors import DependencyUnreachable, Overloaded, RetryableError, UserError

log = logging.getLogger("claw.console")

PERIOD: Final = 1.0
HEARTBEAT: Final = 15.0
KEPT: Final = 4096
"""Rows that a follower may fall behind."""
MOST_FILTERS: Final = 16
LINGER: Final = 60.0
"""Seconds that a filter which nobody follows any more is kept for who comes back."""

Row = dict[str, Any]
Look = Callable[[str, Any], Awaitable[tuple[list[Row], Any]]]
"""Rows of a filter behind these ends, and the ends to go on behind; with None, no rows and where the log ends now."""


@dataclass(frozen=True, slots=True)
class Message:
    """One event of the stream; without an id the position stays."""

    event: str
    data: Any
    id: str | None = None

    def encode(self) -> bytes:
        """As server-sent events have it (WHATWG HTML, 9.2)."""
        head = f"id: {self.id}\n" if self.id is not None else ""
        return f"{head}event: {self.event}\ndata: {json.dumps(self.data, separators=(',', ':'))}\n\n".encode()


@dataclass
class Tail:
    """The newest rows of one filter of a list. `total` counts all that ever came: the row `total - 1` is the last of `rows`."""

    of: str
    """Name of the list."""
    text: str
    rows: deque[Row] = field(default_factory=lambda: deque(maxlen=KEPT))
    total: int = 0
    ends: Any = None
    followers: int = 0
    left_at: float = 0.0
    fault: str | None = None

    def add(self, rows: Sequence[Row]) -> None:
        self.rows.extend(rows)
        self.total += len(rows)

    def since(self, position: int) -> list[Row] | None:
        """The rows from a position on; None: some of them are no longer kept."""
        behind = self.total - position
        if behind > len(self.rows) or behind < 0:
            return None
        return list(self.rows)[len(self.rows) - behind :] if behind else []


class Feed:
    """News for all viewers; `run` keeps them coming until it is cancelled."""

    def __init__(self, looks: Mapping[str, Look], status: Callable[[], Awaitable[Any]]) -> None:
        self._looks = looks
        self._status = status
        self._tails: dict[tuple[str, str], Tail] = {}
        self._boot = uuid.uuid4().hex[:8]
        self._changed = asyncio.Condition()
        self._watchers = 0
        self._newest: Any = None
        self._turn = 0
        self._closed = False

    async def run(self) -> None:
        """Look once a period while somebody follows."""
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            if self._watchers:
                self._newest = await self._status()
            for tail in list(self._tails.values()):
                if tail.followers:
                    await self._refresh(tail)
                elif started - tail.left_at > LINGER:
                    del self._tails[tail.of, tail.text]
            async with self._changed:
                self._turn += 1
                self._changed.notify_all()
            await asyncio.sleep(max(0.1, PERIOD - (loop.time() - started)))

    async def close(self) -> None:
        """End every stream, so that the server can stop."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def _refresh(self, tail: Tail) -> None:
        try:
            rows, tail.ends = await self._looks[tail.of](tail.text, tail.ends)
            tail.add(rows)
            tail.fault = None
        except (DependencyUnreachable, RetryableError, UserError) as error:
            if tail.fault is None:
                log.warning("no news from the pool", extra={"why": str(error)})
            tail.fault = str(error)

    async def follow(
        self, text: str | None, status: bool, last_id: str | None, of: str = "trajectories"
    ) -> AsyncIterator[bytes]:
        """The stream of one viewer: rows of a filter (None: no rows) of a list, the status, or both; resumes behind `last_id`.

        Raises Overloaded, before the first byte, where too many distinct filters are followed.
        """
        tail = self._join(of, text) if text is not None else None
        self._watchers += status
        try:
            async for message in self._messages(tail, status, last_id):
                yield message
        finally:
            self._watchers -= status
            if tail is not None:
                tail.followers -= 1
                tail.left_at = asyncio.get_running_loop().time()

    def check(self, text: str | None, of: str = "trajectories") -> None:
        """Raise Overloaded where one more filter is too many."""
        if text is not None and (of, text) not in self._tails and len(self._tails) >= MOST_FILTERS:
            idle = min((t for t in self._tails.values() if not t.followers), key=lambda t: t.left_at, default=None)
            if idle is None:
                raise Overloaded(
                    f"{MOST_FILTERS} different filters are followed live now: pause one, or follow without a filter"
                )
            del self._tails[idle.of, idle.text]

    def _join(self, of: str, text: str) -> Tail:
        self.check(text, of)
        tail = self._tails.setdefault((of, text), Tail(of, text))
        tail.followers += 1
        return tail

    async def _messages(self, tail: Tail | None, status: bool, last_id: str | None) -> AsyncIterator[bytes]:
        yield b"retry: 1000\n\n"
        position = tail.total if tail is not None else 0
        if tail is not None and last_id is not None:
            found = self._position(tail, last_id)
            if found is None:
                yield Message("gap", {}, self._id(tail.total)).encode()
            position = tail.total if found is None else found
        elif tail is not None:
            while tail.ends is None and tail.fault is None and not self._closed:
                await self._wait(self._turn)
            yield Message("begin", {}, self._id(position)).encode()
        turn, said_fault = -1, None
        while not self._closed:
            if tail is not None:
                rows = tail.since(position)
                if rows is None:
                    yield Message("gap", {}, self._id(tail.total)).encode()
                elif rows:
                    yield Message("rows", rows, self._id(tail.total)).encode()
                position = tail.total
                if tail.fault != said_fault:
                    said_fault = tail.fault
                    yield Message("fault", {"message": said_fault}).encode()
            if status and self._newest is not None and turn != self._turn:
                yield Message("status", self._newest).encode()
            turn = self._turn
            if not await self._wait(turn):
                yield b": still here\n\n"

    def _id(self, position: int) -> str:
        return f"{self._boot}.{position}"

    def _position(self, tail: Tail, last_id: str) -> int | None:
        boot, _, number = last_id.partition(".")
        if boot != self._boot or not number.isdecimal() or tail.since(int(number)) is None:
            return None
        return int(number)

    async def _wait(self, turn: int) -> bool:
        """Whether something came within a heartbeat."""
        try:
            async with asyncio.timeout(HEARTBEAT), self._changed:
                await self._changed.wait_for(lambda: self._turn != turn or self._closed)
        except TimeoutError:
            return False
        return True
