"""The next batch is shown as the trainer gets it, and nobody loses the recipe; a measurement commits nothing."""

import asyncio
import json
import os
import subprocess

import pytest

from claw_r1 import topics
from claw_r1.errors import UserError
from claw_r1.events import Policy
from tests import warm
from tests.conftest import Stack
from tests.integration.adapter_stand import AdapterStand, on_stand
from tests.integration.test_adapter_demand import until
from trainer_adapter import AsyncBatchStream
from trainer_adapter.preview import preview_batch
from trainer_adapter.rate import Rate, measure_rate

pytestmark = pytest.mark.stack


def claw(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "CLAW_KAFKA": stack.kafka,
        "CLAW_CLICKHOUSE": stack.clickhouse,
        "CLAW_DATABASE": "nowhere",
    }
    return warm.claw(*arguments, env=environment)


def test_what_is_shown_is_what_the_trainer_gets_and_it_keeps_the_recipe(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        name = stand.recipe.name
        await stand.send(topics.POLICY, Policy(run_id=stand.recipe.run_id, version=9, at=1.0), stand.recipe.run_id)
        old, new = [({"version": version, "start": 0, "end": 4},) for version in (1, 8)]
        await stand.publish(stand.group(1, version_spans=new), stand.group(2, version_spans=old))
        async with AsyncBatchStream(name, kafka=stand.kafka, holder="me") as stream:
            await until(stand, holder="me")
            found = await asyncio.to_thread(preview_batch, name, kafka=stand.kafka)
            assert (found.sequence, found.is_full, found.holder, found.policy_version) == (1, False, "me", 9)
            assert "1 of 2 groups are ready" in found.waiting.describe(found.said_at)
            assert found.waiting.open is None
            await stand.publish(stand.group(3, version_spans=new))
            found = await asyncio.to_thread(preview_batch, name, kafka=stand.kafka)
            assert [(g.group_id, g.tokens, g.staleness) for g in found.members] == [("g1", 8, 1), ("g3", 8, 1)]
            assert [(g.group_id, g.reason) for g in found.excluded] == [("g2", "stale")]
            batch = await stream.next(30)  # still its own
            assert (found.is_full, found.tokens) == (True, batch.tokens)
            assert [m.group_id for m in batch.cut.members] == [g.group_id for g in found.members]
            await stand.publish(stand.group(4, version_spans=old))
            shown = await asyncio.to_thread(claw, stack, "batches", "next", "--recipe", name, "--dry-run")
            assert shown.returncode == 0, shown.stderr
            assert f"{name}/2 is not full: 0 groups, 0 tokens" in shown.stdout
            assert "batches 1 are cut and not committed" in shown.stdout
            assert "left out: 1 stale" in shown.stdout
            assert "the pool does not tell which groups are open" in shown.stdout
            await batch.commit(policy_version=10)
        assert len(await stand.history()) == 2
        document = json.loads(claw(stack, "batches", "next", "--recipe", name, "--json").stdout)
        assert (document["sequence"], document["holder"], document["untrained"]) == (2, None, [])
        assert [g["reason"] for g in document["excluded"]] == ["stale"]
        wrong = claw(stack, "batches", "next", "--recipe", name[:-1])
        assert (wrong.returncode, f"Did you mean '{name}'" in wrong.stderr) == (1, True)

    on_stand(stack, body, batch={"groups": 2}, staleness={"max_versions": 2})


def test_a_measurement_reads_all_and_commits_nothing(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        name = stand.recipe.name
        with pytest.raises(UserError, match=r"no batch of recipe .* was there: .* 0 of 2 groups"):
            await asyncio.to_thread(measure_rate, name, kafka=stand.kafka)
        spans = ({"step_id": "s", "step_index": 0, "start": 2, "end": 4},)
        await stand.publish(*(stand.group(number, spans=spans) for number in range(5)))
        caught_up, loop = asyncio.Event(), asyncio.get_running_loop()

        def tell(_: Rate) -> None:
            loop.call_soon_threadsafe(caught_up.set)

        measuring = asyncio.create_task(
            asyncio.to_thread(measure_rate, name, kafka=stand.kafka, follow=4.0, caught_up=tell)
        )
        await caught_up.wait()
        await stand.publish(stand.group(5))
        rate = await measuring
        assert (rate.batches, rate.groups, rate.samples, rate.steps, rate.tokens) == (2, 4, 8, 8, 32)
        assert rate.column_bytes == 32 * 9
        assert 0 < rate.pack_seconds < rate.seconds
        assert rate.live == 1
        assert rate.hand_over_p50 is not None
        assert 0 <= rate.hand_over_p50 < 4
        document = json.loads(claw(stack, "bench", "trainer", "--recipe", name, "--json").stdout)
        assert (document["batches"], document["live"]) == (3, 0)
        assert "steps/s" in claw(stack, "bench", "trainer", "--recipe", name).stdout
        assert await stand.history() == []

    on_stand(stack, body, batch={"groups": 2})
