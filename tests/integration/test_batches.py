"""Cuts, lineage and rebuilt batches, on the real broker, sink and engine."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from claw_r1 import topics
from claw_r1.codec import pack_floats
from claw_r1.errors import UserError
from claw_r1.events import BatchCut, BlobRef, Decision, Event, ExpertsSpan, GroupReady, RecipeSet, Sample, StepSpan
from claw_r1.ids import new_id
from tests.conftest import Stack, wait_until
from tests.factories import a_reward
from tests.integration.adapter_stand import AdapterStand, an_adapter_stand
from tests.integration.test_sink import a_pool, a_sink
from tests.pool import Pool
from tests.workers import workers
from trainer_adapter import AsyncBatchStream, TrainingBatch, rebuild_batch

pytestmark = pytest.mark.stack

RULE: dict[str, Any] = {
    "group": {"size": 2, "min_size": 1},
    "batch": {"groups": 2},
    "rewards": {"weights": {"penalty": -1.0}},
}


@dataclass
class Told:
    """A recipe with two batches, of which the first is trained, and a group that waits; and what came too late for all."""

    pool: Pool
    recipe: str
    run: str
    batches: list[TrainingBatch]
    cuts: list[BatchCut]
    steps: dict[str, str]
    """Trajectory → its step."""
    decided: dict[str, Decision]


@pytest.fixture(scope="module")
def told(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    pool = a_pool(stack, "batches")
    with workers(a_sink(stack, tmp_path_factory.mktemp("batches"), pool.database)):
        yield asyncio.run(_tell(stack, pool))


async def _tell(stack: Stack, pool: Pool) -> Told:
    async with an_adapter_stand(stack.kafka, **RULE) as stand:
        run, name = stand.recipe.run_id, stand.recipe.name
        await stand.send(
            topics.EVENTS,
            RecipeSet(fact_id=f"set-{name}", run_id=run, at=1.0, name=name, version=1, recipe=stand.recipe),
            run,
        )
        groups = [a_rich_group(stand, number) for number in range(1, 7)]
        await stand.publish(*groups)
        async with AsyncBatchStream(name, kafka=stand.kafka) as stream:
            decided = {
                "override": await decide(stand, "override_reward", "g2", "g2-t1", value=3.5),
                "veto": await decide(stand, "veto", "g1", "g1-t0", step_id=step_of(stand, "g1-t0")),
                "tag": await decide(stand, "tag", "g2", "g2-t0", value="good"),
                "out": await decide(stand, "veto", "g3"),
            }
            first = await stream.next(60)
            await first.commit(policy_version=2)
            second = await stream.next(60)
            decided["late"] = await decide(stand, "veto", "g1", "g1-t1", at=2.0)
            decided["undone"] = await decide(stand, "undo", "g2", undoes=decided["override"].fact_id, at=3.0)
            late = [
                a_reward(-9.0, run_id=run, prompt_uid=f"g{n}", trajectory_uid=f"g{n}-t0", revision=1) for n in (1, 2)
            ]
            for reward in late:
                await stand.send(topics.EVENTS, reward, f"{run}/{reward.prompt_uid}")
            last = await decide(stand, "note", "g6", value="the last")
        cuts = [event for event in await stand.history() if isinstance(event, BatchCut)]

        def stored() -> bool:
            there = f"SELECT count() FROM decisions WHERE run_id = '{run}' AND fact_id = '{last.fact_id}'"
            rewards = f"SELECT count() FROM rewards FINAL WHERE run_id = '{run}'"
            cut = f"SELECT count() FROM cuts FINAL WHERE run_id = '{run}'"
            trained = f"SELECT count() FROM trained FINAL WHERE run_id = '{run}'"
            recipe = f"SELECT count() FROM recipes WHERE run_id = '{run}'"
            return [bool(pool.scalar(there)), *map(pool.scalar, (rewards, cut, trained, recipe))] == [True, 2, 2, 1, 1]

        await asyncio.to_thread(wait_until, stored, what="the pool has it all")
        steps = {f"g{n}-t{m}": step_of(stand, f"g{n}-t{m}") for n in range(1, 7) for m in (0, 1)}
        return Told(pool, name, run, [first, second], cuts, steps, decided)


def step_of(stand: AdapterStand, uid: str) -> str:
    return f"{stand.recipe.name}-{uid}-s0"


def a_rich_group(stand: AdapterStand, number: int) -> tuple[list[Sample], GroupReady]:
    """A group whose samples have all that a batch may be made of."""
    blob = BlobRef(sha256="ab", bytes=7, kind="routed_experts")
    samples, marker = stand.group(
        number,
        (-0.0, 1.0 / 3.0),
        ids=(1, 2, 2**31 - 1, 4, 5 + number),
        mask=(0, 0, 1, 1, 1),
        annotations={"values": pack_floats([0, 0, 0.1, 1e-30, -0.0])},
        annotations_missing={"ref_log_probs": 2},
        metadata={"number": number, "nested": {"a": [1, 2.5, None, "ü'\\"]}},
        reward_components={"reward": 1.0 / 3.0, "penalty": 0.1},
        version_spans=({"version": number, "start": 2, "end": 4}, {"version": None, "start": 4, "end": 5}),
        routed_experts=(ExpertsSpan(step_id="s", blob=blob, start=0, end=4),),
        multi_modal_data=(BlobRef(sha256="cd", bytes=3, kind="image"),),
        tags=("new",),
        quality=0.25,
    )
    spans = [
        StepSpan(
            step_id=step_of(stand, sample.trajectory_uid),
            step_index=0,
            start=2,
            end=4,
            reward=0.5,
            source_reward=0.25,
            link="root",
        )
        for sample in samples
    ]
    samples = [
        s.model_copy(
            update={"spans": (span,), "recipe": stand.recipe.name, "sample_id": f"{stand.recipe.name}-{s.sample_id}"}
        )
        for s, span in zip(samples, spans, strict=True)
    ]
    members = tuple(
        member.model_copy(update={"samples": (sample.sample_id,), "source_reward": 0.125})
        for member, sample in zip(marker.members, samples, strict=True)
    )
    update = {"members": members, "sample_ids": tuple(s.sample_id for s in samples), "recipe": stand.recipe.name}
    before = Decision(
        fact_id=f"before-{number}",
        run_id=stand.recipe.run_id,
        prompt_uid=marker.prompt_uid,
        trajectory_uid=f"g{number}-t1",
        action="override_reward",
        value=1.0 / 3.0,
        author="ada",
        at=0.5,
    )
    curated = {"curation": (before,), "decisions": (before.fact_id,), "min_version": number, "max_version": number}
    return samples, marker.model_copy(update=update | curated)


async def decide(stand: AdapterStand, action: str, prompt: str, uid: str | None = None, **over: Any) -> Decision:
    """A decision on the log, and behind its group as a stream worker forwards it."""
    fields = {"fact_id": new_id(), "run_id": stand.recipe.run_id, "at": 1.0, "author": "ada"} | over
    decision = Decision.model_validate(fields | {"action": action, "prompt_uid": prompt, "trajectory_uid": uid})
    key = f"{decision.run_id}/{prompt}"
    await stand.send(topics.EVENTS, decision, key)
    forwarded = decision.model_copy(update={"group_id": prompt})
    await stand.send(stand.topic, forwarded, key)
    return decision


def columns(batch: TrainingBatch) -> dict[str, bytes]:
    """Every array of a batch, as its bytes."""
    named = {name: value for name, value in vars(batch).items() if isinstance(value, np.ndarray)}
    return {name: value.tobytes() for name, value in (named | batch.annotations).items()}


def test_a_batch_is_made_again_byte_for_byte_whatever_was_said_since(told: Told) -> None:
    assert [[d.fact_id for d in m.decisions] for m in told.cuts[0].members] == [
        [told.decided["veto"].fact_id],
        [told.decided["override"].fact_id, told.decided["tag"].fact_id],
    ]
    for sequence, batch in enumerate(told.batches, 1):
        again = rebuild_batch(f"{told.recipe}/{sequence}", clickhouse=told.pool.url, database=told.pool.database)
        assert again.digest == batch.digest == told.cuts[sequence - 1].digest
        assert columns(again) == columns(batch)
        assert columns(again).keys() >= {"offsets", "token_ids", "trajectory_advantages", "values"}
        for name in ("metadata", "spans", "tags", "quality", "routed_experts", "multi_modal_data", "version_spans"):
            assert getattr(again, name) == getattr(batch, name), name
        assert again.groups == batch.groups
        assert rebuild_batch(batch.batch_id, clickhouse=told.pool.url, database=told.pool.database).digest == batch.digest
