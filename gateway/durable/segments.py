"""Frames reach a folder of segments and are durable when a write returns; what a dead process left is examined and mended.

Invariants:
- a folder belongs to the one process that holds its lock, which ends with the process, however it ends;
- a write that fails leaves the segment as it was before, and later writes begin a new one: after a failed fsync nothing
  tells what of a file is on the disk;
- a torn end is cut; damage is copied to a file of its own before its segment can go;
- everything here blocks, and is called from one thread.
"""

import contextlib
import fcntl
import logging
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from claw_r1.metrics import GATEWAY_SPOOL_DAMAGED, GATEWAY_SPOOL_TORN
from gateway.durable.frames import (
    SALT_BYTES,
    SEGMENT_HEAD,
    Entry,
    Scan,
    encode_entry,
    frame_head,
    read_head,
    scan,
    segment_head,
)

log = logging.getLogger("claw.gateway.spool")

SUFFIX: Final = ".segment"
LOCK: Final = "lock"
ASIDE: Final = "aside"
"""Folder beside the workers' for what cannot be sent: damage, and records that the broker refuses for good."""


@dataclass(eq=False)
class Segment:
    """A file of frames; `taken` bytes of its `size` durable ones are no longer needed."""

    path: Path
    salt: bytes
    size: int = SEGMENT_HEAD
    records: int = 0
    taken: int = SEGMENT_HEAD
    first_at: float | None = None
    aside: set[int] = field(default_factory=set)
    """Where damage begins that was put aside."""


@dataclass
class Folder:
    """A worker's folder, held by this process."""

    path: Path
    lock: int
    segments: list[Segment] = field(default_factory=list)


