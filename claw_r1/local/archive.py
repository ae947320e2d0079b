"""The archive of the broker's classes, made once: a broker of no use runs to the end, and Java keeps what it loaded.

Invariants:
- an archive has its name only when it is whole; one process at a time makes it, and whoever comes meanwhile goes on without;
- what cannot be made is said, and not tried again on that day.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from claw_r1.errors import ClawError
from claw_r1.local.broker import Node, broker_serves, prepare_brokers
from claw_r1.local.jars import ensure_jars
from claw_r1.local.jars import main as fetch_jars
from claw_r1.local.java import ARCHIVES, CLASSES_ONLY, archive_key, archive_name, find_archive, java
from claw_r1.local.ports import HOST, find_port
from claw_r1.local.state import holding
from claw_r1.local.supervisor import GUARD, tail
from claw_r1.topics import EVENTS, all_topics

LOCK_FILE: Final = ".archive.lock"
START_TIMEOUT_S: Final = 120.0
END_TIMEOUT_S: Final = 120.0
"""Java writes the archive when the broker ends."""
AGAIN_S: Final = 86_400.0
"""Until it is tried again where it failed."""
STALE_S: Final = 3600.0
UNUSED_S: Final = 30 * 86_400.0
"""Of archives of other jars and of another Java, by the time when they were made."""


class ArchiveError(ClawError):
    """No archive could be made; the text says why."""


def ensure_archive(jars: Sequence[Path], report: Callable[[str], None]) -> Path | None:
    """The archive of these jars, made if it is missing (ten seconds or more); None: brokers start without, and why is said."""
    folder = jars[0].parent
    failed = folder / f"broker-{archive_key(java(), jars)}.failed"
    found = find_archive(jars)
    if found is not None or (failed.exists() and time.time() - failed.stat().st_mtime < AGAIN_S):
        return found
    try:
        with holding(folder / LOCK_FILE) as held:
            if not held or (found := find_archive(jars)) is not None:
                return found
            report("making an archive of the broker's classes, by which later starts are faster")
            _sweep(folder)
            return make_archive(jars)
    except (ClawError, OSError) as error:
        report(f"there is no archive of the broker's classes, and it starts without: {error}")
        with contextlib.suppress(OSError):  # of a folder that takes no files
            failed.write_text(f"{error}\n", "utf-8")
        return None


def make_archive(jars: Sequence[Path]) -> Path:
    """Run a broker, use it, end it, and keep what Java wrote beside the jars. Raises ArchiveError."""
    folder = jars[0].parent
    key = archive_key(java(), jars)
    with tempfile.TemporaryDirectory(prefix=".archive-", dir=folder, ignore_cleanup_errors=True) as private:
        made = Path(private) / "classes.aot"
        _train(Path(private), made)
        name = archive_name(key, made)
        return made.replace(folder / name)


def _train(data: Path, into: Path) -> None:
    port = find_port()
    node = Node("kafka", 1, port, find_port(taken=[port]))
    (argv,) = prepare_brokers(data, [node])
    log = data / "broker.log"
    command = [argv[0], *CLASSES_ONLY, f"-XX:AOTCacheOutput={into}", *argv[1:]]
    with log.open("wb") as output:
        guarded = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), *command]
        broker = subprocess.Popen(guarded, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not broker_serves(HOST, port):
            if broker.poll() is not None or time.monotonic() > deadline:
                raise ArchiveError(f"a broker did not start:\n{tail(log)}")
            time.sleep(0.2)
        asyncio.run(_use(f"{HOST}:{port}"))
        broker.terminate()
        broker.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise ArchiveError(f"Java was not ready with it in {END_TIMEOUT_S:.0f} s") from error
    finally:
        broker.kill()
        broker.wait()
    if not into.exists():
        raise ArchiveError(f"Java wrote none:\n{tail(log)}")


async def _use(kafka: str) -> None:
    """What stages do with a broker: topics, a transaction, a group that reads and commits."""
    from claw_r1 import bus  # a client library, which no other start of a stack needs

    await bus.apply_topics(kafka, [topic for topic in all_topics() if topic.name == EVENTS])
    producer = await bus.start_producer(kafka, client_id="archive", transactional_id="archive")
    try:
        async with producer.transaction():
            await producer.send(EVENTS, b"{}", key=b"key")
    finally:
        await bus.stop_producer(producer)


def _sweep(folder: Path) -> None:
    """Remove what a killed process left, and archives that nothing may use any more."""
    for left in folder.glob(".archive-*"):
        if time.time() - left.stat().st_mtime > STALE_S:
            shutil.rmtree(left, ignore_errors=True)
    for old in folder.glob(ARCHIVES.format(key="*", digest="*")):
        if time.time() - old.stat().st_mtime > UNUSED_S:
            old.unlink(missing_ok=True)


def main() -> int:
    """Fetch the jars and make the archive: what `make setup` does."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # a broker that does not answer yet is no error here
    if code := fetch_jars():
        return code
    ensure_archive(ensure_jars(), lambda line: print(line, file=sys.stderr))
    return 0


if __name__ == "__main__":
    sys.exit(main())
