"""The folder of a backup: a plan that never changes, parts that are whole, a line for each, and a manifest at the end.

`plan.json` says up to where everything is copied and is written first; `parts.jsonl` has a line for each part that is whole and
on the disk; `manifest.json` comes last and has the hashes of both. Invariants: a folder with a manifest is complete; a part has
its name only when it is whole; what a kill left over is written again.
"""

import contextlib
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from claw_r1.errors import UserError

VERSION: Final = 1
PLAN: Final = "plan.json"
PARTS: Final = "parts.jsonl"
MANIFEST: Final = "manifest.json"
BLOBS: Final = "blobs/"
_PIECE: Final = 2**20
_LEVEL: Final = 1
_GZIP: Final = 31
"""Window bits of zlib by which it writes gzip's form."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Span(_Model):
    """Offsets [start, end) of a partition."""

    start: int
    end: int


class TopicPlan(_Model):
    """A topic as it was found."""

    name: str
    spans: list[Span]
    """By partition."""
    config: dict[str, str]
    """What was in force of the settings that decide what is kept of a record."""
    own: dict[str, str] = {}
    """Others that were given to the topic itself, such as `min.insync.replicas`; earlier backups have none."""


class Committed(_Model):
    """Where a consumer group is on a partition."""

    group: str
    topic: str
    partition: int
    offset: int
    metadata: str


class TablePlan(_Model):
    """A table of the pool."""

    name: str
    final: bool
    """Of rows with one key one counts."""
    columns: list[str]
    days: list[int]
    """Of the log's time, as 20260131; one 0: the table has none."""


class Plan(_Model):
    """What is copied; the same however often the copying is broken off."""

    version: int = VERSION
    created: str
    database: str
    topics: list[TopicPlan]
    groups: list[Committed]
    tables: list[TablePlan]
    stored: dict[str, int]
    """TOPIC/PARTITION: below this offset the pool is copied; the rest is stored again from the log."""


class Part(_Model):
    """A part that is whole."""

    path: str
    bytes: int
    sha256: str
    count: int = 0
    """Records or rows."""
    content: str = ""
    """Of records: SHA-256 of their frames; of rows: the sum of their hashes."""
    next: int = 0
    """Of records: the offset at which the next part begins."""


class Manifest(_Model):
    """The last word of a backup."""

    version: int = VERSION
    created: str
    finished: str
    plan_sha256: str
    parts_sha256: str
    parts: int
    records: int
    rows: int
    blobs: int
    bytes: int


