"""Which form is played: `CLAW_KILL_SEED=n` repeats a run, `CLAW_KILL_LONG=1` is the long form (`make chaos`)."""

import os
import random

# Taken out of the environment: to the processes of a stack a CLAW_* variable that is no setting is a mistake.
SEED = int(os.environ.pop("CLAW_KILL_SEED", random.randrange(2**32)))
LONG = os.environ.pop("CLAW_KILL_LONG", "") == "1"


def show() -> None:
    """Print how to repeat the run: pytest shows it when the test fails."""
    print(f"CLAW_KILL_SEED={SEED}" + (" CLAW_KILL_LONG=1" if LONG else ""))
