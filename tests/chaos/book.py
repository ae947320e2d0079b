"""The file in which a client writes down what it sends, before it sends, and what it knows of it afterwards."""

import time
from pathlib import Path
from typing import Any, Self

import msgspec

from tests.chaos.ledger import Entry, Kind, What

_encode = msgspec.json.Encoder().encode


class Book:
    """Open for appending: a line reaches the system at once, so that it outlives a kill."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def note(self, kind: Kind, event: What, name: str, **more: Any) -> None:
        self._file.write(_encode(Entry(time.time(), kind, event, name, **more)) + b"\n")
