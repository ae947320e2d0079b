"""The trainer of a chaos run: `python -m tests.chaos.trainer RECIPE BOOK`; the broker is CLAW_KAFKA.

It writes down each batch that it is handed, before it trains, and each that it is told is committed. It may be killed at any
point; its supervisor starts it again, and the batch that was not committed comes again.
"""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from tests.chaos.book import Book
from trainer_adapter import BatchStream

STEP_S = 0.15
"""Seconds that an optimiser step takes."""


def train(recipe: str, path: Path) -> None:
    with (
        Book(path) as book,
        BatchStream(recipe, kafka=os.environ["CLAW_KAFKA"], holder="trainer", appear=300) as stream,
    ):
        while True:
            batch = stream.next(None)
            name = f"{recipe}/{batch.sequence}"
            book.note("batch", "sent", name, digest=batch.digest, samples=tuple(batch.sample_ids))
            time.sleep(STEP_S)
            version = (stream.policy_version or 0) + 1
            batch.commit(policy_version=version)
            book.note("batch", "acknowledged", name, digest=batch.digest, said=f"version {version}")


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    train(sys.argv[1], Path(sys.argv[2]))
