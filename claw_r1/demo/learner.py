"""The demo's trainer process: batches from the adapter, optimiser steps, acknowledgements, and a line about each of them.

`python -m claw_r1.demo.learner`; the broker is CLAW_KAFKA. It can be killed at any point: the batch that was not
acknowledged comes again. With a target (`--batches`) it stops taking batches there and waits for its end, so that a
supervisor does not start it over.
Invariants: a batch's line is in the file before the batch is acknowledged, so every trained batch has one; a batch that came
again has a second line, of the same content.
"""

import argparse
import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Literal

import msgspec

from claw_r1.demo import grpo, policy
from claw_r1.demo.trainer import EngineClient, Trainer, load_weights, save_weights, success_rate
from claw_r1.errors import ClawError, exit_code
from trainer_adapter import Batch, BatchStream

log = logging.getLogger("claw.trainer")


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the trainer's file. `at`: seconds since the epoch.

    `opened`: the trainer holds the recipe. `taken`: a batch is in hand; `success`: share of won games; `own`: its groups of
    this session. `trained`: it is acknowledged, and `version` is served.
    """

    at: float
    event: Literal["opened", "taken", "trained"]
    session: str
    sequence: int
    success: float | None = None
    trajectories: int | None = None
    groups: int | None = None
    own: int | None = None
    ready_ms: float | None = None
    """From the decision that made the batch's last group ready to the batch in the trainer's hands; only where the trainer
    was waiting then, so that it measures the way and not the trainer."""
    version: int | None = None


class Session(msgspec.Struct, frozen=True):
    """Where a session's batches begin: `first` is the recipe's cursor at its start."""

    session: str
    first: int


def first_cursor(path: Path, session: str, cursor: int) -> int:
    """The cursor at which this session's trainer first opened the stream; a restarted trainer finds it in the file."""
    if path.exists() and (known := msgspec.json.decode(path.read_bytes(), type=Session)).session == session:
        return known.first
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(Session(session, cursor)))
    os.replace(fresh, path)
    return cursor


def ready_ms(batch: Batch, asked: float, now: float) -> float | None:
    """Milliseconds from the last group's decision to `now`; None where the batch was whole before it was asked for."""
    decided = [group.decided_at for group in batch.groups]
    known = [at for at in decided if at is not None]
    if len(known) < len(decided) or not known or max(known) < asked:
        return None
    return 1000.0 * (now - max(known))


class Learner:
    """Takes batches up to a target and learns from each; without an engine of the demo's own it only acknowledges."""

    def __init__(self, stream: BatchStream, session: str, report: BinaryIO, trainer: Trainer | None) -> None:
        self._stream = stream
        self._session = session
        self._report = report
        self._trainer = trainer

    def begin(self) -> None:
        """Serve weights whose version is above every version that was trained."""
        trained = self._stream.policy_version or 0
        if self._trainer is not None:
            weights = self._trainer.weights
            if weights.version < trained:
                self._trainer.weights = policy.Weights(trained, weights.table, weights.taste)
                save_weights(self._trainer.path, self._trainer.weights)
            self._trainer.align()
            trained = self._trainer.weights.version
        self._tell(Line(time.time(), "opened", self._session, self._stream.cursor(), version=trained))

    def learn(self) -> None:
        asked = time.time()
        batch = self._stream.next(None)
        now = time.time()
        success, trajectories = success_rate(batch)
        own = sum(group.prompt_uid.startswith(self._session) for group in batch.groups)
        waited = ready_ms(batch, asked, now)
        taken = Line(now, "taken", self._session, batch.sequence, success, trajectories, len(batch.groups), own, waited)
        self._tell(taken)
        if self._trainer is not None:
            version = self._trainer.step(batch).version
        else:
            version = (self._stream.policy_version or 0) + 1
            batch.commit(policy_version=version)
        self._tell(Line(time.time(), "trained", self._session, batch.sequence, version=version))

    def _tell(self, line: Line) -> None:
        self._report.write(msgspec.json.encode(line) + b"\n")


def run(given: argparse.Namespace) -> None:
    given.folder.mkdir(parents=True, exist_ok=True)
    weights = given.folder / "weights.npz"
    trainer = None
    if given.engine:
        trainer = Trainer(load_weights(weights), EngineClient(given.engine), weights, grpo.Recipe())
    with (
        (given.folder / "batches.jsonl").open("ab", buffering=0) as report,
        BatchStream(given.recipe, kafka=given.kafka, appear=given.appear) as stream,
    ):
        learner = Learner(stream, given.session, report, trainer)
        first = first_cursor(given.folder / "session.json", given.session, stream.cursor())
        learner.begin()
        while given.batches == 0 or stream.cursor() - first < given.batches:
            learner.learn()
    while True:
        signal.pause()


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m claw_r1.demo.learner", description=__doc__)
    parser.add_argument("--kafka", default=os.environ.get("CLAW_KAFKA", "127.0.0.1:9092"), help="host:port")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--session", required=True, help="names this start of the demo")
    parser.add_argument("--folder", type=Path, required=True, help="where weights and lines are kept")
    parser.add_argument("--engine", default="", help="the demo's engine; none: acknowledge batches without learning")
    parser.add_argument("--batches", type=int, default=0, help="stop after so many batches of this session; 0: never")
    parser.add_argument("--appear", type=float, default=300.0, help="seconds to wait for the recipe")
    return parser.parse_args(arguments)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    try:
        run(parse_arguments())
    except ClawError as error:
        log.error("the trainer ends: %s", error)
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
