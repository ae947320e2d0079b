"""`python -m tests.chaos`: a whole system under faults; exit 1 if an invariant does not hold."""

import argparse
import asyncio
import logging
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.run import run_chaos


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="how long faults strike")
    parser.add_argument("--seed", type=int, help="repeats the faults and the agents' choices of a run")
    parser.add_argument(
        "--data", type=Path, help="folder of logs, books and data; default: a new one, kept if something is wrong"
    )
    given = parser.parse_args()
    seed = random.randrange(2**32) if given.seed is None else given.seed
    data = given.data or Path(tempfile.mkdtemp(prefix="claw-chaos-"))
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # a broker that is away is no news here
    print(f"SEED={seed} MINUTES={given.minutes:g}, logs and books: {data}", flush=True)
    result = asyncio.run(run_chaos(data, seed, 60 * given.minutes, lambda line: print(line, flush=True)))
    print(result.report())
    if not result.violations and given.data is None:
        shutil.rmtree(data)
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main())
