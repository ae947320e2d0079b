"""Run a command that dies with the process that started it: `guard.py PARENT_PID COMMAND…` becomes the command.

The kernel kills the command when its parent is gone, however the parent died (Linux; elsewhere the next start of the
stack ends what was left).  Run with `python -I -S`: it imports next to nothing and costs some 20 ms.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(f"the supervisor {parent} is gone: {command[0]} is not started")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
