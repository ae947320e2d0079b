"""A trainer that kills itself, or stops itself, between two operations: `python -m tests.kill.trainer.program PLAN` (JSON).

Its weights are a hash over the bytes of every batch it was trained on; the checkpoint holds them with the stream's cursor.
Every operation that leaves a trace outside the process is named in `OPERATIONS`, and in the plan's `trace` as it begins.
"""

import contextlib
import hashlib
import json
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from aiokafka import AIOKafkaProducer

from trainer_adapter import Batch, BatchStream

OPERATIONS = (
    "cut: begin",
    "cut: send claw.cuts.v1",
    "cut: end",
    "train",
    "commit: begin",
    "commit: send claw.token-stats.v1",
    "commit: send claw.cuts.v1",
    "commit: send claw.policy.v1",
    "commit: end",
    "checkpoint: write",
    "checkpoint: replace",
)
"""Of one batch, in their order: what the trainer does, and what the adapter asks of a transactional producer."""
FIRST = "trainer"
"""Who has the recipe; killed and started anew, it is still the same trainer."""
_ASKED = {
    "begin_transaction": "begin",
    "send": "send",
    "send_offsets_to_transaction": "send offsets",
    "commit_transaction": "end",
    "abort_transaction": "abort",
}


@dataclass(frozen=True)
class Plan:
    """What a trainer does, and where it ends."""

    kafka: str
    recipe: str
    checkpoint: str
    trace: str
    batches: int
    keeps_cursor: bool = True
    """It seeks the cursor of its checkpoint; else it goes on after the last commit."""
    point: str = ""
    """The operation before which it is struck."""
    at: int = 0
    """In which batch."""
    signal: str = "KILL"
    holder: str = FIRST
    """A trainer of another name takes the recipe over."""
    linger: float = 60.0
    """Seconds that it waits for a batch."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Way:
    """Where the trainer is on its way through the operations of a batch."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.phase = ""
        """What a transaction is for."""
        self.sequence = 0
        self.struck = False

    def reach(self, operation: str) -> None:
        """Note that the operation begins; strike if it is the one."""
        with Path(self.plan.trace).open("a") as trace:
            trace.write(f"{self.sequence} {operation}\n")
        if (operation, self.sequence) == (self.plan.point, self.plan.at) and not self.struck:
            self.struck = True
            # To this thread: another one would take a signal of the process later, and this one go on meanwhile.
            signal.pthread_kill(threading.get_ident(), signal.Signals[f"SIG{self.plan.signal}"])

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        self.phase = phase
        yield
        self.phase = ""

    def follow_transactions(self) -> None:
        """Reach whatever is asked of a transactional producer, with the records before it at the broker."""

        def follow(name: str, ask: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def reached(producer: AIOKafkaProducer, *arguments: Any, **named: Any) -> Any:
                if producer._txn_manager is not None and producer._txn_manager.transactional_id is not None:
                    if name != "begin_transaction":
                        await producer.flush()
                    self.reach(" ".join([f"{self.phase}: {_ASKED[name]}", *(arguments[:1] if name == "send" else ())]))
                return await ask(producer, *arguments, **named)

            return reached

        for name in _ASKED:
            setattr(AIOKafkaProducer, name, follow(name, getattr(AIOKafkaProducer, name)))


def train(weights: str, batch: Batch) -> str:
    digest = hashlib.sha256(weights.encode())
    for column in (batch.offsets, batch.token_ids, batch.loss_mask, batch.rollout_log_probs, batch.advantages):
        digest.update(column.tobytes())
    digest.update(json.dumps(batch.sample_ids).encode())
    return digest.hexdigest()


def main(plan: Plan) -> None:
    path, new = Path(plan.checkpoint), Path(f"{plan.checkpoint}.new")
    state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"weights": "", "cursor": 0}
    way = Way(plan)
    way.follow_transactions()
    with BatchStream(
        plan.recipe, kafka=plan.kafka, holder=plan.holder, take_over=plan.holder != FIRST, timeout=plan.linger
    ) as stream:
        if plan.keeps_cursor:
            stream.seek(state["cursor"])
        while stream.cursor() < plan.batches:
            way.sequence = stream.cursor() + 1
            with way.during("cut"):
                batch = stream.next(plan.linger)
            way.reach("train")
            weights = train(state["weights"], batch)
            with way.during("commit"):
                stats = {"log_probs": np.zeros(batch.tokens, np.float32)}
                batch.commit(policy_version=(stream.policy_version or 0) + 1, token_stats=stats)
            state = {"weights": weights, "cursor": stream.cursor()}
            way.reach("checkpoint: write")
            new.write_text(json.dumps(state))
            way.reach("checkpoint: replace")
            new.replace(path)


if __name__ == "__main__":
    main(Plan(**json.loads(sys.argv[1])))
