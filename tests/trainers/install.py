"""Real trainers, verl and TRL, for this machine's CPU, in an environment of their own.

`python -m tests.trainers.install` makes it unless it is there; where the machine cannot run them, it says so and ends well.
"""

import platform
import sys
from functools import partial
from pathlib import Path

from tests.environments import (
    REQUIREMENTS,
    NotInstalledError,
    environment,
    free_gb,
    is_made,
    make_environment,
    make_venv,
    run,
)

LOCK = REQUIREMENTS / "trainers.txt"
DISK_GB = 12.0
IMPORTS = "import torch, trl, verl"


def place() -> Path:
    return environment("trainers", LOCK)


def cannot() -> str | None:
    """Why this machine cannot run the trainers, or None."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return f"this machine is {sys.platform} on {platform.machine()}: the trainers' pins are for Linux on x86-64"
    free = free_gb(place())
    if not is_made(place()) and free < DISK_GB:
        return f"this machine has {free:.0f} GB of disk free, the trainers are installed only above {DISK_GB:.0f}"
    return None


def install(where: Path, lock: Path) -> None:
    """The pinned wheels, and proof that they can be imported. Raises NotInstalledError."""
    make_venv(where, lock)
    run([str(where / "bin" / "python"), "-c", IMPORTS], cwd=where)


def main() -> None:
    reason = cannot()
    if reason is not None:
        print(f"No trainers: {reason}")
        return
    try:
        make_environment(place(), partial(install, lock=LOCK))
    except NotInstalledError as error:
        sys.exit(f"The trainers cannot be installed.\n{error}")


if __name__ == "__main__":
    main()
