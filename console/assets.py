"""The files of the pages are read once at the start, and their address has a hash of all of them: browsers keep them for ever.

Invariants: what is served under a hash never changes, also while another version is installed over this one, since nothing is
read later; files of another hash are not there, so that no page mixes two versions.
"""

import hashlib
import mimetypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from console import bundle, opening

KEPT: Final = "public, max-age=31536000, immutable"
PLAIN: Final = "/static/"
"""How the empty page names its files."""
SHELL: Final = "index.html"
FIRST: Final = b"<!-- first -->"
"""Where the empty page names what a screen reads first."""
ENTRY: Final = "app.js"
SCRIPT: Final = "pages.js"
"""The one file that all modules come in."""
SHEETS: Final = ("vendor/uplot.css", "console.css")
SHEET: Final = "pages.css"
"""The one file that all sheets come in."""
TYPES: Final = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}


class Assets:
    """Files by their path, and the page that names them."""

    def __init__(self, files: dict[str, bytes]) -> None:
        files = files | {SCRIPT: bundle.bundle(ENTRY, files), SHEET: b"\n".join(files[name] for name in SHEETS)}
        digest = hashlib.sha256()
        for name, content in sorted(files.items()):
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        self.version = digest.hexdigest()[:20]
        self._shell = files[SHELL].replace(PLAIN.encode(), f"{PLAIN}{self.version}/".encode())
        self._files = {name: content for name, content in files.items() if name != SHELL}
        self._screens = opening.screens_of(files[opening.TABLE].decode())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """All files of a folder."""
        return cls({str(p.relative_to(folder).as_posix()): p.read_bytes() for p in folder.rglob("*") if p.is_file()})

    def page(self, parts: Sequence[str], query: Mapping[str, str]) -> bytes:
        """The empty page of an address, given by its parts and its query; it names what its screen reads first."""
        found = opening.find_screen(parts, self._screens)
        data = opening.addresses(*found, query) if found is not None else []
        return self._shell.replace(FIRST, opening.head(data).encode())

    def find(self, path: str) -> tuple[bytes, str] | None:
        """The content and the type of `VERSION/NAME`; None: it is not of this version."""
        version, _, name = path.partition("/")
        content = self._files.get(name) if version == self.version else None
        if content is None:
            return None
        guessed = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return content, TYPES.get(Path(name).suffix, guessed)
