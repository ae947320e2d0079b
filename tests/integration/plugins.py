"""Reward functions that tests give to workers."""

import asyncio
import os
import time
from pathlib import Path

from claw_r1.rewards.function import Rollout, Score, reward


@reward("length")
def length(rollout: Rollout) -> float:
    return float(len(rollout.answer))


@reward("parts", weights={"format": 0.5})
async def parts(rollout: Rollout) -> dict[str, float]:
    await asyncio.sleep(0)
    return {"answer": float(rollout.answer == rollout.metadata["truth"]), "format": 1.0}


@reward("heavy", process=True)
def heavy(rollout: Rollout) -> float:
    print("what a function prints goes to the log")
    return float(os.getpid() != os.getppid()) * sum(range(1000)) / 499500


@reward("broken")
def broken(rollout: Rollout) -> float:
    raise KeyError("truth")


@reward("nothing")
def nothing(rollout: Rollout) -> None:
    return None


@reward("turns", steps=True)
def turns(rollout: Rollout) -> Score:
    """A score of each step: the tokens that it was sampled after."""
    return Score(steps={step.step_id: float(len(step.prompt_ids)) for step in rollout.steps})


@reward("counted", timeout=30.0)
def counted(rollout: Rollout) -> float:
    """Takes its time, waits until the gate is open, and writes down that it was called."""
    time.sleep(0.01)
    while not Path(os.environ["TEST_WORKERS_GATE"]).exists():
        time.sleep(0.01)
    with Path(os.environ["TEST_WORKERS_CALLS"]).open("a") as calls:
        calls.write(f"{rollout.trajectory_uid}\n")
    return float(rollout.metadata["number"])


@reward("hangs", process=True, timeout=1.0)
def hangs(rollout: Rollout) -> float:
    if "tell" in rollout.metadata:
        Path(rollout.metadata["tell"]).write_text(str(os.getpid()))
    while rollout.metadata.get("hang"):
        pass
    return 1.0


@reward("dies", process=True)
def dies(rollout: Rollout) -> float:
    os._exit(7)
