"""A trainer that kills itself: `program.py KAFKA RECIPE CHECKPOINT BATCHES POINT AT` dies at POINT of batch AT.

Its weights are a hash over the bytes of every batch it was trained on; the checkpoint holds them with the stream's cursor.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from trainer_adapter import Batch, BatchStream

kafka, recipe, checkpoint, batches, point, at = sys.argv[1:7]
path = Path(checkpoint)


def reach(name: str, sequence: int) -> None:
    if name == point and sequence == int(at):
        os.kill(os.getpid(), signal.SIGKILL)


class Transactions:
    """Dies in the middle of a transaction: its records are with the broker, its end is not."""

    doing, sequence = "", 0

    def __init__(self) -> None:
        finish = AIOKafkaProducer.commit_transaction

        async def commit_transaction(producer: AIOKafkaProducer) -> None:
            await producer.flush()
            reach(self.doing, self.sequence)
            await finish(producer)

        AIOKafkaProducer.commit_transaction = commit_transaction


def train(weights: str, batch: Batch) -> str:
    digest = hashlib.sha256(weights.encode())
    for column in (batch.offsets, batch.token_ids, batch.loss_mask, batch.rollout_log_probs, batch.advantages):
        digest.update(column.tobytes())
    digest.update(json.dumps(batch.sample_ids).encode())
    return digest.hexdigest()


def main() -> None:
    state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"weights": "", "cursor": 0}
    transactions = Transactions()
    with BatchStream(recipe, kafka=kafka, timeout=60) as stream:
        stream.seek(state["cursor"])
        while state["cursor"] < int(batches):
            transactions.doing, transactions.sequence = "cutting", state["cursor"] + 1
            batch = stream.next(60)
            reach("cut", batch.sequence)
            weights = train(state["weights"], batch)
            reach("trained", batch.sequence)
            transactions.doing = "committing"
            batch.commit(policy_version=(stream.policy_version or 0) + 1)
            reach("committed", batch.sequence)
            state = {"weights": weights, "cursor": stream.cursor()}
            path.with_suffix(".new").write_text(json.dumps(state))
            path.with_suffix(".new").replace(path)
            reach("checkpointed", batch.sequence)


main()
