"""Chromium for the tests in a browser: Debian's package, or the one that CLAW_CHROMIUM names.

`python -m tests.browser.install` installs it where apt can; where the machine cannot, it says so and ends well.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = ("chromium", "fonts-dejavu-core")
DEADLINE = 600


def find_chromium() -> Path | None:
    """The browser that tests drive."""
    given = os.environ.get("CLAW_CHROMIUM")
    for name in (given,) if given else ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return Path(found)
    return None


def cannot() -> str | None:
    """Why this machine cannot have one by apt, or None."""
    if shutil.which("apt-get") is None:
        return "this machine has no apt-get: install Chromium, and name it with CLAW_CHROMIUM"
    if os.geteuid() != 0:
        return f"this machine asks for root to install: sudo apt-get install {' '.join(PACKAGES)}"
    return None


def main() -> None:
    if found := find_chromium():
        print(f"Chromium: {found}")
        return
    reason = cannot()
    if reason is not None:
        print(f"No Chromium: {reason}")
        return
    for command in (["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    print(f"Chromium: {find_chromium()}")


if __name__ == "__main__":
    main()
