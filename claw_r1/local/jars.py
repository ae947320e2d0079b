"""The broker's jars: fetched once, each checked against its pinned sha256, kept outside the data directory.

Invariants:
- a jar appears under its final name only after its bytes were checked, so an interrupted fetch is continued;
- two processes may fetch at once: each downloads into a directory of its own and renames.
"""

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from claw_r1.errors import DependencyUnreachable

KAFKA_VERSION = "4.2.0"
PIN_FILE = Path(__file__).with_name(f"kafka-{KAFKA_VERSION}-jars.txt")
PARALLEL_DOWNLOADS = 16
ATTEMPTS = 3
STALE_DOWNLOAD_S = 3600.0

# (coordinate, private download directory) -> the downloaded file.
Download = Callable[[str, Path], Path]
# (jars present, jars in all)
Progress = Callable[[int, int], None]


class JarsUnavailableError(DependencyUnreachable):
    """The broker's jars could not be fetched or are not what was pinned; the text says what to do."""


@dataclass(frozen=True)
class Jar:
    """One pinned jar: its coordinate group:artifact:version and the sha256 of its bytes (hex)."""

    coordinate: str
    sha256: str

    @property
    def file_name(self) -> str:
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


def cache_dir() -> Path:
    """The directory of everything that can be downloaded again: CLAW_CACHE, or ~/.cache/claw-r1."""
    return Path(os.environ.get("CLAW_CACHE") or Path.home() / ".cache" / "claw-r1")


def jar_dir() -> Path:
    return cache_dir() / f"kafka-{KAFKA_VERSION}"


def read_pins(path: Path = PIN_FILE) -> list[Jar]:
    """The pinned jars, in the order of the class path."""
    lines = (line.split() for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#"))
    return [Jar(coordinate, digest.removeprefix("sha256:")) for coordinate, digest in lines]


def ensure_jars(
    target: Path | None = None,
    pins: Sequence[Jar] | None = None,
    *,
    download: Download | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """The class path of the broker: every pinned jar, present and checked, fetched where it was missing.

    Raises JarsUnavailableError if a jar cannot be fetched or has other bytes than were pinned.
    """
    target = target or jar_dir()
    pins = list(pins if pins is not None else read_pins())
    target.mkdir(parents=True, exist_ok=True)
    missing = [jar for jar in pins if not has_pinned_bytes(target / jar.file_name, jar)]
    if missing:
        _sweep_stale_downloads(target)
        _fetch_missing(
            target, missing, len(pins), download or download_with_jgo, progress or (lambda done, total: None)
        )
    return [target / jar.file_name for jar in pins]


def has_pinned_bytes(path: Path, jar: Jar) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256


def download_with_jgo(coordinate: str, into: Path) -> Path:
    """Download one artifact by its coordinate. jgo knows the public repository of Java artifacts."""
    from jgo.maven import MavenContext

    group, artifact, version = coordinate.split(":")
    context = MavenContext(repo_cache=into, timeout=30)
    return Path(context.project(group, artifact).at_version(version).artifact().resolve())


def _fetch_missing(target: Path, missing: list[Jar], total: int, download: Download, progress: Progress) -> None:
    done = total - len(missing)
    progress(done, total)
    with (
        tempfile.TemporaryDirectory(prefix=".fetch-", dir=target, ignore_cleanup_errors=True) as private,
        ThreadPoolExecutor(PARALLEL_DOWNLOADS, thread_name_prefix="jars") as pool,
    ):
        futures = [pool.submit(_fetch_jar, jar, target, Path(private), download) for jar in missing]
        try:
            for future in as_completed(futures):
                future.result()
                done += 1
                progress(done, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch_jar(jar: Jar, target: Path, private: Path, download: Download) -> None:
    """Download, check, rename. A transfer that was cut short shows as other bytes, so both are tried again."""
    reason = ""
    for attempt in range(ATTEMPTS):
        try:
            path = download(jar.coordinate, private / f"{jar.file_name}.{attempt}")
        # requests' errors are OSErrors; jgo raises RuntimeError for an answer other than 200 and asserts on races.
        except (OSError, RuntimeError, AssertionError) as error:
            reason = f"could not be downloaded: {error}"
            time.sleep(0.2 * attempt)  # between tries of a remote server
            continue
        if has_pinned_bytes(path, jar):
            path.replace(target / jar.file_name)
            return
        reason = f"arrived with other bytes than the pinned sha256 {jar.sha256}"
    raise JarsUnavailableError(
        f"{jar.coordinate} {reason}\n"
        f"The broker needs this jar. Check the network (and HTTPS_PROXY, if you use one) and run the same command\n"
        f"again: what is already in {target} is kept. Without a network, copy that directory\n"
        f"from a machine that has it, or use a Kafka of your own with --kafka HOST:PORT."
    )


def _sweep_stale_downloads(target: Path) -> None:
    """Remove what a killed fetch left behind."""
    for left in target.glob(".fetch-*"):
        if time.time() - left.stat().st_mtime > STALE_DOWNLOAD_S:
            shutil.rmtree(left, ignore_errors=True)


def print_progress(done: int, total: int) -> None:
    """One line that is redrawn on a terminal; elsewhere a line per quarter."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\rfetching the broker: {done}/{total} jars" + ("\n" if done == total else ""))
        sys.stderr.flush()
    elif done in {total, *(total * quarter // 4 for quarter in range(4))}:
        print(f"fetching the broker: {done}/{total} jars", file=sys.stderr)


def main() -> int:
    try:
        paths = ensure_jars(progress=print_progress)
    except JarsUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    print(f"Apache Kafka {KAFKA_VERSION}: {len(paths)} jars in {jar_dir()}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
