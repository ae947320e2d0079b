"""A stream passes from the engine to the agent: each event goes on at once, is held until its step is durable, or is hidden.

Invariants:
- nothing goes on before the engine has said something: until then the call can still get an error status, or another engine;
- from the event on that finishes the last choice everything is held;
- the event with which an engine gives an answer up is not said; another stream may go on from there;
- nothing after the terminal event counts, or a step would depend on how the network cut the stream.
"""

from gateway.calls.capture import Status
from gateway.calls.continuation import ABORT, GIVEN_UP, Seam, gives_up, may_continue, without_end
from gateway.dialects.base import Asked, Mark
from gateway.dialects.captured import Captured
from gateway.sse import EventSplitter, event_data


class Relay:
    """One answer: of one stream, or of several where engines gave it up."""

    def __init__(self, asked: Asked) -> None:
        self._voice = asked.voice
        self._fold = asked.api.fold(asked.n)
        self._splitter = EventSplitter()
        self._early: list[bytes] = []
        self._held: list[bytes] = []
        self._watched = may_continue(asked)
        self._seam: Seam | None = None
        self._unsaid: bytes | None = None
        """What the last chunk brought of an answer that was given up."""
        self.last = b""
        """The data of the last chunk, or of the last with tokens if the answer was given up."""
        self.given_up = False
        """The engine gave the answer up, and it may be gone on with."""
        self.began = False
        """Whether anything may have gone on."""
        self.done = False
        """The engine's terminal event has come."""
        self.failed = False
        """The engine sent an error event; the agent gets it."""

    def feed(self, data: bytes) -> bytes:
        """What goes on at once. Raises EventTooLarge."""
        said = []
        for event in self._splitter.feed(data):
            if self.done:
                break
            said.append(self._take(event))
        return b"".join(said)

    def close(self) -> None:
        """The engine's stream has ended."""
        if (rest := self._splitter.rest()) and not self.done and (said := self._take(rest)):
            self._held.append(said)

    def resume(self, seam: Seam) -> None:
        """Another stream follows, which goes on where the last one was given up."""
        self._seam = seam
        self._splitter = EventSplitter()
        self.given_up = self.done = False

    @property
    def torn(self) -> bool:
        """What came did not go on where the last stream was given up."""
        return self._seam is not None and self._seam.torn

    def give_up(self) -> None:
        """Nothing goes on: what came was given up by its engine."""
        self._fold.take(GIVEN_UP)
        self.given_up = False

    def _take(self, event: bytes) -> bytes:
        data = event_data(event)
        if data is None:  # a comment would begin the answer
            return b"" if self.given_up or self._unsaid is not None else self._say(event, None, "other")
        if self.given_up or self._seam is not None or (ABORT in data and self._watched):
            return self._mend(event, data)
        self.last = data
        return self._say(event, data, self._fold.take(data))

    def _mend(self, event: bytes, data: bytes) -> bytes:
        """An event that may give the answer up, that comes after one that did, or that goes on with the answer."""
        if self.given_up:
            self._fold.take(data)  # its usage
            self.done = data == b"[DONE]"
            return b""
        if self._seam is not None:
            data = self._seam.take(data)
            if self._seam.torn:
                self.given_up = self.done = True
            if not data:
                return b""
            event = b"data: " + data + b"\n\n"
        if ABORT in data and gives_up(data):
            return self._stop(data)
        said = b""
        if self._unsaid is not None:
            unsaid, self._unsaid = self._unsaid, None
            said = self._say(b"data: " + unsaid + b"\n\n", unsaid, "delta")
        self.last = data
        return said + self._say(event, data, self._fold.take(data))

    def _stop(self, data: bytes) -> bytes:
        """The engine gives the answer up. What it says with that waits for the rest, so that another try may say it."""
        data, spoken = without_end(data)
        self._fold.take(data)
        said = b""
        if spoken:
            if self._unsaid is not None:
                said = self._say(b"data: " + self._unsaid + b"\n\n", self._unsaid, "delta")
            self._unsaid = self.last = data
        self.given_up = True
        return said

    def _say(self, event: bytes, data: bytes | None, mark: Mark) -> bytes:
        self.done = self.done or mark == "done"
        self.failed = self.failed or mark == "error"
        said = self._voice.event(event, data, mark)
        # What follows something that is held waits behind it, an error too: events keep their order.
        if self.done or self._held or (self._fold.finished and not self.failed):
            self._held.append(said)
            return b""
        if self.began or self._fold.spoken or self.failed:
            said = b"".join([*self._early, said])
            self._early.clear()
            self.began = True
            return said
        self._early.append(said)
        return b""

    @property
    def held(self) -> bytes:
        """What goes on when the step is durable."""
        end = b"" if self.failed else self._voice.end()
        return b"".join([*self._early, *self._held, end])

    @property
    def status(self) -> Status:
        """A stream that stops short of its finish reasons is partial, with or without a terminal event."""
        return "complete" if self._fold.finished and not self.failed else "partial"

    @property
    def reasons(self) -> tuple[str, ...]:
        if self.failed:
            return ("engine_error",)
        return () if self.status == "complete" else ("stream_broken",)

    def captured(self) -> Captured:
        """What came until now."""
        return self._fold.captured()
