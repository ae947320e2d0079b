"""A trainer that does nothing but take batches, and tells what that took: `python -m benchmarks.adapter_trainer PLAN`.

It answers on stdout with one JSON document a line. Time is the monotonic clock, which all processes of a machine share.
"""

import gc
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer_adapter import Batch, BatchStream


@dataclass(frozen=True)
class Plan:
    """What a trainer does."""

    kafka: str
    recipe: str
    batches: int = 0
    what: str = "drain"
    """drain: take all that is there. probe: take each as it comes, commit it, and say so. follow: the same for ever, with the
    groups' names."""
    warm_up: str | None = None
    """A recipe of which one batch is taken before."""

    def argv(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.adapter_trainer", json.dumps(asdict(self))]


def say(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)


def memory(field: str) -> int:
    """Bytes: `VmRSS` now in memory, or `VmHWM`, the most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def drain(plan: Plan) -> None:
    """What so many batches cost from the opening of the stream to the last one in hand."""
    if plan.warm_up is not None:
        with BatchStream(plan.warm_up, kafka=plan.kafka) as stream:
            stream.next(60)
    gc.collect()
    say(begins=plan.recipe)
    forget_peak()
    before, cpu, begun = memory("VmRSS"), time.process_time(), time.monotonic()
    samples = tokens = 0
    last: Batch | None = None
    with BatchStream(plan.recipe, kafka=plan.kafka) as stream:
        for _ in range(plan.batches):
            last = None  # a trainer has one batch at a time
            last = stream.next(120)
            samples += len(last)
            tokens += last.tokens
        seconds, spent, peak = time.monotonic() - begun, time.process_time() - cpu, memory("VmHWM")
    say(seconds=seconds, cpu=spent, samples=samples, tokens=tokens, grown=peak - before)


def probe(plan: Plan) -> None:
    """Say when a batch is asked for, and when it is in hand."""
    with BatchStream(plan.recipe, kafka=plan.kafka) as stream:
        for number in range(plan.batches):
            say(asks=number)
            batch = stream.next(120)
            say(at=time.monotonic(), group=batch.groups[-1].group_id)
            batch.commit(policy_version=(stream.policy_version or 0) + 1)


def follow(plan: Plan) -> None:
    """Take, commit and name every batch, until the process is ended. Times are the wall clock's, as the broker's are."""
    with BatchStream(plan.recipe, kafka=plan.kafka) as stream:
        say(opened=plan.recipe)
        for batch in stream:
            at = time.time()
            batch.commit(policy_version=(stream.policy_version or 0) + 1)
            say(at=at, groups=[group.prompt_uid for group in batch.groups], samples=len(batch), tokens=batch.tokens)


if __name__ == "__main__":
    plan = Plan(**json.loads(sys.argv[1]))
    {"drain": drain, "probe": probe, "follow": follow}[plan.what](plan)
