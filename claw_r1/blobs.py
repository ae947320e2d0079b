"""What is large by nature, images and routed experts, is stored once under the SHA-256 of its bytes; facts carry the reference.

Invariants: a blob is whole or absent, on the disk before its reference is given out, and never changed; what is read has the
hash that it was asked by; storing the same bytes again is nothing.
"""

import hashlib
import os
import re
import secrets
from pathlib import Path
from typing import Final, Protocol

from claw_r1.errors import InvalidRecord, RetryableError, WrongUse
from claw_r1.events import BlobRef

MAX_BLOB_BYTES: Final = 512 * 2**20
"""Routed experts of a 48-layer model take 768 bytes a token: 400 MB at half a million tokens."""
NPY: Final = "application/x-npy"
"""The kind of an array in NumPy's format; other kinds are media types too."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def blob_ref(data: bytes, kind: str) -> BlobRef:
    """The reference that these bytes have in every store; `kind` is a media type."""
    return BlobRef(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), kind=kind)


def blob_url(ref: BlobRef) -> str:
    """What stands in a recorded message where the bytes stood."""
    return f"claw-blob:{ref.sha256}"


class Blobs(Protocol):
    """A content-addressed store. Its calls wait for a disk or a network: an event loop makes them in a thread."""

    def put(self, data: bytes, kind: str) -> BlobRef:
        """Store, and return when the blob will outlive a crash.

        Raises InvalidRecord("blob_too_large"), or RetryableError if the store is away or full.
        """
        ...

    def get(self, sha256: str) -> bytes:
        """The blob. Raises InvalidRecord("blob_missing" or "blob_damaged"), or RetryableError if the store is away."""
        ...

    def remove(self, sha256: str) -> bool:
        """Remove what nothing refers to any more; False if it was not there. Raises RetryableError if the store is away."""
        ...


class LocalBlobs:
    """Blobs as files of a folder; several hosts that share it share the store."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BLOB_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def put(self, data: bytes, kind: str) -> BlobRef:
        if len(data) > self._max_bytes:
            raise InvalidRecord("blob_too_large", f"a blob of {len(data)} bytes; the store takes {self._max_bytes}")
        ref = blob_ref(data, kind)
        path = self._path(ref.sha256)
        try:
            if not _holds(path, len(data)):
                _write(path, data)
        except OSError as error:
            raise RetryableError(f"the blob store {self._folder} cannot be written: {error}") from error
        return ref

    def get(self, sha256: str) -> bytes:
        path = self._path(sha256)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise InvalidRecord(
                "blob_missing", f"{self._folder} has no blob {sha256}: is CLAW_BLOBS the store that it was written to?"
            ) from error
        except OSError as error:
            raise RetryableError(f"the blob store {self._folder} cannot be read: {error}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise InvalidRecord("blob_damaged", f"{path} does not hold the bytes of its name: the disk lost some")
        return data

    def remove(self, sha256: str) -> bool:
        try:
            self._path(sha256).unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise RetryableError(f"the blob store {self._folder} cannot be written: {error}") from error
        return True

    def _path(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise InvalidRecord("blob_missing", f"{sha256[:80]!r} is no SHA-256 in hex")
        return self._folder / sha256[:2] / sha256[2:4] / sha256


def open_blobs(place: str) -> Blobs:
    """The store that CLAW_BLOBS names: a folder, as a path or as file:///path. Raises WrongUse for another kind of URL."""
    scheme, separator, rest = place.partition("://")
    if separator and scheme != "file":
        raise WrongUse(
            f"CLAW_BLOBS={place}: a store of the kind {scheme} is not known; name a folder, shared by all hosts"
        )
    return LocalBlobs(Path(rest if separator else place).expanduser())


def _holds(path: Path, size: int) -> bool:
    """Whether the blob is there; one of another size was cut off by the file system and is written again."""
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _write(path: Path, data: bytes) -> None:
    """Under another name first: a reader never sees a part, and two writers of the same bytes do not meet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
        _sync(folder)


def _sync(folder: Path) -> None:
    """A name is durable when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
