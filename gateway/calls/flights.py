"""A call that was sent again finds the one that is being made, or was made a moment ago, instead of becoming a second step.

A call is a retry if it says so (`Idempotency-Key`, or `x-stainless-retry-count` above 0 with the same body), or if it has the
same body on the same trajectory while or after the first call's caller went away.  Two live identical calls stay two.

Invariants: what is kept for retries is bounded in bytes and in time, and answers go before calls that are on their way; a retry
of what is forgotten, or of what another worker made, is a step of its own; a call whose callers are all gone ends after the
grace, unless a retry joins it before.
"""

import asyncio
import itertools
from collections import OrderedDict
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from claw_r1.metrics import GATEWAY_CALLERS_LEFT
from gateway.exchange import HungUp, Message, Receive, Send, has_left, send_on
from gateway.replies import Refusal

EXPIRED_AT_ONCE: Final = 8
"""Most old calls that are forgotten when a new one comes: more than one, so that they go faster than they come."""

WATCH_AFTER: Final = 0.01
"""Seconds after which a caller is listened to; before that it is asked for where it matters."""

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Ticket:
    """What makes two calls the same."""

    trajectory: tuple[str, ...]
    dialect: str
    body: bytes
    idempotency_key: bytes | None = None
    is_retry: bool = False


def ticket(trajectory: tuple[str, ...], dialect: str, body: bytes, headers: Headers) -> Ticket:
    """The ticket of a request."""
    key: bytes | None = None
    is_retry = False
    for name, value in headers:
        if name == b"idempotency-key":
            key = value[:256] or None
        elif name == b"x-stainless-retry-count":
            is_retry = value.isdigit() and int(value[:9]) > 0
    return Ticket(trajectory, dialect, body, key, is_retry)


@dataclass(slots=True, eq=False)
class Flight:
    """A call on its way, or just made, with what was answered to it."""

    ticket: Ticket
    touched: float
    grace: float
    table: "Flights"
    repeats: bool = False
    """It says that it is a retry, of a call that is not known here: forgotten, or made by another worker, which may be dead."""
    step_id: str | None = None
    receive: Receive | None = None
    """By which the first caller is heard."""
    callers: int = 1
    joined: int = 0
    first_gone: bool = False
    delivered: bool = False
    ended: bool = False
    failed: bool = False
    forgotten: bool = False
    size: int = 0
    messages: list[Message] = field(default_factory=list)
    aborted: bool = False
    _moved: asyncio.Event | None = None
    """Set at the next move, if somebody waits for one."""
    task: "asyncio.Task[object] | None" = None
    _timer: asyncio.TimerHandle | None = None

    @property
    def left(self) -> bool:
        """Nobody waits for it, and nobody got it."""
        return self.callers == 0 and not self.delivered

    def note(self, message: Message) -> None:
        """Keep what was answered, for those that join."""
        if message["type"] == "http.response.start":
            self.failed = message["status"] >= 400
        elif not message.get("more_body", False):
            self.look()
            self.delivered = not self.first_gone
        if self.forgotten and not self.joined:
            return
        self.messages.append(message)
        if self.joined:
            self._wake()
        if not self.forgotten:
            size = len(message.get("body", b""))
            self.size += size
            self.table.grown(size)

    async def watch(self) -> None:
        """Notice that the first caller goes away; does not end before."""
        assert self.receive is not None
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.leave_first()

    def look(self) -> None:
        """Notice that the first caller has gone, if the server says so at once."""
        if self.receive is not None and has_left(self.receive):
            self.leave_first()

    def leave_first(self) -> None:
        """The first caller went away."""
        if not self.delivered and not self.first_gone:
            GATEWAY_CALLERS_LEFT.inc()
            self.first_gone = True
            self.leave()

    def end(self) -> None:
        """Nothing comes any more; what came is kept for a while from now on."""
        self.ended = True
        if self.joined:
            self._wake()
        if self._timer is not None:
            self._timer.cancel()
        self.table.land(self)

    def join(self) -> None:
        """One more caller."""
        self.callers += 1
        self.joined += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def leave(self) -> None:
        """A caller went away."""
        self.callers -= 1
        if self.callers == 0 and not self.ended and not self.delivered:
            if self.forgotten:
                self.abort()
            else:
                self._timer = asyncio.get_running_loop().call_later(self.grace, self.abort)

    def abort(self) -> None:
        """Stop waiting for the engine, if that is what the call does now."""
        self.aborted = True
        if self.task is None or self.task.cancelling():
            return
        if self.task is asyncio.current_task():  # it would be cancelled at its next wait, which may be another one
            asyncio.get_running_loop().call_soon(self.abort)
        else:
            self.task.cancel()

    @property
    def answered(self) -> bool:
        """Whether the answer has its end."""
        return bool(self.messages) and not self.messages[-1].get("more_body", "status" in self.messages[-1])

    async def replay(self, send: Send) -> None:
        """Answer all that was and will be answered."""
        sent = 0
        while True:
            while sent < len(self.messages):
                await send_on(send, self.messages[sent])
                sent += 1
            if self.ended:
                return
            self._moved = self._moved or asyncio.Event()
            await self._moved.wait()

    def _wake(self) -> None:
        if self._moved is not None:
            self._moved.set()
            self._moved = None