class Folder:
    """A backup on a disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[str, Part] = {}
        """Of topics and tables, by path."""
        self._blobs: set[bytes] = set()
        """Hashes of the blobs that are here, of which there may be millions."""

    @property
    def complete(self) -> bool:
        return (self.path / MANIFEST).exists()

    def begin(self) -> Plan | None:
        """The plan of a backup that was broken off, with the parts that it has; None in a folder that is new.

        Raises UserError for a folder with a backup, or with something else.
        """
        if self.complete:
            raise UserError(
                f"{self.path} holds a backup already: a backup never writes over one. Choose another folder, or remove it"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / PLAN).exists():
            if any(entry.name != f".{PLAN}" for entry in self.path.iterdir()):
                raise UserError(f"{self.path} is not empty and no backup: choose another folder")
            return None
        plan = self._read_plan()
        (self.path / PARTS).touch()
        with (self.path / PARTS).open("rb+") as lines:
            whole = 0
            for line in lines:
                if line.endswith(b"\n"):
                    self._note(Part.model_validate_json(line))
                    whole += len(line)
            lines.truncate(whole)  # a kill cut the last line off
        return plan

    def write_plan(self, plan: Plan) -> None:
        _write(self.path / PLAN, plan.model_dump_json(indent=1).encode())

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator["Draft"]:
        """A part to be written; it exists, with its line, when the block ends well."""
        with self.placing(name) as draft:
            yield draft
        self.add(Part(path=name, bytes=draft.size, sha256=draft.sha256, **draft.said))

    @contextlib.contextmanager
    def placing(self, name: str) -> Iterator["Draft"]:
        """A file to be written; it has its name when the block ends well."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Draft(path.with_name(f".{path.name}"))
        try:
            yield draft
            draft.finish()
            draft.path.replace(path)
            _sync(path.parent)
        except BaseException:
            draft.path.unlink(missing_ok=True)
            raise
        finally:
            draft.close()

    def add(self, part: Part) -> None:
        """A part is whole."""
        with (self.path / PARTS).open("ab") as lines:
            lines.write(part.model_dump_json().encode() + b"\n")
            lines.flush()
            os.fsync(lines.fileno())
        self._note(part)

    def _note(self, part: Part) -> None:
        if part.path.startswith(BLOBS):
            self._blobs.add(bytes.fromhex(part.sha256))
        else:
            self.parts[part.path] = part

    def has_blob(self, sha256: str) -> bool:
        return bytes.fromhex(sha256) in self._blobs

    def each(self) -> Iterator[Part]:
        """Every part, as its line is read."""
        with (self.path / PARTS).open("rb") as lines:
            yield from map(Part.model_validate_json, lines)

    def finish(self, plan: Plan, finished: str) -> Manifest:
        """Nothing is left to copy."""
        (self.path / PARTS).touch()
        many = records = rows = blobs = size = 0
        for part in self.each():
            many, size = many + 1, size + part.bytes
            records += part.count * part.path.startswith("topics/")
            rows += part.count * part.path.startswith("pool/")
            blobs += part.path.startswith(BLOBS)
        manifest = Manifest(
            created=plan.created,
            finished=finished,
            plan_sha256=_hash(self.path / PLAN),
            parts_sha256=_hash(self.path / PARTS),
            parts=many,
            records=records,
            rows=rows,
            blobs=blobs,
            bytes=size,
        )
        _write(self.path / MANIFEST, manifest.model_dump_json(indent=1).encode())
        return manifest

    def open(self) -> tuple[Manifest, Plan]:
        """A complete backup, its plan and list of parts as they were written. Raises UserError if it is none, or damaged."""
        if not self.complete:
            begun = (self.path / PLAN).exists()
            raise UserError(
                f"{self.path} is not a complete backup: "
                + (
                    "`claw backup` was broken off there; the same command goes on"
                    if begun
                    else "it has no manifest.json"
                )
            )
        try:
            manifest = Manifest.model_validate_json((self.path / MANIFEST).read_bytes())
        except ValidationError as error:
            raise UserError(f"{self.path / MANIFEST} is damaged") from error
        if manifest.version != VERSION:
            raise UserError(f"{self.path} has the form {manifest.version}; this version reads {VERSION}")
        for name, digest in ((PLAN, manifest.plan_sha256), (PARTS, manifest.parts_sha256)):
            if not (self.path / name).exists() or _hash(self.path / name) != digest:
                raise UserError(f"{self.path / name} is damaged: its SHA-256 is not that of the manifest")
        for part in self.each():
            self._note(part)
        return manifest, self._read_plan()

    def check(self, part: Part) -> None:
        """Raise UserError if the part is not as it was written."""
        path = self.path / part.path
        if not path.exists() or path.stat().st_size != part.bytes or _hash(path) != part.sha256:
            raise UserError(f"{path} is damaged or missing: its size or SHA-256 is not that of the manifest")

    def unzip(self, part: Part) -> gzip.GzipFile:
        return gzip.open(self.path / part.path, "rb")

    def under(self, prefix: str) -> list[Part]:
        """Parts of topics and tables whose path begins so, in their order."""
        return sorted(
            (part for path, part in self.parts.items() if path.startswith(prefix)), key=lambda part: part.path
        )

    def _read_plan(self) -> Plan:
        try:
            plan = Plan.model_validate_json((self.path / PLAN).read_bytes())
        except ValidationError as error:
            raise UserError(f"{self.path / PLAN} is damaged") from error
        if plan.version != VERSION:
            raise UserError(f"{self.path} has the form {plan.version}; this version reads {VERSION}")
        return plan


class Draft:
    """A part while it is written: compressed bytes, or bytes as they are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.said: dict[str, Any] = {}
        """What the part's line says beside its size and hash."""
        self._file: BinaryIO = path.open("wb")
        self._digest = hashlib.sha256()
        self._zip = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
        self._zipped = False

    def zip(self, data: bytes) -> None:
        """Add bytes to be compressed; of gzip's form, without a time: the same bytes give the same file."""
        self._zipped = True
        self.add(self._zip.compress(data))

    def add(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def finish(self) -> None:
        """Everything is on the disk."""
        if self._zipped:
            self.add(self._zip.flush())
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
