"""Other pools of steps, each asked by a program in an environment that this makes; what cannot run is left out with the reason.

They are asked how many steps they take in and give out, which is less than what is asked of us: they keep them in memory.
"""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.gateways import LeftOut, environment
from benchmarks.report import Value

ENVIRONMENT: Final = "transferqueue"
"""Also has ray, which upstream Claw-R1's pool needs."""
TIMEOUT: Final = 600.0
STEPS: Final = 20_000


def measure(say: Callable[[str], None], claw_r1: Path | None, *, quick: bool) -> list[dict[str, Value]]:
    """A figure for each call by which a pool takes steps in. `claw_r1`: a checkout of upstream; without it that one is left
    out."""
    return _measure("pool", "steps_per_s", say, claw_r1, STEPS // 10 if quick else STEPS)


def measure_fetch(say: Callable[[str], None], claw_r1: Path | None, *, quick: bool) -> list[dict[str, Value]]:
    """A figure for each call by which a pool gives rows out; `claw_r1` as for `measure`."""
    return _measure("fetch", "rows_per_s", say, claw_r1, STEPS // 10 if quick else STEPS)


def _measure(
    kind: str, unit: str, say: Callable[[str], None], claw_r1: Path | None, steps: int
) -> list[dict[str, Value]]:
    here = Path(__file__).parent
    figures: list[dict[str, Value]] = []
    for pool, arguments in (
        ("transferqueue", [here / f"{kind}_transferqueue.py", steps]),
        ("upstream-claw-r1", None if claw_r1 is None else [here / f"{kind}_claw_r1.py", claw_r1.resolve(), steps]),
    ):
        say(f"pools: {pool}")
        try:
            if arguments is None:
                raise LeftOut("it is in no package registry: name a checkout with --claw-r1")
            python = environment(ENVIRONMENT, say) / "python"
            found = ask([str(python), *map(str, arguments)])
        except LeftOut as error:
            figures.append({"pool": pool, "left_out": str(error)})
            continue
        figures += [{"pool": pool, "call": call, unit: speed} for call, speed in found.items()]
    return figures


def ask(argv: Sequence[str]) -> dict[str, float]:
    """What the program printed last. Raises LeftOut."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise LeftOut(f"it did not end within {TIMEOUT:.0f} s") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise LeftOut(f"it ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    answer: dict[str, float] = json.loads(lines[-1])
    return answer
