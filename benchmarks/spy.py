"""Where a running process's time goes: sampled by py-spy from outside, printed as tables."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.gateways import LeftOut, environment
from benchmarks.stacks import lines_of, shares


@contextlib.contextmanager
def sampled(pid: int, seconds: float, out: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Sample for so many seconds from the block's beginning, wait for the end of that, and print the tables.

    The stacks are in `out`: any flame graph tool reads them. Raises LeftOut.
    """
    spy = environment("py-spy", say) / "py-spy"
    out.parent.mkdir(parents=True, exist_ok=True)
    argv = [str(spy), "record", "--pid", str(pid), "--rate", "500", "--format", "raw"]
    argv += ["--duration", str(round(seconds)), "--output", str(out)]
    recorder = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield
        _, errors = recorder.communicate(timeout=seconds + 60)
    finally:
        recorder.kill()
        recorder.wait()
    if recorder.returncode:
        raise LeftOut(f"py-spy cannot look into process {pid}: {errors.decode(errors='replace')[-300:]}")
    files, functions = shares(out.read_text().splitlines())
    print("\n".join(lines_of(f"\nOwn time, by file ({out})", files, 25)))
    print("\n".join(lines_of("\nTime within, by function", functions, 60)), flush=True)
