"""`python -m streams`, but it stops itself (SIGSTOP) once, between the samples of its first ready group and their commit."""

import os
import signal
from collections.abc import Sequence

from aiokafka import AIOKafkaProducer

from claw_r1.process import main
from claw_r1.settings import StreamsSettings
from claw_r1.topics import BATCH_PREFIX
from streams.app import run
from streams.outbox import Sending
from streams.partition import PartitionWorker

_write = PartitionWorker._write
_commit = AIOKafkaProducer.commit_transaction
stopping = False
stopped: list[bool] = []


async def write(self: PartitionWorker, records: Sequence[Sending]) -> None:
    global stopping
    stopping = any(sending.topic.startswith(BATCH_PREFIX) for sending in records)
    await _write(self, records)


async def commit(self: AIOKafkaProducer) -> None:
    global stopping
    if stopping and not stopped:
        stopped.append(True)
        os.kill(os.getpid(), signal.SIGSTOP)
    await _commit(self)


if __name__ == "__main__":
    PartitionWorker._write = write  # type: ignore[method-assign]
    AIOKafkaProducer.commit_transaction = commit
    main("streams", StreamsSettings, run)
