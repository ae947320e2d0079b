"""Blobs leave their folder for a backup's and come back, each under the hash of its bytes, piece by piece."""

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from claw_r1.backups.folder import BLOBS, Folder
from claw_r1.errors import UserError

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_PIECE: Final = 2**20

Counted = Callable[[int], None]


def list_blobs(store: Path) -> Iterator[Path]:
    """Every whole blob of a folder, in order; there may be millions, and one folder's are listed at a time."""
    for first in sorted(store.glob("[0-9a-f][0-9a-f]")):
        for second in sorted(first.glob("[0-9a-f][0-9a-f]")):
            yield from (path for path in sorted(second.iterdir()) if _SHA256.fullmatch(path.name))


def copy_blobs(store: Path, folder: Folder, count: Counted) -> None:
    """Copy what an earlier call has not. Raises UserError for a blob that does not hold the bytes of its name."""
    for blob in list_blobs(store):
        if not folder.has_blob(blob.name):
            with folder.writing(part_name(blob.name)) as draft, blob.open("rb") as source:
                digest = hashlib.sha256()
                while piece := source.read(_PIECE):
                    draft.add(piece)
                    digest.update(piece)
                if digest.hexdigest() != blob.name:
                    raise UserError(
                        f"{blob} does not hold the bytes of its name: the disk lost some. Remove it to go on without"
                    )
        count(1)


def part_name(sha256: str) -> str:
    return f"{BLOBS}{sha256[:2]}/{sha256[2:4]}/{sha256}"


def restore_blobs(store: Path, folder: Folder, count: Counted) -> None:
    """Copy into the store what it does not have."""
    target = Folder(store)
    for part in folder.each():
        if not part.path.startswith(BLOBS):
            continue
        name = part.path.removeprefix(BLOBS)
        if not (store / name).exists():
            with target.placing(name) as draft, (folder.path / part.path).open("rb") as source:
                while piece := source.read(_PIECE):
                    draft.add(piece)
        count(1)
