"""A port that was found is nobody else's, also before a server listens on it."""

import subprocess
import sys

from claw_r1.local.ports import find_port

ASK = "import sys; from claw_r1.local.ports import find_port; print(find_port(int(sys.argv[1])))"


def ask_elsewhere(port: int) -> int:
    """What another process gets that prefers the port."""
    return int(
        subprocess.run([sys.executable, "-c", ASK, str(port)], check=True, capture_output=True, text=True).stdout
    )


def test_a_found_port_is_claimed_until_its_finder_ends() -> None:
    port = find_port()
    assert find_port(port) == port
    assert ask_elsewhere(port) != port
    other = ask_elsewhere(0)
    assert find_port(other) == other  # that process has ended


def test_a_process_never_finds_a_port_twice() -> None:
    ports = [find_port() for _ in range(50)]
    assert len(set(ports)) == len(ports)