class Watch:
    """Notices that a flight's first caller goes away."""

    def __init__(self, flight: Flight, receive: Receive) -> None:
        self._flight = flight
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        flight.receive = receive
        if has_left(receive) is None:
            self._begin()
        else:  # most calls of a fast engine are over before it is worth listening
            self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._flight.watch())

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        self._flight.receive = None


class abortable:  # used as `async with abortable(flight)`, like asyncio.timeout
    """Within it, HungUp is raised when nobody waits for the call any more."""

    def __init__(self, flight: Flight) -> None:
        self._flight = flight

    async def __aenter__(self) -> Self:
        if self._flight.aborted:
            raise HungUp
        self._flight.task = asyncio.current_task()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self._flight.task = self._flight.task, None
        if self._flight.aborted and task is not None and task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise HungUp from error


class Flights:
    """The calls that a retry may join."""

    def __init__(self, *, grace: float, ttl: float, max_bytes: int) -> None:
        self._grace = grace
        self._ttl = ttl
        self._max_bytes = max_bytes
        self._bytes = 0
        self._flying: OrderedDict[int, Flight] = OrderedDict()
        self._over: OrderedDict[int, Flight] = OrderedDict()
        """Both in order: what began first, what ended first."""
        self._same: dict[tuple[tuple[str, ...], str, int], list[Flight]] = {}
        """By trajectory, dialect and the body's length: to hash a body would cost more than to compare the few there are."""
        self._keyed: dict[tuple[tuple[str, ...], bytes], Flight] = {}

    def board(self, asked: Ticket, now: float) -> tuple[Flight, bool, str | None]:
        """(the flight, whether it is joined, the step id of a failed first try).

        Raises Refusal(422) if the idempotency key was used for another body.
        """
        self._expire(now)
        found = self._find(asked, now)
        if found is not None and not found.failed and (found.ended or not found.aborted):
            found.join()
            return found, True, None
        flight = Flight(asked, now, self._grace, self, repeats=asked.is_retry and found is None)
        self._flying[id(flight)] = flight
        self._same.setdefault((asked.trajectory, asked.dialect, len(asked.body)), []).append(flight)
        if asked.idempotency_key is not None:
            self._keyed[asked.trajectory, asked.idempotency_key] = flight
        retry_of = None if found is None else found.step_id
        if found is not None:
            self._forget(found)
        self.grown(len(asked.body))
        return flight, False, retry_of

    def land(self, flight: Flight) -> None:
        """It is over: the time for which its answer is kept begins."""
        if not flight.forgotten:
            flight.touched = asyncio.get_running_loop().time()
            self._flying.pop(id(flight), None)
            self._over[id(flight)] = flight

    def _find(self, asked: Ticket, now: float) -> Flight | None:
        def fresh(flight: Flight) -> bool:
            return not flight.ended or flight.touched + self._ttl > now

        if asked.idempotency_key is not None:
            keyed = self._keyed.get((asked.trajectory, asked.idempotency_key))
            if keyed is not None and (keyed.ticket.body, keyed.ticket.dialect) != (asked.body, asked.dialect):
                raise Refusal(
                    422,
                    "this Idempotency-Key was sent with another request: take a new key for each request",
                    code="idempotency_mismatch",
                )
            return keyed if keyed is not None and fresh(keyed) else None
        fitting = []
        for flight in self._same.get((asked.trajectory, asked.dialect, len(asked.body)), ()):
            if flight.ticket.body == asked.body and fresh(flight):
                flight.look()
                if asked.is_retry or flight.left or (flight.failed and flight.ended):
                    fitting.append(flight)
        # One that nobody waits for comes first, then one that no other retry has joined.
        return min(fitting, key=lambda flight: (flight.failed, not flight.left, flight.joined), default=None)

    def grown(self, size: int) -> None:
        """Keep the bound: what ended first goes first, then what began first, which cannot be joined any more."""
        self._bytes += size
        while self._bytes > self._max_bytes and (kept := self._over or self._flying):
            self._forget(next(iter(kept.values())))

    def _expire(self, now: float) -> None:
        oldest = itertools.islice(self._over.values(), EXPIRED_AT_ONCE)
        for flight in [flight for flight in oldest if flight.touched + self._ttl <= now]:
            self._forget(flight)

    def _forget(self, flight: Flight) -> None:
        if (self._flying.pop(id(flight), None) or self._over.pop(id(flight), None)) is None:
            return
        flight.forgotten = True
        self._bytes -= flight.size + len(flight.ticket.body)
        asked = flight.ticket
        key = (asked.trajectory, asked.dialect, len(asked.body))
        same = self._same[key]
        same.remove(flight)
        if not same:
            del self._same[key]
        if asked.idempotency_key is not None:
            keyed = (asked.trajectory, asked.idempotency_key)
            if self._keyed.get(keyed) is flight:
                del self._keyed[keyed]
        if not flight.joined:
            flight.messages.clear()
        if flight.callers == 0 and not flight.ended:
            flight.abort()
