"""What the proxy needs of a dialect: how a request is read, and how the engine's answer is said in the agent's words.

Invariants: a dialect is pure; whatever it is called, what goes to the engine is a request that returns token ids; a voice
is made for one call and used once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from claw_r1.events import Sampling
from gateway.dialects.captured import Captured
from gateway.replies import Refusal

Name = Literal["chat", "completions", "responses", "messages"]

Mark = Literal["delta", "usage", "done", "error", "other"]
"""Of an event of the engine's stream. usage: a chunk that carries usage alone; done: the terminal event; other: nothing that
is known."""


class Voice(Protocol):
    """Says one answer of the engine to the agent."""

    def whole(self, reply: bytes) -> bytes:
        """The engine's whole reply (status 200, its JSON is readable) as the agent gets it."""
        ...

    def event(self, event: bytes, data: bytes | None, mark: Mark) -> bytes:
        """What the agent gets for one server-sent event of the engine; b"" for nothing.

        `event` is the event as it came, with its blank line; `data` its data, None if it has none (a comment). The proxy
        sends the result at once, or holds it until the step is durable: from the event on that finishes the last choice.
        """
        ...

    def end(self) -> bytes:
        """What ends the agent's stream; asked once, after the engine's last event, and sent when the step is durable."""
        ...

    def error(self, status: int, body: bytes) -> bytes:
        """The body of an engine's error reply (status >= 400, any content) as the agent gets it; the status stays."""
        ...


class Fold(Protocol):
    """Folds the chunks of a streamed reply into what a whole reply would have held."""

    @property
    def spoken(self) -> bool:
        """Whether any token or text has come."""
        ...

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason."""
        ...

    def take(self, data: bytes) -> Mark:
        """Fold one event's data in."""
        ...

    def captured(self) -> Captured:
        """What the chunks up to now held; asked at the end, and before an answer that was given up is gone on with."""
        ...


@dataclass(frozen=True, slots=True)
class EngineApi:
    """An API of engines that returns token ids."""

    path: str
    read: Callable[[bytes], Captured]
    """A whole reply (status 200); what is no reply of this API has the fault `unparsable_reply`."""
    fold: Callable[[int], Fold]
    """For a stream of so many choices."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A call as it goes to the engine, and what is known of it."""

    dialect: Name
    api: EngineApi
    upstream_body: bytes
    stream: bool
    n: int
    """Choices that the engine will give: one step each."""
    model: str | None
    messages: tuple[bytes, ...]
    """JSON, one value each: of a chat request."""
    request: bytes
    """JSON object: the request's other members."""
    sampling: Sampling
    voice: Voice
    left_out: tuple[str, ...] = ()
    """Members of the request that no agent may send to an engine."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One of the APIs that agents speak."""

    name: Name
    read: Callable[[bytes, str, float], Asked]
    """(body, call id, seconds since the epoch) → the call. Raises Refusal(400) that names the field."""
    refusal: Callable[[Refusal], bytes]
    """The body of an answer that is no result, in the dialect's error shape (JSON)."""
    break_off: Callable[[Refusal], bytes]
    """The same as a server-sent event of a stream that has begun."""
