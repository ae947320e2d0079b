"""`claw recipes backfill`, one group a transaction, that strikes itself (by signal STRIKE) before commit STRIKE_AT."""

import os
import signal

from aiokafka import AIOKafkaProducer

from claw_r1.cli.entry import main
from streams import outbox

_commit = AIOKafkaProducer.commit_transaction
_left = int(os.environ.pop("STRIKE_AT"))
_strike = signal.Signals[os.environ.pop("STRIKE")]


async def commit(self: AIOKafkaProducer) -> None:
    global _left
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), _strike)
    await _commit(self)


if __name__ == "__main__":
    outbox.TRANSACTION_RECORDS = 1
    AIOKafkaProducer.commit_transaction = commit
    main()
