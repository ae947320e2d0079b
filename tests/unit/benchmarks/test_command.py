"""The command line that benchmarks share."""

import signal
import subprocess
import sys

PROGRAM = """
import time
from benchmarks.command import run

def main():
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        print("ended", flush=True)
    return 0

raise SystemExit(run(main))
"""


def test_what_is_told_to_end_ends_what_it_started() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "ended\n"
        assert process.wait() == 128 + signal.SIGTERM