def hold_folders(root: Path) -> list[Folder]:
    """Every worker's folder under `root` that no living process holds, or a new one. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True)
    held = [folder for path in sorted(root.glob("worker-*")) if (folder := _hold(path)) is not None]
    while not held:
        path = root / f"worker-{secrets.token_hex(4)}"
        path.mkdir(mode=0o700)
        held = [folder] if (folder := _hold(path)) is not None else []
    return held


def _hold(path: Path) -> Folder | None:
    try:
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (FileNotFoundError, NotADirectoryError):
        return None  # its holder removed it just now
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.fstat(lock).st_ino == os.stat(path / LOCK).st_ino
    except (BlockingIOError, FileNotFoundError):
        mine = False  # another process has it, or had it and removed it
    if mine:
        return Folder(path, lock)
    os.close(lock)
    return None


def let_go(folder: Folder) -> None:
    """Give a folder up, and remove it if it holds nothing."""
    if next(folder.path.glob(f"*{SUFFIX}"), None) is None:
        with contextlib.suppress(OSError):  # an empty folder is adopted at the next start
            (folder.path / LOCK).unlink()
            folder.path.rmdir()
    os.close(folder.lock)


def examine(folder: Folder) -> None:
    """Find the segments that an earlier process left, cut torn ends, put damage aside. Raises OSError."""
    for path in sorted(folder.path.glob(f"*{SUFFIX}")):
        data = path.read_bytes()
        salt = read_head(data)
        if salt is None and len(data) >= SEGMENT_HEAD:
            put_aside(path, 0, data)
            path.unlink()
            continue
        found = scan(data[SEGMENT_HEAD:], salt) if salt is not None else Scan(torn_at=0)
        if found.torn_at is not None:
            _cut(path, SEGMENT_HEAD + found.torn_at, len(data))
        for start, end in found.damaged:
            put_aside(path, SEGMENT_HEAD + start, data[SEGMENT_HEAD + start : SEGMENT_HEAD + end])
        if salt is None or not found.entries:
            path.unlink()
            continue
        size = len(data) if found.torn_at is None else SEGMENT_HEAD + found.torn_at
        segment = Segment(path, salt, size=size, records=len(found.entries), first_at=found.first_at)
        segment.aside.update(SEGMENT_HEAD + start for start, _ in found.damaged)
        folder.segments.append(segment)


def _cut(path: Path, size: int, found: int) -> None:
    GATEWAY_SPOOL_TORN.inc()
    log.warning("a torn record was cut", extra={"segment": str(path), "bytes": found - min(size, found)})
    with path.open("r+b") as file:
        file.truncate(min(size, found))
        os.fsync(file.fileno())


def put_aside(path: Path, start: int, data: bytes) -> None:
    """Keep bytes of a segment that are no record, durably, under a name that says where they stood."""
    GATEWAY_SPOOL_DAMAGED.inc()
    kept = write_aside(path.parents[1], f"{path.parent.name}-{path.stem}-{start}.damaged", data)
    log.error("a segment is damaged: what cannot be read is kept aside", extra={"bytes": len(data), "kept": str(kept)})


def keep_refused(root: Path, entry: Entry, at: float) -> Path:
    """Keep a record that the broker refuses for good, as a segment of its own."""
    salt, payload = secrets.token_bytes(SALT_BYTES), encode_entry(entry, at)
    data = segment_head(salt) + frame_head(payload, salt) + payload
    return write_aside(root, f"refused-{secrets.token_hex(8)}{SUFFIX}", data)


def write_aside(root: Path, name: str, data: bytes) -> Path:
    (root / ASIDE).mkdir(mode=0o700, exist_ok=True)
    path = root / ASIDE / name
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
    return path


def read_entries(segment: Segment, start: int, end: int) -> Scan:
    """The frames in [start, end) of a segment; what has become damaged is put aside. Raises OSError."""
    with segment.path.open("rb") as file:
        file.seek(start)
        data = file.read(end - start)
    found = scan(data, segment.salt)
    if found.torn_at is not None:  # it was whole when it was written
        found.damaged.append((found.torn_at, len(data)))
    for place, stop in found.damaged:
        if start + place not in segment.aside:
            segment.aside.add(start + place)
            put_aside(segment.path, start + place, data[place:stop])
    return found


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Writer:
    """Appends payloads to a folder's last segment."""

    def __init__(self, folder: Path, segment_bytes: int) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._fd: int | None = None
        self._segment: Segment | None = None

    def write(self, payloads: list[bytes]) -> tuple[Segment, int]:
        """Durably append; the segment, and its new size. Raises OSError: then nothing of it is in the segment."""
        if self._fd is None or self._segment is None or self._segment.size >= self._segment_bytes:
            self._fd, self._segment = self._begin()
        fd, segment = self._fd, self._segment
        data = b"".join(part for payload in payloads for part in (frame_head(payload, segment.salt), payload))
        try:
            _write_all(fd, data)
            os.fsync(fd)
        except OSError:
            self._mend(fd, segment)
            raise
        return segment, segment.size + len(data)

    def end(self) -> None:
        """The next write begins a new segment."""
        if self._fd is not None:
            os.close(self._fd)
        self._fd = self._segment = None

    def _begin(self) -> tuple[int, Segment]:
        self.end()
        last = max((int(path.stem) for path in self._folder.glob(f"*{SUFFIX}")), default=0)
        segment = Segment(self._folder / f"{last + 1:012d}{SUFFIX}", secrets.token_bytes(SALT_BYTES))
        fd = os.open(segment.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, segment_head(segment.salt))
            sync_folder(self._folder)
        except OSError:
            os.close(fd)
            segment.path.unlink(missing_ok=True)
            raise
        return fd, segment

    def _mend(self, fd: int, segment: Segment) -> None:
        try:
            os.ftruncate(fd, segment.size)
            os.fsync(fd)
            if segment.size == SEGMENT_HEAD:
                segment.path.unlink()
        except OSError as error:
            # Records that nobody was told of may be sent: their ids make that harmless.
            log.error("a failed write could not be undone", extra={"segment": str(segment.path), "error": str(error)})
        self.end()


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
