"""Trajectories that were picked become a file of a dataset: what is exported, within which bounds, and where the file lies.

Invariants: a file lies here until MOST_KEPT newer ones are, or the console stops; its name cannot be guessed.
"""

import asyncio
import contextlib
import os
import secrets
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from claw_r1.errors import UserError
from console.curating import Wanted, chosen
from console.statements import literal

Form = Literal["sft", "preference", "tokens", "steps", "facts"]
FORMS: Final[Mapping[Form, str]] = {
    "sft": "conversations that ended, with their last reply",
    "preference": "of every group the best and the worst",
    "tokens": "tokens with masks and log-probs, as they are trained",
    "steps": "every step with its whole context",
    "facts": "all facts, which `claw import` takes again",
}
"""Rows of a file, by the words of `claw export --form`."""
MOST: Final = 2000
"""Trajectories of one export."""
MOST_BYTES: Final = 512 * 2**20
MOST_KEPT: Final = 4
LONGEST: Final = 100_000
"""Characters of the question, which is a word of a command line."""


class Order(Wanted):
    """What a person wants in a file."""

    form: Form


def count(wanted: Wanted) -> tuple[str, dict[str, Any]]:
    """How many trajectories are meant. Raises WrongFilter."""
    rows, parameters = chosen(wanted)
    return f"SELECT count() AS n {rows}", parameters


def question(wanted: Wanted) -> str:
    """The SELECT by which an export finds what is meant. Raises UserError if it is too long."""
    rows, parameters = chosen(wanted)
    sql = literal(f"SELECT run_id, prompt_uid, trajectory_uid {rows}", parameters)
    if len(sql.encode()) > LONGEST:
        raise UserError("the ids of what is picked are too long for one export: pick fewer, or say it by a filter")
    return sql


@dataclass(frozen=True)
class File:
    """A finished export."""

    folder: "tempfile.TemporaryDirectory[str]"
    form: str

    @property
    def parts(self) -> list[Path]:
        return sorted((Path(self.folder.name) / "rows").glob("part-*"))

    @property
    def size(self) -> int:
        return sum(part.stat().st_size for part in self.parts)

    async def read(self) -> AsyncIterator[bytes]:
        """The parts behind each other, a megabyte at a time: lines go on from part to part."""
        for part in self.parts:
            with part.open("rb") as file:
                while piece := await asyncio.to_thread(file.read, 2**20):
                    yield piece


class Exports:
    """Files by the names that they got."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, File] = OrderedDict()

    def keep(self, file: File) -> str:
        """The name of a new file; the oldest one goes when there are too many."""
        name = secrets.token_urlsafe(16)
        self._files[name] = file
        while len(self._files) > MOST_KEPT:
            self._files.popitem(last=False)[1].folder.cleanup()
        return name

    def find(self, name: str) -> File | None:
        return self._files.get(name)

    def close(self) -> None:
        """Remove all of them."""
        while self._files:
            self._files.popitem()[1].folder.cleanup()


def so_far(folder: Path) -> str | None:
    """Why an export into a folder must not go on: its files are too large by now."""
    size = 0
    for place, _, names in os.walk(folder):  # a folder that is renamed meanwhile is passed over
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += (Path(place) / name).stat().st_size
    if size <= MOST_BYTES:
        return None
    return f"more than {MOST_BYTES // 2**20} MiB; narrow the filter, or `claw export`, which has no bound"
