"""A trainer is killed between every two operations; the batches that had an effect are those of an undisturbed run."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from claw_r1.events import BatchCut, BatchTrained, Decision
from claw_r1.ids import derived_id
from claw_r1.local.broker import broker_answers, prepare_broker
from claw_r1.local.ports import find_port
from tests.conftest import Stack, wait_until
from tests.integration.adapter_stand import AdapterStand, an_adapter_stand
from trainer_adapter import AsyncBatchStream, NoBatchYet

pytestmark = [pytest.mark.stack, pytest.mark.kill]

POINTS = ("cutting", "cut", "trained", "committing", "committed", "checkpointed")


def run_trainer(stand: AdapterStand, checkpoint: Path, batches: int, point: str = "never", at: int = 0) -> int:
    """The exit status of a trainer that goes on from its checkpoint to `batches`."""
    program = Path(__file__).with_name("program.py")
    arguments = [stand.kafka, stand.recipe.name, str(checkpoint), str(batches), point, str(at)]
    done = subprocess.run([sys.executable, str(program), *arguments], timeout=120, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def test_a_killed_trainer_trains_what_an_undisturbed_one_does(stack: Stack, tmp_path: Path) -> None:
    batches = len(POINTS)
    rules: dict[str, Any] = {"batch": {"groups": 2}, "group": {"size": 2, "min_size": 1}}

    async def body() -> None:
        async with (
            an_adapter_stand(stack.kafka, **rules) as quiet,
            an_adapter_stand(stack.kafka, **rules) as killed,
        ):
            groups = [quiet.group(number, mask=(0, 0, 0, 1) if number % 3 else (0,) * 4) for number in range(24)]
            await quiet.publish(*groups)
            for group in groups:
                await killed.publish(group)
            for stand in (quiet, killed):
                for said in some_decisions(quiet.recipe.run_id):
                    await stand.send(stand.topic, said, f"{said.run_id}/{said.prompt_uid}")
            assert await asyncio.to_thread(run_trainer, quiet, tmp_path / "quiet", batches) == 0
            for at, point in enumerate(POINTS, start=1):
                status = await asyncio.to_thread(run_trainer, killed, tmp_path / "killed", batches, point, at)
                assert status == -signal.SIGKILL, point
            await asyncio.to_thread(run_trainer, killed, tmp_path / "killed", batches)
            assert json.loads((tmp_path / "killed").read_text()) == json.loads((tmp_path / "quiet").read_text())
            assert cuts_of(await killed.history()) == cuts_of(await quiet.history())
            assert "g4" in [name for _, _, _, excluded in cuts_of(await killed.history()) for name in excluded]
            commits = [event for event in await killed.history() if isinstance(event, BatchTrained)]
            versions = [commit.policy_version for commit in commits]
            assert versions == sorted(set(versions))
            # Only the commit before the lost checkpoint came again.
            assert [commit.sequence for commit in commits] == [1, 2, 3, 4, 5, 5, 6]
            assert [policy.version for policy in await killed.policies()][-1] == versions[-1]

    asyncio.run(body())


def some_decisions(run: str) -> list[Decision]:
    said: list[dict[str, Any]] = [
        {"action": "veto", "prompt_uid": "g4"},
        {"action": "veto", "prompt_uid": "g7", "trajectory_uid": "g7-t0"},
        {"action": "override_reward", "prompt_uid": "g10", "trajectory_uid": "g10-t1", "value": 2.5},
    ]
    head = {"run_id": run, "at": 1.0, "author": "ada"}
    return [Decision.model_validate(head | {"fact_id": derived_id(str(about))} | about) for about in said]


def cuts_of(history: list[BatchCut | BatchTrained]) -> list[tuple[int, str, list[str], list[str]]]:
    """What each cut holds, in log order."""
    return [
        (event.sequence, event.digest, [m.group_id for m in event.members], [e.group_id for e in event.excluded])
        for event in history
        if isinstance(event, BatchCut)
    ]


def refusals(caplog: pytest.LogCaptureFixture) -> int:
    return sum("no Kafka broker answers" in getattr(record, "error", "") for record in caplog.records)


@pytest.mark.slow
def test_a_trainer_outlives_its_broker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    port, controller = find_port(), find_port()

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / "kafka.log").open("ab") as log:
            process = subprocess.Popen(prepare_broker(tmp_path / "kafka", port, controller), stdout=log, stderr=log)
        wait_until(lambda: broker_answers(f"127.0.0.1:{port}"), what="the broker answers")
        return process

    async def body() -> None:
        broker = await asyncio.to_thread(start)
        try:
            async with (
                an_adapter_stand(f"127.0.0.1:{port}") as stand,
                AsyncBatchStream(stand.recipe.name, kafka=stand.kafka, deadline=30) as stream,
            ):
                await stand.publish(stand.group(1), stand.group(2))
                batch = await stream.next(30)
                broker.kill()
                broker.wait()
                # Away for so long that clients give up and new ones find nobody.
                stream._ledger._deadline = 1.0
                committing = asyncio.create_task(batch.commit(policy_version=1))
                await asyncio.to_thread(wait_until, lambda: refusals(caplog) >= 3, what="new clients were refused")
                stream._ledger._deadline = 30.0
                broker = await asyncio.to_thread(start)
                await committing
                second = await stream.next(60)
                broker.kill()
                broker.wait()
                with pytest.raises(NoBatchYet, match="the broker does not answer"):
                    await stream.next(0.1)
                coming = asyncio.create_task(stream.next(90))
                broker = await asyncio.to_thread(start)
                await second.commit(policy_version=2)
                await stand.publish(stand.group(3))
                third = await coming
                await third.commit(policy_version=3)
                history = await stand.history()
                assert [group_ids for _, _, group_ids, _ in cuts_of(history)] == [["g1"], ["g2"], ["g3"]]
                assert [e.sequence for e in history if isinstance(e, BatchTrained)] == [1, 2, 3]
        finally:
            broker.kill()
            broker.wait()

    asyncio.run(body())
