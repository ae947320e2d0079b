"""Libraries of the pages come from npm into `static/vendor/`: `NPM_CONFIG_REGISTRY=URL make vendor`; `npm config get registry`
tells the URL.

Invariants: each package is pinned by version and by npm's own hash of its archive; only the files named here are taken, with
the licence beside them; a bare import becomes the path of the file that has it, so that no import map (an inline script) is
needed. VENDOR.json has the hash of every file as it lies here, and a test hashes them again.
"""

import base64
import hashlib
import io
import json
import os
import re
import sys
import tarfile
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

STATIC: Final = Path(__file__).parent / "static" / "vendor"
TESTS: Final = Path(__file__).parents[1] / "tests" / "browser" / "vendor"
DEADLINE: Final = 60.0


@dataclass(frozen=True)
class Package:
    """A package of npm: files of its archive by the name that they get here."""

    name: str
    version: str
    integrity: str
    licence: str
    files: dict[str, str]
    into: Path = STATIC
    imports: dict[str, str] = field(default_factory=dict)
    """Bare import → path here."""

    @property
    def archive(self) -> str:
        """Its path in a registry of npm."""
        return f"{self.name}/-/{self.name.rpartition('/')[2]}-{self.version}.tgz"


PACKAGES: Final = (
    Package(
        "preact",
        "10.29.8",
        "sha512-ej2aVZ+vZ8WO7tvlQWRM9N63A0KzF9q4mWJfDUHgYaIofWY9hu74QdnQrjoPMmZi2/nZ5gN0bJCQF49xQqx09Q==",
        "MIT",
        {"dist/preact.module.js": "preact.js", "hooks/dist/hooks.module.js": "hooks.js", "LICENSE": "preact.LICENSE"},
        imports={"preact": "./preact.js"},
    ),
    Package(
        "htm",
        "3.1.1",
        "sha512-983Vyg8NwUE7JkZ6NmOqpCZ+sh1bKv2iYTlUkzlWmA5JD2acKoxd4KVxbMmxX/85mtfdnDmTFoNKcg5DGAvxNQ==",
        "Apache-2.0",
        {"dist/htm.module.js": "htm.js", "LICENSE": "htm.LICENSE"},
    ),
    Package(
        "@preact/signals-core",
        "1.14.5",
        "sha512-vcRv7Ityz5JVmeiVqIluLFzT/PDS/AlhHUpw3/aUWqcVUs6bDGIPXE/6RSC4evBNWYvnniozg5Syfj33al3gkg==",
        "MIT",
        {"dist/signals-core.module.js": "signals-core.js", "LICENSE": "signals-core.LICENSE"},
    ),
    Package(
        "@preact/signals",
        "2.11.4",
        "sha512-Rb+5RPo9gWSaHtzJeauhHxiC8KP/IF2DEPkHPEOGOnuy2wnJzRqyeLRankUCYd6ADqtxS6GnWGv6Ie343d8aYw==",
        "MIT",
        {"dist/signals.module.js": "signals.js", "LICENSE": "signals.LICENSE"},
        imports={
            "preact": "./preact.js",
            "preact/hooks": "./hooks.js",
            "@preact/signals-core": "./signals-core.js",
        },
    ),
    Package(
        "uplot",
        "1.6.32",
        "sha512-KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==",
        "MIT",
        {"dist/uPlot.esm.js": "uplot.js", "dist/uPlot.min.css": "uplot.css", "LICENSE": "uplot.LICENSE"},
    ),
    Package(
        "axe-core",
        "4.14.1",
        "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
        "MPL-2.0",
        {"axe.min.js": "axe.js", "LICENSE": "axe.LICENSE"},
        into=TESTS,
    ),
)


def rewrite(text: str, imports: dict[str, str]) -> str:
    """Bare imports become paths; a source map that is not here is not named."""
    for bare, path in imports.items():
        text = re.sub(rf"""(\bfrom\s*|\bimport\s*)(["']){re.escape(bare)}\2""", rf"\g<1>\g<2>{path}\2", text)
    return re.sub(r"\n?//# sourceMappingURL=\S+\s*$", "\n", text)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def unpack(package: Package, archive: bytes) -> dict[str, bytes]:
    """The files of a package by their names here. Raises ValueError if the archive is not the pinned one."""
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if found != package.integrity:
        raise ValueError(
            f"{package.archive} has the hash {found}, and {package.integrity} is pinned: nothing was written"
        )
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        taken = {}
        for inside, name in package.files.items():
            member = tar.extractfile(f"package/{inside}")
            if member is None:
                raise ValueError(f"{package.archive} has no file {inside}")
            data = member.read()
            taken[name] = rewrite(data.decode(), package.imports).encode() if name.endswith(".js") else data
        return taken


def record(package: Package, files: dict[str, bytes]) -> dict[str, object]:
    """What VENDOR.json says of a package."""
    return {
        "version": package.version,
        "integrity": package.integrity,
        "licence": package.licence,
        "files": {name: sha256(data) for name, data in sorted(files.items())},
    }


def main() -> None:
    """Fetch every package and write it, with its record."""
    registry = os.environ.get("NPM_CONFIG_REGISTRY")
    if not registry:
        sys.exit(
            "say where npm's registry is: NPM_CONFIG_REGISTRY=URL make vendor (`npm config get registry` tells it)"
        )
    for folder in (STATIC, TESTS):
        records = {}
        for package in (p for p in PACKAGES if p.into == folder):
            with urllib.request.urlopen(f"{registry.rstrip('/')}/{package.archive}", timeout=DEADLINE) as reply:
                files = unpack(package, reply.read())
            folder.mkdir(parents=True, exist_ok=True)
            for name, data in files.items():
                (folder / name).write_bytes(data)
            records[package.name] = record(package, files)
            print(f"{package.name} {package.version}: {', '.join(files)}")
        (folder / "VENDOR.json").write_text(json.dumps(records, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
