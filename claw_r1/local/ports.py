"""Ports of the local stack: found, not assumed, and the same again on the next start of the same data.

Between the moment a port is found and the moment its server listens on it seconds may pass, in which another stack may find
it too. So whoever finds a port claims it, by a lock on a file that all stacks of this user share, until its process ends.
"""

import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path

HOST = "127.0.0.1"
# Below the range that systems take for outgoing connections, so that a port found free is not lost to one of those.
RANGE = range(15_000, 30_000)
TRIES = 200

_claims: dict[int, int] = {}
"""Ports that this process has claimed → the descriptor that holds the claim until the process ends; bounded by RANGE."""


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now (closed connections that still linger do not count)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def find_port(preferred: int | None = None, *, taken: Iterable[int] = ()) -> int:
    """The preferred port if it is free, else any free one that is not in `taken`; claimed until this process ends.

    Raises OSError if no port is free in RANGE.
    """
    avoided = set(taken)
    if preferred is not None and preferred not in avoided and is_free(preferred) and _claim(preferred):
        return preferred
    for port in random.sample(RANGE, TRIES):
        if port not in avoided and port not in _claims and is_free(port) and _claim(port):
            return port
    raise OSError(f"no free port found on {HOST} in {TRIES} tries between {RANGE.start} and {RANGE.stop}")


def _claim(port: int) -> bool:
    """Whether no other living process has claimed the port; from now on this one has."""
    if port in _claims:
        return True
    folder = Path(tempfile.gettempdir()) / f"claw-r1-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    claim = os.open(folder / str(port), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(claim)
        return False
    _claims[port] = claim
    return True
