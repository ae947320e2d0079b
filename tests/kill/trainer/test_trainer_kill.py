"""A trainer is struck between every two operations; the batches that had an effect are those of an undisturbed run.

A trainer is in no consumer group, so nothing of its own is ever rebalanced. What stands for it is tested instead: the broker
that leads its topics restarts in the middle of a transaction, and another trainer takes the recipe over.
"""

import asyncio
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from claw_r1.local.stack import RunningStack
from claw_r1.local.state import is_frozen
from tests.conftest import Stack, wait_until
from tests.kill.form import LONG, SEED, show
from tests.kill.trainer.play import Trainers, effective, two_recipes
from tests.kill.trainer.program import OPERATIONS
from tests.warm import Started

pytestmark = [pytest.mark.stack, pytest.mark.kill]

BATCHES = len(OPERATIONS)
KILLED = -signal.SIGKILL
BROKER_OPERATIONS = [operation for operation in OPERATIONS if not operation.startswith("checkpoint")]
STRIKES = ("kill", "broker", "takeover")
ROUNDS = 60 if LONG else 6


@pytest.fixture
def broker(spare: RunningStack) -> RunningStack:
    """A broker that may be killed."""
    return spare


@pytest.mark.parametrize("keeps_cursor", [True, False], ids=["cursor", "no_cursor"])
def test_a_trainer_killed_between_two_operations_trains_what_an_undisturbed_one_does(
    stack: Stack, tmp_path: Path, keeps_cursor: bool
) -> None:
    async def body() -> None:
        async with two_recipes(stack.kafka, tmp_path, BATCHES) as (quiet, struck):
            struck.keeps_cursor = keeps_cursor
            undisturbed = asyncio.create_task(quiet.run())
            for at, operation in enumerate(OPERATIONS, start=1):
                await struck.run(KILLED, point=operation, at=at)
            await struck.run()
            await undisturbed
            # An operation that this test does not strike before is one that it does not know.
            assert quiet.operations() == [*OPERATIONS] * BATCHES
            await check_same(quiet, struck)
            commits = await struck.commits()
            again = [sequence for sequence, n in Counter(sequence for sequence, _, _ in commits).items() if n > 1]
            lost = [number for number, operation in enumerate(OPERATIONS, start=1) if "checkpoint" in operation]
            assert again == (lost if keeps_cursor else [])  # trained, committed, and not in a checkpoint
            if not keeps_cursor:
                assert commits == await quiet.commits()  # the versions too

    asyncio.run(body())


async def check_same(quiet: Trainers, struck: Trainers) -> None:
    """Every batch was cut once, and had its effect once, with the same bytes in the same order; versions rise."""
    cuts = await struck.cuts()
    assert cuts == await quiet.cuts()
    assert "g4" in [name for _, _, _, excluded in cuts for name in excluded]
    wanted, commits = await quiet.commits(), await struck.commits()
    assert [sequence for sequence, _, _ in wanted] == [*range(1, quiet.batches + 1)]
    assert [commit[:2] for commit in effective(commits)] == [commit[:2] for commit in wanted]
    versions = [version for _, _, version in commits]
    assert versions == sorted(set(versions))
    assert (await struck.stand.policies())[-1].version == versions[-1]
    if struck.keeps_cursor:
        assert struck.checkpoint.read_text() == quiet.checkpoint.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["cut: end", "commit: end"])
def test_a_broker_that_restarts_in_a_transaction_changes_nothing(
    broker: RunningStack, tmp_path: Path, operation: str
) -> None:
    async def body() -> None:
        async with two_recipes(broker.kafka, tmp_path, 3) as (quiet, struck):
            await quiet.run()
            await restart_broker(broker, struck, operation, 2)
            await struck.run()
            await check_same(quiet, struck)
            assert await struck.commits() == await quiet.commits()

    asyncio.run(body())


async def restart_broker(broker: RunningStack, struck: Trainers, operation: str, at: int) -> None:
    """A trainer stands still before the operation while the broker is killed and comes again; then it goes on to the end."""
    trainer = struck.begin(operation, at, "STOP")
    try:
        await stopped(trainer, struck)
        pid = broker.kill("kafka")
        await asyncio.to_thread(broker.wait_restarted, "kafka", pid)
        trainer.send_signal(signal.SIGCONT)
        await struck.end(trainer)
    finally:
        trainer.kill()


async def stopped(trainer: Started, trainers: Trainers) -> None:
    def still() -> bool:
        assert trainer.poll() is None, trainers.logged()[-3_000:]
        return is_frozen(trainer.pid)

    await asyncio.to_thread(wait_until, still, what="the trainer stops itself")


@pytest.mark.parametrize("operation", [pytest.param("cut: end", marks=pytest.mark.slow), "commit: send claw.cuts.v1"])
def test_a_trainer_that_wakes_after_a_takeover_changes_nothing(stack: Stack, tmp_path: Path, operation: str) -> None:
    async def body() -> None:
        async with two_recipes(stack.kafka, tmp_path, 3) as (quiet, struck):
            await quiet.run()
            await take_over(struck, operation, 2)
            await check_same(quiet, struck)
            assert await struck.commits() == await quiet.commits()

    asyncio.run(body())


async def take_over(struck: Trainers, operation: str, at: int) -> None:
    """A trainer stands still before the operation while another one does all the rest; then it wakes and is told."""
    zombie = struck.begin(operation, at, "STOP")
    try:
        await stopped(zombie, struck)
        await struck.run(holder="heir")
        zombie.send_signal(signal.SIGCONT)
        await struck.end(zombie, 1)
        assert "Superseded" in struck.logged()
    finally:
        zombie.kill()


@pytest.mark.slow
@pytest.mark.timeout(1500 if LONG else 300)
def test_whatever_strikes_a_trainer_each_batch_has_its_effect_once(broker: RunningStack, tmp_path: Path) -> None:
    show()
    draw = random.Random(SEED)
    struck_by: Counter[str] = Counter()

    async def body() -> None:
        async with two_recipes(broker.kafka, tmp_path, 2 * ROUNDS) as (quiet, struck):
            await quiet.run()
            whole = struck.batches
            for number in range(1, ROUNDS + 1):
                struck.keeps_cursor = draw.random() < 0.7
                strike = STRIKES[number % 3] if number <= 3 else draw.choice(STRIKES)
                # Who wakes in its checkpoint of the last batch has nothing more to ask of the broker.
                operation = draw.choice(OPERATIONS if strike != "takeover" else BROKER_OPERATIONS)
                struck.batches = 2 * number
                at = 2 * number - draw.randint(0, 1)
                print(f"round {number}: {strike} before {operation} of batch {at}, cursor {struck.keeps_cursor}")
                if strike == "kill":
                    await struck.run(KILLED, point=operation, at=at)
                elif strike == "broker":
                    await restart_broker(broker, struck, operation, at)
                else:
                    await take_over(struck, operation, at)
                struck_by[strike] += 1
            struck.batches, struck.keeps_cursor = whole, False  # checkpoints of a trainer without a cursor lack a batch
            await struck.run()
            await check_same(quiet, struck)

    asyncio.run(body())
    assert set(struck_by) == set(STRIKES)
