"""What the agents know of their model calls is written down here, before a call is sent and after it ended.

Invariants: a line is in the file before what it announces happens, and the file is only appended to; a call is `sent` once
and then `acknowledged` (its agent saw the end of the answer) or `indeterminate` (it broke off: whether it was recorded is
not known to the agent). A call with neither was in flight when the agents were killed.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, Self

import msgspec

Happened = Literal["group", "begun", "sent", "acknowledged", "indeterminate", "ended"]
End = Literal["completed", "aborted", "lost"]


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line. `at`: seconds since the epoch; `call` counts from 1 within a session."""

    at: float
    event: Happened
    session: str
    prompt_uid: str | None = None
    trajectory_uid: str | None = None
    call: int | None = None
    step_id: str | None = None
    """As the gateway named it in the answer's headers; None if no header came."""
    kind: str | None = None
    status: End | None = None
    """Of `ended`. lost: the gateway could not be told of the end either."""
    success: bool | None = None
    error: str | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


class Ledger:
    """The file, open for appending. Every line reaches the system at once, so that it outlives a kill."""

    def __init__(self, path: Path, session: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("ab", buffering=0)
        self._session = session
        self._calls = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def send(self, trajectory_uid: str) -> int:
        """Note a call that is about to be sent; returns its number."""
        self._calls += 1
        self.note("sent", trajectory_uid=trajectory_uid, call=self._calls)
        return self._calls

    def note(
        self,
        event: Happened,
        *,
        prompt_uid: str | None = None,
        trajectory_uid: str | None = None,
        call: int | None = None,
        step_id: str | None = None,
        kind: str | None = None,
        status: End | None = None,
        success: bool | None = None,
        error: str | None = None,
    ) -> None:
        entry = Entry(
            time.time(),
            event,
            self._session,
            prompt_uid,
            trajectory_uid,
            call,
            step_id,
            kind,
            status,
            success,
            None if error is None else error[:500],
        )
        self._file.write(_encode(entry) + b"\n")


def read_ledger(path: Path, session: str | None = None) -> list[Entry]:
    """The entries of a session (of all sessions without one), in order."""
    entries = [_decode(line) for line in path.read_bytes().splitlines()]
    return [entry for entry in entries if session in (None, entry.session)]


class Tail:
    """Reads the lines that are appended to a file after this moment."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def lines(self) -> Iterator[bytes]:
        """The whole lines since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                yield line


@dataclass(slots=True)
class Tally:
    """A session's ledger, counted."""

    sent: int = 0
    acknowledged: int = 0
    broken: int = 0
    groups: int = 0
    begun: int = 0
    ends: dict[str, int] = field(default_factory=lambda: {"completed": 0, "aborted": 0, "lost": 0})
    won: int = 0
    last_error: str | None = None

    @property
    def indeterminate(self) -> int:
        """Calls that broke off, and those that never ended: final once the agents have stopped."""
        return self.sent - self.acknowledged

    @property
    def ended(self) -> int:
        return sum(self.ends.values())

    def add(self, line: bytes) -> None:
        entry = _decode(line)
        match entry.event:
            case "sent":
                self.sent += 1
            case "acknowledged":
                self.acknowledged += 1
            case "indeterminate":
                self.broken += 1
                self.last_error = entry.error
            case "group":
                self.groups += 1
            case "begun":
                self.begun += 1
            case "ended":
                self.ends[entry.status or "lost"] += 1
                self.won += entry.success is True
                self.last_error = entry.error or self.last_error
