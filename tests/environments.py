"""Programs that are not ours (real clients, a real engine) in environments of their own, made from hash-locked files.

Invariants:
- an environment is named after its lock's bytes, and counts as made only once everything in it was installed;
- two makers at once wait for each other; a half-made environment is made anew.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from claw_r1.local.jars import cache_dir

REQUIREMENTS = Path(__file__).parent.parent / "requirements"
ATTEMPTS = 3


class NotInstalledError(Exception):
    """Something could not be installed; the text says what, why and what to do."""


def environment(name: str, *locks: Path) -> Path:
    """Where the environment of these locks is, or would be."""
    digest = hashlib.sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()[:12]
    return cache_dir() / "environments" / f"{name}-{digest}"


def is_made(place: Path) -> bool:
    return (place / ".made").exists()


def make_environment(place: Path, install: Callable[[Path], None], *, talk: Callable[[str], None] = print) -> None:
    """Make `place` by `install`, unless it is made. Raises NotInstalledError."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place.with_name(f".{place.name}.lock")):
        if is_made(place):
            return
        began = time.monotonic()
        talk(f"making {place}")
        shutil.rmtree(place, ignore_errors=True)
        install(place)
        (place / ".made").touch()
        talk(f"made {place} in {time.monotonic() - began:.0f} s")


def make_venv(place: Path, lock: Path) -> None:
    """A virtual environment with exactly what `lock` pins, nothing resolved. Raises NotInstalledError."""
    uv = [sys.executable, "-m", "uv"]
    run([*uv, "venv", "--quiet", "--python", sys.executable, str(place)])
    python = str(place / "bin" / "python")
    run([*uv, "pip", "sync", "--quiet", "--require-hashes", "--python", python, str(lock)], attempts=ATTEMPTS)


def run(
    command: Sequence[str], *, attempts: int = 1, env: dict[str, str] | None = None, cwd: Path | None = None
) -> None:
    """Run a step of an installation, again if the network failed it. Raises NotInstalledError with its last lines."""
    for attempt in range(1, attempts + 1):
        done = subprocess.run(command, env=env, cwd=cwd, text=True, capture_output=True, check=False)
        if done.returncode == 0:
            return
        if attempt < attempts:
            time.sleep(2.0 * attempt)
    last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
    raise NotInstalledError(f"{' '.join(command)}\nended with {done.returncode} ({attempts} attempts):\n{last}")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file while another process may want the same."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def free_gb(path: Path) -> float:
    """Free space of the disk that holds `path`, or will hold it, in GB."""
    there = path
    while not there.exists():
        there = there.parent
    state = os.statvfs(there)
    return state.f_bavail * state.f_frsize / 1e9


@dataclass(frozen=True)
class Wheels:
    """Pinned wheels for Linux on x86-64 that not every machine can take, in an environment of their own."""

    what: str
    """In words."""
    name: str
    lock: Path
    disk_gb: float
    """Needed while they are not there."""
    imports: str
    """A statement that proves that they work."""
    needs: Callable[[], str | None] = lambda: None
    """Why the machine cannot run them for another reason, or None."""

    def place(self) -> Path:
        return environment(self.name, self.lock)

    def cannot(self) -> str | None:
        """Why this machine cannot have them, or None."""
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            return f"this machine is {sys.platform} on {platform.machine()}: {self.what} is pinned for Linux on x86-64"
        if (reason := self.needs()) is not None:
            return reason
        free = free_gb(self.place())
        if not is_made(self.place()) and free < self.disk_gb:
            return (
                f"this machine has {free:.0f} GB of disk free, {self.what} is installed only above {self.disk_gb:.0f}"
            )
        return None

    def install(self, where: Path) -> None:
        """Raises NotInstalledError."""
        make_venv(where, self.lock)
        run([str(where / "bin" / "python"), "-c", self.imports], cwd=where)

    def main(self) -> None:
        """Make the environment unless it is there; where the machine cannot have it, say so and end well."""
        reason = self.cannot()
        if reason is not None:
            print(f"Not installed: {reason}")
            return
        try:
            make_environment(self.place(), self.install)
        except NotInstalledError as error:
            sys.exit(f"{self.what} cannot be installed.\n{error}")
